// SPDX-License-Identifier: Apache-2.0

package nbdserver

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/blocktest"
	"github.com/blkmirror/blkmirror/block/nbd"
	"github.com/blkmirror/blkmirror/block/nbd/nbdguest"
)

// trap holds up requests that begin at one offset.
type trap struct {
	caught chan struct{} // one per request held up
	open   chan struct{}
}

func (h *house) trap(off int64) *trap {
	tr := &trap{caught: make(chan struct{}, 1000), open: make(chan struct{})}
	h.disk.SetHook(func(_ context.Context, c blocktest.Call) error {
		if c.Off == off && c.Op != block.OpFlush {
			tr.caught <- struct{}{}
			<-tr.open
		}
		return nil
	})
	return tr
}

const trapped = 1 << 20

func readAt(off uint64) nbdguest.Command {
	return nbdguest.Command{Type: nbdguest.CmdRead, Offset: off, Length: 512}
}

func TestSlowRequestHoldsUpNobody(t *testing.T) {
	h := newHouse(t, Options{})
	h.export("d")
	c := h.dial("d")
	tr := h.trap(trapped)
	// Alone, behind others in one batch, and while others are held up already.
	var slow []*nbdguest.Request
	for range 3 {
		h.must(c.Flush(h.bounded()))
		slow = append(slow, c.Submit(readAt(trapped)))
		wait(h, tr.caught, "the slow request")
		var quick []*nbdguest.Request
		for i := range uint64(16) {
			quick = append(quick, c.Submit(readAt(i*512)))
		}
		for _, r := range quick {
			h.must(r.Wait(h.bounded()))
		}
	}
	close(tr.open)
	for _, r := range slow {
		h.must(r.Wait(h.bounded()))
	}
	h.must(c.Disconnect(h.bounded()))
	h.must(wait(h, h.closed, "the end"))
}

// TestRepliesBeforeSlowRequest wants the reply to a request that came in one piece with a slow one.
func TestRepliesBeforeSlowRequest(t *testing.T) {
	h := newHouse(t, Options{})
	h.export("d")
	tr := h.trap(trapped)
	defer close(tr.open)
	conn := h.rawTransmission("d")
	b := nbd.Request{Command: nbd.CmdFlush, Cookie: 1}.Append(nil)
	b = nbd.Request{Command: nbd.CmdWriteZeroes, Cookie: 2, Offset: trapped, Length: 512}.Append(b)
	h.send(conn, nbd.Request{Command: nbd.CmdFlush, Cookie: 3}.Append(b))
	for _, cookie := range []uint64{1, 3} {
		if r := h.reply(conn); r != (nbd.SimpleReply{Cookie: cookie}) {
			t.Errorf("reply is %+v, want cookie %d", r, cookie)
		}
	}
}

// TestManySlowRequests wants requests that are known to be slow to be carried out at once, up to the bound.
func TestManySlowRequests(t *testing.T) {
	h := newHouse(t, Options{})
	h.export("d")
	c := h.dial("d")
	tr := h.trap(trapped)
	var requests []*nbdguest.Request
	for range DefaultMaxRequests + 10 {
		requests = append(requests, c.Submit(readAt(trapped)))
	}
	for range DefaultMaxRequests {
		wait(h, tr.caught, "a slow request")
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

// TestDisconnectWaitsForRequests wants everything that was asked for before a good-bye to be done and answered.
func TestDisconnectWaitsForRequests(t *testing.T) {
	h := newHouse(t, Options{})
	h.export("d")
	tr := h.trap(trapped)
	conn := h.rawTransmission("d")
	b := append(nbd.Request{Command: nbd.CmdWrite, Cookie: 1, Offset: trapped, Length: 3}.Append(nil), "abc"...)
	h.send(conn, nbd.Request{Command: nbd.CmdDisconnect}.Append(b))
	wait(h, tr.caught, "the write")
	close(tr.open)
	if r := h.reply(conn); r != (nbd.SimpleReply{Cookie: 1}) {
		t.Errorf("reply is %+v", r)
	}
	h.receiveEnd(conn)
	h.must(wait(h, h.closed, "the end"))
	if got := h.disk.Bytes()[trapped : trapped+3]; string(got) != "abc" {
		t.Errorf("the disk has %q", got)
	}
}

// drained calls f while the node is drained.
func (h *house) drained(f func()) {
	h.t.Helper()
	blocktest.Change(h.t, h.graph, func(tx *block.Tx) error {
		if err := tx.Drain(h.bounded(), nil, h.node); err != nil {
			return err
		}
		f()
		return nil
	})
}

func TestDrainParksRequests(t *testing.T) {
	h := newHouse(t, Options{})
	h.export("d")
	c := h.dial("d")
	h.must(c.Flush(h.bounded()))
	h.disk.ResetCalls()
	var r *nbdguest.Request
	conn := h.rawTransmission("d")
	h.drained(func() {
		r = c.Submit(readAt(0))
		// The other connection's request is parked too; it ends with its connection.
		h.send(conn, nbd.Request{Command: nbd.CmdFlush}.Append(nil))
		_ = conn.Close()
		h.wantErr(wait(h, h.closed, "the end of the connection"), "requests were under way")
		if calls := h.disk.Calls(); len(calls) > 0 {
			t.Errorf("%v passed a closed gate", calls)
		}
	})
	h.must(r.Wait(h.bounded()))
	if calls := h.disk.Calls(); len(calls) != 1 {
		t.Errorf("the disk got %v, want the read alone", calls)
	}
}

func TestHardRemovalEndsParkedRequests(t *testing.T) {
	h := newHouse(t, Options{})
	h.export("d")
	c := h.dial("d")
	h.must(c.Flush(h.bounded()))
	e, err := h.exports.Find("d")
	h.must(err)
	removed := make(chan error, 1)
	h.drained(func() {
		r := c.Submit(readAt(0))
		go func() { removed <- h.exports.Remove(h.bounded(), "d", true) }()
		if err := r.Wait(h.bounded()); err == nil {
			t.Error("a request passed a closed gate")
		}
		wait(h, h.closed, "the end of the connection") // though the change of the graph is still under way
		if !e.ShuttingDown() {
			t.Error("the export is not shutting down")
		}
	})
	h.must(wait(h, removed, "the removal"))
	if users := h.graph.Users(h.node); len(users) > 0 {
		t.Errorf("users of the node: %v", users)
	}
}

// TestHardRemovalWaitsForRequests wants the node to be left alone once the export is gone.
func TestHardRemovalWaitsForRequests(t *testing.T) {
	h := newHouse(t, Options{})
	h.export("d")
	c := h.dial("d")
	tr := h.trap(trapped)
	r := c.Submit(readAt(trapped))
	wait(h, tr.caught, "the request")
	short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	h.wantErr(h.exports.Remove(short, "d", true), "deadline")
	if list := h.exports.List(); len(list) != 1 || !list[0].ShuttingDown() {
		t.Error("the export is not listed as shutting down")
	}
	close(tr.open)
	h.must(h.exports.Remove(h.bounded(), "d", true))
	if err := r.Wait(h.bounded()); err == nil {
		t.Error("a reply came through a closed connection")
	}
}

// TestClientThatDoesNotRead wants such a client to stop itself, within bounds, and nobody else.
func TestClientThatDoesNotRead(t *testing.T) {
	h := newHouse(t, Options{})
	h.export("d")
	rude := h.rawTransmission("d")
	h.must(rude.SetDeadline(time.Time{}))
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		var b []byte
		for i := range uint64(1000) {
			b = nbd.Request{Command: nbd.CmdRead, Cookie: i, Length: 1 << 20}.Append(b[:0])
			if _, err := rude.Write(b); err != nil {
				return
			}
		}
	}()
	c := h.dial("d")
	for range 100 {
		h.must(c.ReadAt(h.bounded(), make([]byte, 4096), 0))
	}
	reads, n := h.disk.Count(block.OpRead)
	if n > maxUnsent+2<<20+100*4096 { // the first one, and one that was carried out before it was known that the client does not read
		t.Errorf("%d reads of %d bytes for a client that reads no replies", reads, n)
	}
	_ = rude.Close()
	<-sent
	if err := wait(h, h.closed, "the end"); err == nil {
		t.Error("the connection ended in good order")
	}
}

// TestWritesWhileRepliesWait wants a client to get rid of a big write though it has not read the replies to its reads.
func TestWritesWhileRepliesWait(t *testing.T) {
	h := newHouse(t, Options{})
	h.export("d")
	conn := h.rawTransmission("d")
	const n = 2 << 20
	b := nbd.Request{Command: nbd.CmdRead, Cookie: 1, Length: n}.Append(nil)
	b = nbd.Request{Command: nbd.CmdWrite, Cookie: 2, Length: n}.Append(b)
	h.send(conn, append(b, make([]byte, n)...)) // blocks for good if the server waits until its reply is read
	if r := h.reply(conn); r.Cookie != 1 {
		t.Fatalf("reply is %+v", r)
	}
	h.receive(conn, n)
	if r := h.reply(conn); r != (nbd.SimpleReply{Cookie: 2}) {
		t.Errorf("reply is %+v", r)
	}
}

// TestOverlappingWrites has several connections write to the same few blocks at depth 64; every block must be whole.
func TestOverlappingWrites(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	const blocks, clients, rounds = 8, 3, 2000
	h := newHouse(t, Options{})
	h.export("d")
	// Now and then a request is slow, so that all ways through the server are taken.
	var mu sync.Mutex
	random := rand.New(rand.NewPCG(seed, 0))
	h.disk.SetHook(func(context.Context, blocktest.Call) error {
		mu.Lock()
		slow := random.IntN(50) == 0
		mu.Unlock()
		if slow {
			<-time.After(200 * time.Microsecond)
		}
		return nil
	})
	var all sync.WaitGroup
	for i := range clients {
		c := h.dial("d")
		all.Go(func() {
			random := rand.New(rand.NewPCG(seed, uint64(i+1)))
			var flying []*nbdguest.Request
			for n := range rounds {
				at := uint64(random.IntN(blocks)) * 4096
				command := nbdguest.Command{Offset: at, Length: 4096}
				switch random.IntN(8) {
				case 0:
					command.Type = nbdguest.CmdWriteZeroes
				case 1, 2:
					command.Type = nbdguest.CmdRead
				case 3:
					command = nbdguest.Command{Type: nbdguest.CmdFlush}
				default:
					command.Type, command.Data = nbdguest.CmdWrite, bytes.Repeat([]byte{byte(n)}, 4096)
				}
				flying = append(flying, c.Submit(command))
				if len(flying) == 64 {
					first := flying[0]
					flying = flying[1:]
					if err := first.Wait(h.bounded()); err != nil {
						t.Error(err)
						return
					}
					if data := first.Data(); len(data) == 4096 && !uniform(data) {
						t.Error("a read saw half of a write")
					}
				}
			}
			for _, r := range flying {
				if err := r.Wait(h.bounded()); err != nil {
					t.Error(err)
				}
			}
			if err := c.Disconnect(h.bounded()); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	for range clients {
		h.must(wait(h, h.closed, "the end"))
	}
	data := h.disk.Bytes()
	for i := range blocks {
		if b := data[i*4096 : (i+1)*4096]; !uniform(b) {
			t.Errorf("block %d is a mix", i)
		}
	}
}

func uniform(b []byte) bool { return bytes.Count(b, b[:1]) == len(b) }

// TestFlushCoversAllConnections has one client write and another flush.
func TestFlushCoversAllConnections(t *testing.T) {
	h := newHouse(t, Options{})
	h.export("d")
	writer, flusher := h.dial("d"), h.dial("d")
	h.must(writer.WriteAt(h.bounded(), []byte("durable"), 0, 0))
	h.must(flusher.Flush(h.bounded()))
	if got := h.disk.DurableBytes()[:7]; string(got) != "durable" {
		t.Errorf("durable is %q", got)
	}
}

// TestExportFollowsNode replaces the node under an export, as a mirror does when it completes.
func TestExportFollowsNode(t *testing.T) {
	h := newHouse(t, Options{})
	h.export("d")
	c := h.dial("d")
	h.must(c.WriteAt(h.bounded(), []byte("old"), 0, 0))
	next := blocktest.NewMemOf(bytes.Repeat([]byte("new "), diskSize/4), blocktest.MemOptions{Size: diskSize})
	node := blocktest.NewNode(t, h.graph, "next", next, block.Options{})
	blocktest.Change(t, h.graph, func(tx *block.Tx) error {
		if err := tx.Drain(h.bounded(), nil, h.node); err != nil {
			return err
		}
		tx.Replace(h.node, node)
		return nil
	})
	got := make([]byte, 3)
	h.must(c.ReadAt(h.bounded(), got, 0))
	e, err := h.exports.Find("d")
	h.must(err)
	if string(got) != "new" || e.Node() != node {
		t.Errorf("the export shows node %s with %q", e.Node().Name(), got)
	}
}

// FuzzHandshake and FuzzTransmission send anything to a server, which must end the connection and itself survive.
func FuzzHandshake(f *testing.F) {
	f.Add(hello("d"))
	fixed := nbd.AppendClientFlags(nil, nbd.FixedNewstyle)
	for _, o := range []nbd.Option{nbd.OptGo, nbd.OptInfo, nbd.OptList, nbd.OptSetMetaContext, nbd.OptListMetaContext, nbd.OptAbort} {
		data := nbd.MetaQuery{Name: "d", Queries: []string{nbd.BaseAllocation}}.Append(nil)
		if o == nbd.OptGo || o == nbd.OptInfo {
			data = nbd.ExportQuery{Name: "d", Infos: []nbd.InfoType{nbd.InfoName}}.Append(nil)
		}
		b := nbd.OptionHeader{Option: nbd.OptStructuredReply}.Append(bytes.Clone(fixed))
		b = nbd.OptionHeader{Option: o, Length: uint32(len(data))}.Append(b)
		f.Add(append(b, data...))
	}
	fuzz(f, nil)
}

func FuzzTransmission(f *testing.F) {
	f.Add(nbd.Request{Command: nbd.CmdRead, Length: 4096}.Append(nil))
	f.Add(append(nbd.Request{Command: nbd.CmdWrite, Length: 3}.Append(nil), "abc"...))
	f.Add(nbd.Request{Command: nbd.CmdBlockStatus, Length: 3}.Append(nbd.Request{Command: nbd.CmdTrim, Length: 3}.Append(nil)))
	f.Add(nbd.Request{Command: nbd.CmdWriteZeroes, Length: 1 << 31, Flags: 0xffff, Offset: 1 << 63}.Append(nil))
	f.Add(nbd.Request{Command: nbd.CmdDisconnect}.Append(nil))
	fuzz(f, hello("d"))
}

func fuzz(f *testing.F, first []byte) {
	h := newHouse(f, Options{})
	h.export("d")
	fuzzHouse(f, h, first)
}

func fuzzHouse(f *testing.F, h *house, first []byte) {
	f.Fuzz(func(t *testing.T, b []byte) {
		conn, err := net.Dial("unix", h.path)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(patience))
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _ = conn.Write(append(bytes.Clone(first), b...))
			_ = conn.(*net.UnixConn).CloseWrite()
		}()
		if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error("the server hangs")
		}
		<-done
		select {
		case <-h.closed:
		case <-time.After(patience):
			t.Error("the connection does not end")
		}
	})
}
