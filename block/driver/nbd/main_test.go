// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"context"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/blocktest"
	exports "github.com/blkmirror/blkmirror/block/export"
	"github.com/blkmirror/blkmirror/block/export/nbdserver"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	kib = 1 << 10
	mib = 1 << 20

	// patience is how long a test waits for what should happen soon.
	patience = 20 * time.Second
)

// bounded is a context for what should happen soon. It does not end with the test, so that cleanup can use it.
func bounded(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantErr(t testing.TB, err error, kind block.Kind, words string) {
	t.Helper()
	if err == nil || block.KindOf(err) != kind || !strings.Contains(err.Error(), words) {
		t.Errorf("error is %v (%v), want one of kind %v with %q", err, block.KindOf(err), kind, words)
	}
}

// house is our own server with one export "d" of a disk in memory.
type house struct {
	t       testing.TB
	graph   *block.Graph
	disk    *blocktest.Mem
	node    *block.Node
	server  *nbdserver.Server
	exports *exports.Registry
	path    string // of the socket
}

func newHouse(t testing.TB, o blocktest.MemOptions) *house {
	t.Helper()
	return newHouseOf(t, blocktest.NewMem(o))
}

// newFullHouse has a disk of data, which a server has to read.
func newFullHouse(t testing.TB) *house {
	t.Helper()
	return newHouseOf(t, blocktest.NewMemOf(pattern(mib, 1), blocktest.MemOptions{}))
}

func newHouseOf(t testing.TB, disk *blocktest.Mem) *house {
	t.Helper()
	graph := block.NewGraph()
	h := &house{t: t, graph: graph, disk: disk, path: filepath.Join(t.TempDir(), "nbd")}
	h.node = blocktest.NewNode(t, graph, "d", disk, block.Options{Discard: true})
	h.exports = exports.NewRegistry(func(string) {})
	h.server = nbdserver.New(graph, h.exports, nbdserver.Events{})
	h.start(nbdserver.Config{Writable: true})
	t.Cleanup(func() {
		if h.server.Running() {
			h.stop()
		}
	})
	return h
}

func (h *house) start(c nbdserver.Config) {
	h.t.Helper()
	must(h.t, h.server.Start(func() (net.Listener, error) { return nbdserver.ListenUnix(h.path, 0) }, nbdserver.Options{}))
	c.ID, c.Name, c.Node = "e", "d", h.node
	must(h.t, h.server.AddExport(context.Background(), c))
}

func (h *house) stop() {
	h.t.Helper()
	must(h.t, h.server.Stop(bounded(h.t)))
}

func (h *house) options() Options {
	return Options{Server: Address{Network: "unix", Address: h.path}, Export: "d"}
}

func open(t testing.TB, o Options) *Disk {
	t.Helper()
	d, err := Open(bounded(t), o)
	must(t, err)
	t.Cleanup(func() { must(t, d.Close()) })
	return d
}

// node puts a disk into a graph of its own.
func node(t testing.TB, d block.Driver) *block.Node {
	t.Helper()
	return blocktest.NewNode(t, block.NewGraph(), "n", d, block.Options{Discard: true})
}

// wait waits for a channel.
func wait[T any](t testing.TB, c <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatalf("%s did not happen", what)
		panic("unreachable")
	}
}

func pattern(n int, seed byte) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i%251) ^ seed | 1
	}
	return b
}
