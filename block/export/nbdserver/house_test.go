// SPDX-License-Identifier: Apache-2.0

package nbdserver

import (
	"context"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/blocktest"
	"github.com/blkmirror/blkmirror/block/export"
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
