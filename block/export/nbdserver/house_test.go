// SPDX-License-Identifier: Apache-2.0

package nbdserver

import (
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/blocktest"
	"github.com/blkmirror/blkmirror/block/export"
	"github.com/blkmirror/blkmirror/block/nbd"
	"github.com/blkmirror/blkmirror/block/nbd/nbdguest"
)

// house is a graph with one disk, and a server.
type house struct {
	t       testing.TB
	graph   *block.Graph
	exports *export.Registry
	server  *Server
	path    string // of the socket
	disk    *blocktest.Mem
	node    *block.Node
	deleted []string
	closed  chan error // how connections ended
}

func newHouse(t testing.TB, options Options) *house {
	h := &house{t: t, graph: block.NewGraph(), disk: blocktest.NewMem(blocktest.MemOptions{Size: diskSize}), path: filepath.Join(t.TempDir(), "nbd"),
		closed: make(chan error, 1000)}
	h.exports = export.NewRegistry(func(id string) { h.deleted = append(h.deleted, id) })
	h.server = New(h.graph, h.exports, Events{Closed: func(_ Conn, err error) { h.closed <- err }})
	h.node = blocktest.NewNode(t, h.graph, "d", h.disk, block.Options{Discard: true})
	if err := h.server.Start(h.listen, options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if h.server.Running() {
			h.must(h.server.Stop(h.bounded()))
		}
	})
	return h
}

func (h *house) listen() (net.Listener, error) { return ListenUnix(h.path, 0) }

func (h *house) must(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

// export makes a writable export of the disk under the given name and id.
func (h *house) export(name string) {
	h.t.Helper()
	h.must(h.server.AddExport(context.Background(), Config{ID: name, Name: name, Node: h.node, Writable: true}))
}

func (h *house) dial(name string) *nbdguest.Client {
	h.t.Helper()
	c, err := nbdguest.Dial(h.bounded(), "unix", h.path, name, nbdguest.Options{})
	h.must(err)
	h.t.Cleanup(c.Close)
	return c
}

// bounded is a context for what should happen soon. It does not end with the test, so that cleanup can use it.
func (h *house) bounded() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	h.t.Cleanup(cancel)
	return ctx
}

const diskSize = 4 << 20

// patience is how long a test waits for what should happen soon.
const patience = 10 * time.Second

// raw connects without a word said.
func (h *house) raw() net.Conn {
	h.t.Helper()
	conn, err := net.Dial("unix", h.path)
	h.must(err)
	h.must(conn.SetDeadline(time.Now().Add(patience)))
	h.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// rawTransmission enters transmission with simple replies, and returns the bare connection.
func (h *house) rawTransmission(name string) net.Conn {
	h.t.Helper()
	conn := h.raw()
	h.send(conn, hello(name))
	h.receive(conn, nbd.GreetingSize+10)
	return conn
}

// hello is what a client says to enter transmission with simple replies.
func hello(name string) []byte {
	b := nbd.AppendClientFlags(nil, nbd.FixedNewstyle|nbd.NoZeroes)
	b = nbd.OptionHeader{Option: nbd.OptExportName, Length: uint32(len(name))}.Append(b)
	return append(b, name...)
}

func (h *house) send(conn net.Conn, b []byte) {
	h.t.Helper()
	_, err := conn.Write(b)
	h.must(err)
}

func (h *house) receive(conn net.Conn, n int) []byte {
	h.t.Helper()
	b := make([]byte, n)
	_, err := io.ReadFull(conn, b)
	h.must(err)
	return b
}

// reply takes one simple reply without data.
func (h *house) reply(conn net.Conn) nbd.SimpleReply {
	h.t.Helper()
	r, err := nbd.ParseSimpleReply(h.receive(conn, nbd.SimpleReplySize))
	h.must(err)
	return r
}

// receiveEnd waits until the server has closed the connection.
func (h *house) receiveEnd(conn net.Conn) {
	h.t.Helper()
	if _, err := io.Copy(io.Discard, conn); err != nil && !errors.Is(err, syscall.ECONNRESET) {
		h.t.Fatalf("the connection is open: %v", err)
	}
}

// wantErr wants a failure with these words.
func (h *house) wantErr(err error, words string) {
	h.t.Helper()
	if err == nil || !strings.Contains(err.Error(), words) {
		h.t.Errorf("error is %v, want one with %q", err, words)
	}
}

// wait waits for a channel.
func wait[T any](h *house, c <-chan T, what string) T {
	h.t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		h.t.Fatalf("%s did not happen", what)
		panic("unreachable")
	}
}
