// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/block/blocktest"
)

// TestStates: whoever asks is told of each state once, in order, and why.
func TestStates(t *testing.T) {
	h := newHouse(t, blocktest.MemOptions{Size: mib})
	other := newHouse(t, blocktest.MemOptions{Size: 2 * mib})
	p, o := h.throughProxy(Options{ReconnectDelay: 50 * time.Millisecond})
	d := open(t, o)
	came := make(chan State, 100)
	tell := func(s State, why error) {
		if (why == nil) != (s == Connected) {
			t.Errorf("state %d because of %v", s, why)
		}
		came <- s
	}
	d.OnState(tell)
	expect := func(want State) {
		t.Helper()
		if got := wait(t, came, "a state"); got != want {
			t.Fatalf("state %d, not %d", got, want)
		}
	}
	p.down()
	expect(Waiting)
	expect(Failing)
	d.OnState(tell)
	expect(Failing) // who comes late is told, too
	p.up()
	expect(Connected)
	must(t, d.Flush(bounded(t)))
	p.down()
	expect(Waiting)
	expect(Failing)
	p.to = other.path
	p.up()
	expect(Broken)
	must(t, d.Close())
	if len(came) > 0 {
		t.Errorf("state %d was told of a disk that was closed", <-came)
	}
}
