// SPDX-License-Identifier: Apache-2.0

package web

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/client"
)

func TestHistory(t *testing.T) {
	var h history
	at := time.UnixMilli(1e6)
	sample := func(node string, c counters) map[string]point {
		at = at.Add(2 * time.Second)
		return h.add(at, &state{Edges: []edge{{"export", "e", "root", node}, {"node", "x", "file", "f"}}, Totals: map[string]*counters{node: &c}})
	}
	if p := sample("n", counters{ReadBytes: 1000, Reads: 10})["export e"]; p.ReadBytes != 0 {
		t.Errorf("the first sample says %+v", p)
	}
	p := sample("n", counters{ReadBytes: 3000, Reads: 14, ReadTime: 400, Writes: 0, WriteTime: 7})["export e"]
	if want := (point{Time: at.UnixMilli(), ReadBytes: 1000, Reads: 2, ReadTime: 100}); p != want {
		t.Errorf("%+v, want %+v", p, want)
	}
	// A mirror's filter comes between: its counters begin at 0.
	if p := sample("filter", counters{ReadBytes: 5})["export e"]; p.ReadBytes != 0 {
		t.Errorf("another node: %+v", p)
	}
	for range 2 * keptPoints {
		sample("filter", counters{})
	}
	if n := len(h.all()["export e"]); n != keptPoints {
		t.Errorf("%d points are kept", n)
	}
	var many state
	for i := range 2 * maxSeries {
		many.Jobs = append(many.Jobs, job{ID: fmt.Sprint(i)})
	}
	h.add(at, &many)
	if n := len(h.all()); n != maxSeries {
		t.Errorf("%d series are kept", n)
	}
	if h.add(at, &state{}); len(h.all()) != 0 {
		t.Error("what is gone is kept")
	}
}

func TestBoard(t *testing.T) {
	b := newBoard()
	for i := range keptEvents + 10 {
		b.note(client.Event{Name: fmt.Sprint(i), Data: qmp.NewObject()})
	}
	b.note(client.Event{Name: "long", Data: qmp.NewObject(qmp.Member{Name: "text", Value: strings.Repeat("x", longestEvent)})})
	_, _, events, changed := b.look(0, 0)
	if len(events) != keptEvents || events[0].Name != "11" || string(events[keptEvents-1].Data) != "{}" {
		t.Errorf("%d events from %s on", len(events), events[0].Name)
	}
	if _, _, newer, _ := b.look(0, events[keptEvents-1].Number-1); len(newer) != 1 || newer[0].Name != "long" {
		t.Errorf("newer: %v", newer)
	}
	select {
	case <-changed:
		t.Error("something has changed already")
	default:
	}
	b.publish(&state{})
	<-changed
	if state, n, _, _ := b.look(0, 0); state == nil || n != 1 {
		t.Error("the state is not there")
	}
	if state, _, _, _ := b.look(1, 0); state != nil {
		t.Error("the state is new twice")
	}
}
