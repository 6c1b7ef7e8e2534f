// SPDX-License-Identifier: Apache-2.0

package web

import (
	"encoding/json"
	"sync"

	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/client"
)

const (
	keptEvents   = 500
	longestEvent = 2 << 10 // bytes of its data; a longer one is shown without
)

// board is where the sampler leaves what all browsers look at. Nobody waits for anybody: a browser that comes late finds the
// last state, and the events that are still there.
type board struct {
	history history

	mu struct {
		sync.Mutex
		state   []byte // JSON; nil before the first sample
		samples uint64 // how many there were
		events  []event
		last    uint64        // number of the newest event
		changed chan struct{} // closed at the next change
	}
}

// event is one of the monitor's.
type event struct {
	Number uint64          `json:"n"`
	Time   int64           `json:"t"` // Unix, milliseconds
	Name   string          `json:"name"`
	Data   json.RawMessage `json:"data"`
	Lost   uint64          `json:"lost,omitempty"` // events that nobody kept, right before this one
}

func newBoard() *board {
	b := &board{}
	b.mu.changed = make(chan struct{})
	return b
}

// publish shows a sample.
func (b *board) publish(now *state) {
	text, err := json.Marshal(now)
	if err != nil {
		panic("web: a state is no JSON: " + err.Error())
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.mu.state = text
	b.mu.samples++
	b.turnLocked()
}

// note keeps an event.
func (b *board) note(e client.Event) {
	data := qmp.Encode(e.Data)
	if e.Data == nil || len(data) > longestEvent {
		data = []byte("{}")
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.mu.last++
	if len(b.mu.events) >= keptEvents {
		b.mu.events = append(b.mu.events[:0], b.mu.events[1:]...)
	}
	b.mu.events = append(b.mu.events, event{b.mu.last, e.Time.UnixMilli(), e.Name, data, e.Lost})
	b.turnLocked()
}

func (b *board) turnLocked() {
	close(b.mu.changed)
	b.mu.changed = make(chan struct{})
}

// look returns what is new to somebody who knows so many samples and events; state is nil if it is not new. changed is closed when
// there is more.
func (b *board) look(samples, events uint64) (state []byte, sample uint64, newer []event, changed <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.mu.samples != samples {
		state = b.mu.state
	}
	for i, e := range b.mu.events {
		if e.Number > events {
			newer = append(newer, b.mu.events[i:]...)
			break
		}
	}
	return state, b.mu.samples, newer, b.mu.changed
}
