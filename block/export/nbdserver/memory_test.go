// SPDX-License-Identifier: Apache-2.0

package nbdserver

import (
	"testing"

	"github.com/blkmirror/blkmirror/block/budget"
	"github.com/blkmirror/blkmirror/block/nbd"
	"github.com/blkmirror/blkmirror/block/nbd/nbdguest"
)

// One client that takes no replies holds memory. Another one waits for what is left, and gets its own part at once.
func TestMemoryIsShared(t *testing.T) {
	const mib = 1 << 20
	memory := budget.New(8 * mib)
	h := newHouse(t, Options{MaxConnections: 4, Budget: memory}) // each has 1 MiB of its own
	h.export("d")
	tr := h.trap(trapped)
	held := h.rawTransmission("d")
	h.send(held, nbd.Request{Command: nbd.CmdRead, Offset: trapped, Length: 2 * mib}.Append(nil))
	wait(h, tr.caught, "the first read")
	c := h.dial("d")
	small := nbdguest.Command{Type: nbdguest.CmdRead, Length: mib}
	large := nbdguest.Command{Type: nbdguest.CmdRead, Length: 4 * mib}
	h.must(c.Submit(small).Wait(h.bounded()))
	if shared, most := memory.Used(); shared != mib || most != 6*mib {
		t.Errorf("%d of %d shared bytes are held", shared, most)
	}
	h.must(c.Submit(large).Wait(h.bounded())) // 3 of the 5 MiB left
	slow := h.dial("d")
	waiting := nbdguest.Command{Type: nbdguest.CmdWrite, Offset: trapped, Data: make([]byte, 4*mib-trapped)} // 3 MiB, held up too
	first := slow.Submit(waiting)
	wait(h, tr.caught, "the write")
	r := c.Submit(large) // 3 MiB, where the write, whose buffer has 4, has left 1
	other := h.dial("d")
	h.must(other.Submit(small).Wait(h.bounded())) // its own part
	select {
	case <-r.Done():
		t.Error("there is more memory than the budget has")
	default:
	}
	close(tr.open)
	h.must(r.Wait(h.bounded()))
	h.must(first.Wait(h.bounded()))
	_ = held.Close()
}

// A client that waits for memory can be thrown out.
func TestWaitForMemoryEnds(t *testing.T) {
	memory := budget.New(1 << 20)
	h := newHouse(t, Options{MaxConnections: 16, Budget: memory})
	h.export("d")
	tr := h.trap(trapped)
	a, b := h.rawTransmission("d"), h.rawTransmission("d")
	h.send(a, nbd.Request{Command: nbd.CmdRead, Offset: trapped, Length: 1 << 20}.Append(nil))
	wait(h, tr.caught, "the first read")
	h.send(b, nbd.Request{Command: nbd.CmdRead, Length: 1 << 20}.Append(nil))
	removed := make(chan error, 1)
	go func() { removed <- h.exports.Remove(h.bounded(), "d", true) }()
	h.receiveEnd(b)
	close(tr.open)
	h.must(wait(h, removed, "the removal"))
	for range 2 {
		wait(h, h.closed, "the end of a connection")
	}
	if shared, most := memory.Used(); shared != 0 || most != 1<<20 {
		t.Errorf("%d of %d shared bytes are held in the end", shared, most)
	}
}

// Bounds of one connection are what the options say.
func TestBoundsOfRequests(t *testing.T) {
	const most, largest = 3, 64 << 10
	h := newHouse(t, Options{MaxRequests: most, MaxRequest: largest})
	h.export("d")
	c := h.dial("d")
	h.must(c.Submit(nbdguest.Command{Type: nbdguest.CmdRead, Length: largest}).Wait(h.bounded()))
	conn := h.rawTransmission("d")
	for _, r := range []nbd.Request{{Command: nbd.CmdRead, Length: largest + 1}, {Command: nbd.CmdWrite, Length: largest + 1}} {
		b := r.Append(nil)
		if r.Command == nbd.CmdWrite {
			b = append(b, make([]byte, r.Length)...)
		}
		h.send(conn, b)
		if got := h.reply(conn).Error; got != nbd.EINVAL {
			t.Errorf("%v of %d bytes is answered with %v", r.Command, r.Length, got)
		}
	}
	tr := h.trap(trapped)
	var requests []*nbdguest.Request
	for range most + 2 {
		requests = append(requests, c.Submit(readAt(trapped)))
	}
	for range most {
		wait(h, tr.caught, "a request")
	}
	select {
	case <-tr.caught:
		t.Error("more requests under way than there may be")
	default:
	}
	close(tr.open)
	for _, r := range requests {
		h.must(r.Wait(h.bounded()))
	}
}
