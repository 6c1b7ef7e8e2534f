// SPDX-License-Identifier: Apache-2.0

package nbdserver

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/blocktest"
	"github.com/blkmirror/blkmirror/block/nbd"
	"github.com/blkmirror/blkmirror/block/nbd/nbdguest"
)

func TestStartStop(t *testing.T) {
	h := newHouse(t, Options{})
	h.wantErr(h.server.Start(h.listen, Options{}), "NBD server already running")
	h.export("one")
	h.export("two")
	c := h.dial("one")
	h.must(h.server.Stop(h.bounded()))
	wait(h, c.Ended(), "the end of the client's connection")
	h.wantErr(wait(h, h.closed, "the end"), "server was stopped")
	if want := []string{"two", "one"}; !slices.Equal(h.deleted, want) {
		t.Errorf("deleted %v, want %v", h.deleted, want)
	}
	if _, err := os.Lstat(h.path); !os.IsNotExist(err) {
		t.Errorf("the socket is still there: %v", err)
	}
	if users := h.graph.Users(h.node); len(users) > 0 {
		t.Errorf("users of the node: %v", users)
	}
	h.wantErr(h.server.Stop(h.bounded()), "NBD server not running")
	h.wantErr(h.server.AddExport(h.bounded(), Config{ID: "e", Node: h.node}), "NBD server not running")
	h.must(h.server.Start(h.listen, Options{}))
	h.export("one")
	h.must(h.dial("one").Flush(h.bounded()))
}

func TestStopEndsHandshakes(t *testing.T) {
	h := newHouse(t, Options{})
	conn := h.greeted(nbd.FixedNewstyle)
	h.must(h.server.Stop(h.bounded()))
	h.receiveEnd(conn)
}

func TestSocketFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "nbd")
	for _, mode := range []fs.FileMode{0, 0o660} {
		l, err := ListenUnix(path, mode)
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		if want := max(mode, 0o600); info.Mode().Perm() != want {
			t.Errorf("mode is %v, want %v", info.Mode().Perm(), want)
		}
		if _, err := ListenUnix(path, 0); err == nil ||
			err.Error() != "Failed to bind socket to "+path+": Address already in use" {
			t.Errorf("a second listener: %v", err)
		}
		_ = l.Close()
	}
	// A file that took the socket's place stays.
	l, err := ListenUnix(path, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	if _, err := os.Lstat(path); err != nil {
		t.Error("somebody else's file is gone")
	}
	// It also keeps a listener away; what a dead server left behind does not.
	if _, err := ListenUnix(path, 0); err == nil {
		t.Error("a file was replaced")
	}
	stale := filepath.Join(dir, "stale")
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	_ = dead.Close()
	l, err = ListenUnix(stale, 0)
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	for path, want := range map[string]string{
		filepath.Join(dir, "no/such"):      "Failed to bind socket to " + dir + "/no/such: No such file or directory",
		"/tmp/" + strings.Repeat("x", 108): "is too long: Path must be less than 108 bytes",
	} {
		if _, err := ListenUnix(path, 0); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error is %v, want %q", err, want)
		}
	}
}

func TestTCP(t *testing.T) {
	h := newHouse(t, Options{})
	h.must(h.server.Stop(h.bounded()))
	h.must(h.server.Start(func() (net.Listener, error) { return ListenTCP(t.Context(), "tcp", "127.0.0.1", "0") }, Options{}))
	h.export("d")
	c, err := nbdguest.Dial(h.bounded(), "tcp", h.server.Addr().String(), "d", nbdguest.Options{})
	h.must(err)
	h.must(c.WriteAt(h.bounded(), make([]byte, 1<<20), 0, 0))
	h.must(c.Disconnect(h.bounded()))
	_, port, err := net.SplitHostPort(h.server.Addr().String())
	h.must(err)
	_, err = ListenTCP(t.Context(), "tcp", "127.0.0.1", port)
	h.wantErr(err, "Failed to bind socket to 127.0.0.1:"+port+": Address already in use")
}

func TestMaxConnections(t *testing.T) {
	h := newHouse(t, Options{MaxConnections: 2})
	h.export("d")
	one, two := h.dial("d"), h.dial("d")
	h.must(two.Flush(h.bounded()))
	// The third is neither refused nor greeted.
	third := h.raw()
	h.must(third.SetReadDeadline(time.Now().Add(30 * time.Millisecond)))
	if n, err := third.Read(make([]byte, 1)); n > 0 || !os.IsTimeout(err) {
		t.Errorf("the third client got %d bytes, %v", n, err)
	}
	h.must(one.Disconnect(h.bounded()))
	h.must(third.SetReadDeadline(time.Now().Add(patience)))
	h.receive(third, nbd.GreetingSize)
}

func TestAddExportErrors(t *testing.T) {
	h := newHouse(t, Options{})
	readOnly := blocktest.NewNode(t, h.graph, "ro", blocktest.NewMem(blocktest.MemOptions{Size: 4096}), block.Options{ReadOnly: true})
	h.must(h.server.AddExport(t.Context(), Config{ID: "e", Name: "x", Node: h.node, Writable: true}))
	for _, test := range []struct {
		config Config
		want   string
	}{
		{Config{ID: "1e", Node: h.node}, "Invalid block export id"},
		{Config{ID: "", Node: h.node}, "Invalid block export id"},
		{Config{ID: "e", Node: h.node, Name: "y"}, "Block export id 'e' is already in use"},
		{Config{ID: "f", Node: h.node, Name: "x"}, "NBD server already has export named 'x'"},
		{Config{ID: "f", Node: readOnly, Writable: true}, "Cannot export read-only node as writable"},
		{Config{ID: "f", Node: h.node, Name: strings.Repeat("x", 4097)}, "too long"},
		{Config{ID: "f", Node: h.node, Description: strings.Repeat("x", 4097)}, "too long"},
	} {
		h.wantErr(h.server.AddExport(t.Context(), test.config), test.want)
	}
	// What failed left nothing behind.
	h.must(h.server.AddExport(t.Context(), Config{ID: "f", Node: readOnly}))
	h.must(h.server.AddExport(t.Context(), Config{ID: "g", Node: h.node, Name: strings.Repeat("x", 4096)}))
	h.dial(strings.Repeat("x", 4096))
	h.wantErr(h.exports.Remove(t.Context(), "none", false), "Export 'none' is not found")
	var ids []string
	for _, e := range h.exports.List() {
		ids = append(ids, e.ID()+" "+e.Type()+" "+e.Node().Name())
	}
	if want := []string{"g nbd d", "f nbd ro", "e nbd d"}; !slices.Equal(ids, want) {
		t.Errorf("exports are %q, want %q", ids, want)
	}
}

// TestPermissions wants an export to need write where it writes, and to leave resize to nobody.
func TestPermissions(t *testing.T) {
	h := newHouse(t, Options{})
	h.export("e")
	for need, share := range map[block.Perm]block.Perm{
		block.PermResize:         block.PermAll,
		block.PermConsistentRead: block.PermAll &^ block.PermWrite,
	} {
		err := h.graph.Change(h.bounded(), func(tx *block.Tx) error {
			_, err := tx.Attach(h.node, "job 'j'", need, share)
			return err
		})
		h.wantErr(err, "export 'e'")
	}
}

// TestExportStandsOnTop wants no way around a filter.
func TestExportStandsOnTop(t *testing.T) {
	h := newHouse(t, Options{})
	filter := blocktest.NewFilter(t, h.graph, "filter", h.node, func(e *block.Edge) (block.Driver, error) { return below{e}, nil })
	h.export("e")
	e, err := h.exports.Find("e")
	h.must(err)
	if e.Node() != filter {
		t.Errorf("the export stands on %s", e.Node().Name())
	}
	h.must(h.exports.Remove(h.bounded(), "e", false))
}

// below passes requests on.
type below struct{ *block.Edge }

func (below) Close() error { return nil }

func TestSafeRemoval(t *testing.T) {
	h := newHouse(t, Options{})
	h.export("e")
	c := h.dial("e")
	h.wantErr(h.exports.Remove(h.bounded(), "e", false), "export 'e' still in use")
	e, err := h.exports.Find("e")
	h.must(err)
	if e.ShuttingDown() {
		t.Error("a refused removal shuts the export down")
	}
	h.must(h.dial("e").Flush(h.bounded()))
	h.must(h.exports.Remove(h.bounded(), "e", true))
	wait(h, c.Ended(), "the end of the client's connection")
	h.wantErr(wait(h, h.closed, "the end"), "export was removed")
	if want := []string{"e"}; !slices.Equal(h.deleted, want) {
		t.Errorf("deleted %v, want %v", h.deleted, want)
	}
	h.must(e.Stop(h.bounded(), false)) // again
	if _, err := nbdguest.Dial(h.bounded(), "unix", h.path, "e", nbdguest.Options{}); err == nil {
		t.Error("a removed export can be had")
	}
	h.export("e")
	c = h.dial("e")
	h.must(c.Disconnect(h.bounded())) // returns when the server has closed the connection
	h.must(h.exports.Remove(h.bounded(), "e", false))
}

// remote is a disk that gives a request up when whoever made it goes away, as one at the other end of a network does.
type remote struct {
	*block.Edge
	came chan struct{}
}

func (remote) Close() error { return nil }

func (r remote) WriteAt(ctx context.Context, _ []byte, _ int64, _ block.Flags) error {
	r.came <- struct{}{}
	<-ctx.Done()
	return context.Cause(ctx)
}

// A request that a stop interrupts is not answered: the client, which can try again elsewhere or later, would take an answer
// for the disk's.
func TestStopAnswersNothing(t *testing.T) {
	for range 20 {
		h := newHouse(t, Options{})
		came := make(chan struct{})
		blocktest.NewFilter(t, h.graph, "remote", h.node, func(e *block.Edge) (block.Driver, error) { return remote{e, came}, nil })
		h.export("e")
		r := h.dial("e").Submit(nbdguest.Command{Type: nbdguest.CmdWrite, Data: make([]byte, 512)})
		wait(h, came, "the write")
		h.must(h.server.Stop(h.bounded()))
		var answer *nbdguest.ReplyError
		if err := r.Wait(h.bounded()); err == nil || errors.As(err, &answer) {
			t.Fatalf("the write ended with %v", err)
		}
	}
}
