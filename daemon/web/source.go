// SPDX-License-Identifier: Apache-2.0

package web

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/blkmirror/blkmirror/qmp/client"
)

const (
	sampleEvery = time.Second
	detailEvery = 10 * time.Second // for what may cost a look at the files
	askFor      = 20 * time.Second // the longest that a query may take
	// idleShare is how many times as long as a sample took the sampler does nothing: what the page costs is bounded.
	idleShare   = 20
	eventBuffer = 4096
)

// What the queries of the monitor tell, as far as the page shows it.
type (
	node struct {
		Name     string `json:"node-name"`
		Driver   string `json:"drv"`
		ReadOnly bool   `json:"ro"`
		File     string `json:"file"`
		Image    struct {
			Size  int64  `json:"virtual-size"`
			Taken *int64 `json:"actual-size,omitempty"`
		} `json:"image"`
	}
	edge struct {
		User string `json:"user"`
		Name string `json:"name"`
		Role string `json:"role"`
		Node string `json:"node-name"`
	}
	export struct {
		ID           string   `json:"id"`
		Node         string   `json:"node-name"`
		ShuttingDown bool     `json:"shutting-down"`
		Clients      []string `json:"clients"`
	}
	exportClient struct {
		ID      string `json:"id"`
		Address string `json:"address"`
	}
	// job is what query-jobs and query-block-jobs tell of one.
	job struct {
		ID         string    `json:"id"`
		Type       string    `json:"type"`
		Status     string    `json:"status"`
		Current    int64     `json:"current-progress"`
		Total      int64     `json:"total-progress"`
		Error      string    `json:"error,omitempty"`
		Copied     *int64    `json:"copied-bytes,omitempty"`
		Zeroed     *int64    `json:"zeroed-bytes,omitempty"`
		Skipped    *int64    `json:"skipped-bytes,omitempty"`
		Offloaded  *int64    `json:"offloaded-bytes,omitempty"`
		Dirty      *int64    `json:"dirty-bytes,omitempty"`
		Rate       *int64    `json:"rate,omitempty"`
		Left       *int64    `json:"seconds-left,omitempty"`
		Delay      *int64    `json:"guest-write-delay-ns,omitempty"`
		Verified   *int64    `json:"verified-bytes,omitempty"`
		Unverified *int64    `json:"unverified-bytes,omitempty"`
		Differing  *int64    `json:"differing-bytes,omitempty"`
		Block      *blockJob `json:"block,omitempty"` // nil for a job that query-block-jobs does not show
	}
	blockJob struct {
		Device   string `json:"device"`
		Paused   bool   `json:"paused"`
		Speed    int64  `json:"speed"`
		IOStatus string `json:"io-status"`
		Synced   *bool  `json:"actively-synced,omitempty"`
		Finalize bool   `json:"auto-finalize"`
	}
	stats struct {
		Node  string `json:"node-name"`
		Stats counters
	}
	counters struct {
		ReadBytes  int64 `json:"rd_bytes"`
		WriteBytes int64 `json:"wr_bytes"`
		Reads      int64 `json:"rd_operations"`
		Writes     int64 `json:"wr_operations"`
		ReadTime   int64 `json:"rd_total_time_ns"`
		WriteTime  int64 `json:"wr_total_time_ns"`
		Failed     int64 `json:"failed_rd_operations"`
		FailedWr   int64 `json:"failed_wr_operations"`
	}
)

// state is one sample, as the page gets it.
type state struct {
	Time    int64                `json:"time"` // Unix, milliseconds
	Trouble string               `json:"trouble,omitempty"`
	Control bool                 `json:"control"`
	Nodes   []node               `json:"nodes"`
	Edges   []edge               `json:"edges"`
	Exports []export             `json:"exports"`
	Jobs    []job                `json:"jobs"`
	Points  map[string]point     `json:"points"` // of the series, see history
	Totals  map[string]*counters `json:"totals"` // of nodes
}

// sample asks the monitor again and again until ctx ends.
func (s *Server) sample(ctx context.Context) {
	for ctx.Err() == nil {
		if err := s.sampleOver(ctx); ctx.Err() == nil {
			s.board.publish(&state{Time: time.Now().UnixMilli(), Control: s.config.Control, Trouble: "The daemon does not answer: " + err.Error()})
			pause(ctx, sampleEvery)
		}
	}
}

// sampleOver samples over one connection until that ends.
func (s *Server) sampleOver(ctx context.Context) error {
	negotiation, cancel := context.WithTimeout(ctx, askFor)
	defer cancel()
	c, err := client.New(negotiation, s.config.Dial(), client.Options{EventBuffer: eventBuffer})
	if err != nil {
		return err
	}
	s.monitor.set(c)
	heard := make(chan struct{})
	go func() {
		defer close(heard)
		for e := range c.Events() {
			s.board.note(e)
		}
	}()
	defer func() {
		s.monitor.set(nil)
		_ = c.Close()
		<-heard
	}()
	look := &observer{client: c, control: s.config.Control, history: &s.board.history}
	for {
		began := time.Now()
		asking, cancel := context.WithTimeout(ctx, askFor)
		now, err := look.take(asking)
		cancel()
		switch {
		case errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil:
			now = &state{Control: s.config.Control, Trouble: "The daemon is busy with another command."}
		case err != nil:
			return err
		}
		now.Time = began.UnixMilli()
		s.board.publish(now)
		if !pause(ctx, max(sampleEvery, idleShare*time.Since(began))) {
			return ctx.Err()
		}
	}
}

// pause waits; false if ctx ended meanwhile.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// observer takes samples.
type observer struct {
	client  *client.Client
	control bool
	history *history
	nodes   []node
	edges   []edge // when nodes was asked for
	asked   time.Time
}

func (o *observer) take(ctx context.Context) (*state, error) {
	now := &state{Control: o.control, Totals: map[string]*counters{}}
	var blockJobs []blockJob
	var clients []exportClient
	var counts []stats
	for _, q := range []struct {
		command string
		args    any
		result  any
	}{
		{"x-query-block-graph", nil, &now.Edges},
		{"query-block-exports", nil, &now.Exports},
		{"x-query-export-clients", nil, &clients},
		{"query-jobs", nil, &now.Jobs},
		{"query-block-jobs", nil, &blockJobs},
		{"query-blockstats", map[string]bool{"query-nodes": true}, &counts},
	} {
		if err := o.client.Execute(ctx, q.command, q.args, q.result); err != nil {
			return nil, err
		}
	}
	if o.nodes == nil || time.Since(o.asked) > detailEvery || !slices.Equal(o.edges, now.Edges) || len(o.nodes) != len(counts) {
		o.nodes = nil
		if err := o.client.Execute(ctx, "query-named-block-nodes", map[string]bool{"flat": true}, &o.nodes); err != nil {
			return nil, err
		}
		o.asked, o.edges = time.Now(), now.Edges
	}
	now.Nodes = o.nodes
	for i := range now.Jobs {
		j := &now.Jobs[i]
		if at := slices.IndexFunc(blockJobs, func(b blockJob) bool { return b.Device == j.ID }); at >= 0 {
			j.Block = &blockJobs[at]
		}
	}
	for i := range now.Exports {
		e := &now.Exports[i]
		for _, c := range clients {
			if c.ID == e.ID {
				e.Clients = append(e.Clients, c.Address)
			}
		}
	}
	for i := range counts {
		now.Totals[counts[i].Node] = &counts[i].Stats
	}
	now.Points = o.history.add(time.Now(), now)
	return now, nil
}
