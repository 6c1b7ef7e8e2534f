// SPDX-License-Identifier: Apache-2.0

package web

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

const (
	writeTime = 5 * time.Second // for what a browser does not read it is dropped
	mapEvery  = 250 * time.Millisecond
	maxCells  = 4096
	maxID     = 256 // bytes of the id of a job
)

// view is the range of a disk that a browser looks at: the arguments of x-query-mirror-map.
type view struct {
	Job    string `json:"id"`
	Offset int64  `json:"offset"`
	Length *int64 `json:"length,omitempty"` // nil for up to the end of the disk
	Cells  int64  `json:"cells"`
}

// wish is what a browser asks a stream for.
type wish struct {
	view    *view  // nil for no map
	events  uint64 // number of the last event that it knows
	history bool
}

// parseWish reads the parameters of a stream.
func parseWish(q url.Values) (w wish, err error) {
	number := func(name string, least, most int64) (v int64, given bool) {
		text := q.Get(name)
		if text == "" || err != nil {
			return 0, false
		}
		v, bad := strconv.ParseInt(text, 10, 64)
		if bad != nil || v < least || v > most {
			err = fmt.Errorf("%s expects a number from %d to %d", name, least, most)
			return 0, false
		}
		return v, true
	}
	const most = 1<<63 - 1
	after, _ := number("after", 0, most)
	w.events = uint64(after)
	w.history = q.Get("history") != "no"
	job := q.Get("job")
	if len(job) > maxID {
		return w, fmt.Errorf("job expects an id of at most %d bytes", maxID)
	}
	if job != "" {
		w.view = &view{Job: job, Cells: 1024}
		w.view.Offset, _ = number("offset", 0, most)
		if length, given := number("length", 1, most); given {
			w.view.Length = &length
		}
		if cells, given := number("cells", 1, maxCells); given {
			w.view.Cells = cells
		}
	}
	return w, err
}

// serveStream sends what changes as server-sent events: state, history, log, map.
func (s *Server) serveStream(w http.ResponseWriter, r *http.Request) {
	asked, err := parseWish(r.URL.Query())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	select {
	case s.streams <- struct{}{}:
		defer func() { <-s.streams }()
	default:
		http.Error(w, fmt.Sprintf("%d pages are open already", maxStreams), http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	out := &stream{w: w, control: http.NewResponseController(w)}
	if err := s.run(r.Context(), out, asked); err != nil {
		s.config.Log.WithField("err", err).Debug("web page: a browser is gone")
	}
}

// run sends until the browser goes or the server ends.
func (s *Server) run(ctx context.Context, out *stream, asked wish) error {
	if asked.history {
		if err := out.send("history", s.board.history.all()); err != nil {
			return err
		}
	}
	again := time.NewTimer(0)
	defer again.Stop()
	if asked.view == nil {
		again.Stop()
	}
	var known uint64
	var shown []byte
	for {
		state, sample, events, changed := s.board.look(known, asked.events)
		if known = sample; state != nil {
			if err := out.write("state", state); err != nil {
				return err
			}
		}
		if len(events) > 0 {
			asked.events = events[len(events)-1].Number
			if err := out.send("log", events); err != nil {
				return err
			}
		}
		select {
		case <-changed:
		case <-again.C:
			text := s.drawn(ctx, asked.view)
			if !bytes.Equal(text, shown) {
				if err := out.write("map", text); err != nil {
					return err
				}
				shown = text
			}
			again.Reset(mapEvery)
		case <-ctx.Done():
			return nil
		}
	}
}

// drawn is a map, or why there is none.
func (s *Server) drawn(ctx context.Context, v *view) []byte {
	answer := struct {
		Job   string          `json:"job"`
		Map   json.RawMessage `json:"map,omitempty"`
		Error string          `json:"error,omitempty"`
	}{Job: v.Job}
	text, err := s.monitor.diskMap(ctx, v)
	if answer.Map = text; err != nil {
		answer.Map, answer.Error = nil, err.Error()
	}
	text, err = json.Marshal(answer)
	if err != nil {
		panic("web: a map is no JSON: " + err.Error())
	}
	return text
}

// stream is a reply of server-sent events. Nothing is queued: who does not read in time is dropped.
type stream struct {
	w       http.ResponseWriter
	control *http.ResponseController
}

func (s *stream) send(name string, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return s.write(name, text)
}

// write sends an event with a text without line breaks.
func (s *stream) write(name string, text []byte) error {
	if err := s.control.SetWriteDeadline(time.Now().Add(writeTime)); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(s.w, "event: %s\ndata: %s\n\n", name, text); err != nil {
		return err
	}
	return s.control.Flush()
}
