// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/blocktest"
)

// peer starts a server that ends with the test, and returns the way to it. Open has to wait until it is there.
func peer(t testing.TB, program string, arguments func(socket string) []string) Options {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		t.Skipf("needs %s: %v", program, err)
	}
	return serve(t, path, arguments)
}

// newPeer is a peer of the system in $PEER_ROOT, which must share the folder of temporary files with this one.
func newPeer(t testing.TB, program string, arguments func(socket string) []string) Options {
	t.Helper()
	root := os.Getenv("PEER_ROOT")
	if root == "" {
		t.Skip("needs a system with the newest programs, which $PEER_ROOT names")
	}
	return serve(t, "chroot", func(socket string) []string { return append([]string{root, program}, arguments(socket)...) })
}

func serve(t testing.TB, program string, arguments func(socket string) []string) Options {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "nbd")
	var complaints bytes.Buffer
	server := exec.Command(program, arguments(socket)...)
	server.Stdout, server.Stderr = &complaints, &complaints
	must(t, server.Start())
	t.Cleanup(func() {
		_ = server.Process.Signal(syscall.SIGTERM)
		if err := server.Wait(); err != nil || t.Failed() {
			t.Logf("%s: %v: %s", program, err, complaints.String())
		}
	})
	return Options{Server: Address{Network: "unix", Address: socket}, OpenTimeout: patience}
}

func nbdkit(t testing.TB, arguments ...string) Options {
	return peer(t, "nbdkit", func(socket string) []string {
		return append([]string{"-f", "--exit-with-parent", "-U", socket}, arguments...)
	})
}

func TestSuiteWithPeers(t *testing.T) {
	sized := func(arguments ...string) func(t *testing.T, size int64) Options {
		return func(t *testing.T, size int64) Options {
			return nbdkit(t, append(arguments, "size="+strconv.FormatInt(size, 10))...)
		}
	}
	for _, c := range []struct {
		name string
		open func(t *testing.T, size int64) Options
	}{
		{"nbdkit memory", sized("memory")},
		{"nbdkit with simple replies", sized("--no-sr", "memory")},
		{"nbdkit, old style option", sized("--mask-handshake=0", "memory")},
		{"nbdkit file", func(t *testing.T, size int64) Options {
			return nbdkit(t, "file", diskFile(t, size))
		}},
		{"nbdkit without zeroes", sized("--filter=nozero", "memory")},
		{"nbdkit without extents", sized("--filter=noextents", "memory")},
		{"nbdkit without FUA", sized("--filter=fua", "memory")},
		{"nbdkit with blocks", sized("--filter=blocksize-policy", "memory", "blocksize-minimum=512",
			"blocksize-preferred=4096", "blocksize-maximum=8192", "blocksize-error-policy=error")},
		{"qemu-nbd", func(t *testing.T, size int64) Options { return qemuNBD(t, peer, diskFile(t, size)) }},
		{"newest qemu-nbd", func(t *testing.T, size int64) Options { return qemuNBD(t, newPeer, diskFile(t, size)) }},
		{"newest nbdkit", func(t *testing.T, size int64) Options {
			return newPeer(t, "nbdkit", func(socket string) []string {
				return []string{"-f", "-U", socket, "memory", "size=" + strconv.FormatInt(size, 10)}
			})
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			blocktest.TestDriver(t, blocktest.Suite{
				Open: func(t *testing.T, size int64) block.Driver { return open(t, c.open(t, size)) },
			})
		})
	}
}

func diskFile(t testing.TB, size int64) string {
	t.Helper()
	image := filepath.Join(t.TempDir(), "disk.img")
	must(t, os.WriteFile(image, nil, 0o600))
	must(t, os.Truncate(image, size))
	return image
}

func qemuNBD(t testing.TB, peer func(testing.TB, string, func(string) []string) Options, image string) Options {
	t.Helper()
	o := peer(t, "qemu-nbd", func(socket string) []string {
		return []string{"-k", socket, "-f", "raw", "-x", "disk", "-t", "-e", "8", "--discard=unmap", image}
	})
	o.Export, o.Connections = "disk", 2
	return o
}

// TestExtendedHeaders has a server that knows them, and ranges beyond 32 bits, which go out in pieces.
func TestExtendedHeaders(t *testing.T) {
	const size = 10 << 30
	d := open(t, qemuNBD(t, newPeer, diskFile(t, size)))
	if !d.export.extended {
		t.Fatal("no extended headers were agreed on")
	}
	must(t, d.WriteAt(t.Context(), pattern(64*kib, 1), 7<<30, 0))
	for off := int64(0); off < 7<<30; {
		e, err := d.BlockStatus(t.Context(), off, size-off)
		must(t, err)
		if off += e.Len; off > 7<<30 || e.Status&block.StatusZero == 0 {
			t.Fatalf("the status of what ends at %d is %+v", off, e)
		}
	}
	must(t, d.WriteZeroes(t.Context(), 1<<30, 8<<30, block.MayUnmap))
	must(t, d.Discard(t.Context(), 0, size))
	got := pattern(64*kib, 2)
	must(t, d.ReadAt(t.Context(), got, 7<<30))
	if !bytes.Equal(got, make([]byte, len(got))) {
		t.Error("what was zeroed is not zero")
	}
}

// TestErrorsNowAndThen has a server that fails one request in ten: what it says to have done, it has done.
func TestErrorsNowAndThen(t *testing.T) {
	d := open(t, nbdkit(t, "--filter=error", "memory", "size=1M", "error=EIO", "error-rate=10%"))
	failures := 0
	insist := func(f func() error) {
		t.Helper()
		for range 100 {
			err := f()
			if err == nil {
				return
			}
			wantErr(t, err, block.KindIO, "EIO")
			failures++
		}
		t.Fatal("a hundred failures in a row")
	}
	want := make([]byte, mib)
	for i := range 100 {
		off, data := int64(i*9973%240)*4*kib, pattern(16*kib, byte(i))
		insist(func() error { return d.WriteAt(t.Context(), data, off, 0) })
		copy(want[off:], data)
		if i%7 == 0 {
			insist(func() error { return d.WriteZeroes(t.Context(), off, 8*kib, 0) })
			clear(want[off : off+8*kib])
		}
	}
	got := make([]byte, mib)
	insist(func() error { return d.ReadAt(t.Context(), got, 0) })
	if !bytes.Equal(got, want) {
		t.Error("another content")
	}
	if failures == 0 {
		t.Error("the server did not fail once")
	}
}

// TestLargeBlocks has a server that takes nothing but whole 4 KiB, and no more than 64 KiB.
func TestLargeBlocks(t *testing.T) {
	d := open(t, nbdkit(t, "--filter=blocksize-policy", "memory", "size=1M", "blocksize-minimum=4096",
		"blocksize-preferred=4096", "blocksize-maximum=64K", "blocksize-error-policy=error"))
	if l := d.Limits(); l.RequestAlign != 4096 || l.MaxTransfer != 64*kib {
		t.Errorf("limits are %+v", l)
	}
	n := node(t, d)
	data := pattern(600*kib, 1)
	must(t, n.WriteAt(t.Context(), data, 1001, block.FUA))
	must(t, n.WriteZeroes(t.Context(), 5000, 300*kib, 0))
	clear(data[5000-1001 : 5000-1001+300*kib])
	got := make([]byte, len(data))
	must(t, n.ReadAt(t.Context(), got, 1001))
	if !bytes.Equal(got, data) {
		t.Error("another content")
	}
	for off := int64(0); off < n.Size(); {
		e, err := n.BlockStatus(t.Context(), off, min(777, n.Size()-off))
		must(t, err)
		off += e.Len
	}
}

func TestOddLengthExport(t *testing.T) {
	d := open(t, nbdkit(t, "memory", "size=1000"))
	if d.Size() != 1024 {
		t.Fatalf("size %d", d.Size())
	}
	n := node(t, d)
	data := pattern(1000, 1)
	must(t, n.WriteAt(t.Context(), append(bytes.Clone(data), make([]byte, 24)...), 0, 0))
	got := bytes.Repeat([]byte{7}, 1024)
	must(t, n.ReadAt(t.Context(), got, 0))
	if !bytes.Equal(got, append(data, make([]byte, 24)...)) {
		t.Error("another content")
	}
	wantErr(t, n.WriteAt(t.Context(), []byte{1}, 1010, 0), block.KindNoSpace, "ends at 1000")
	must(t, n.WriteZeroes(t.Context(), 900, 124, 0))
	e, err := n.BlockStatus(t.Context(), 1000, 24)
	if err != nil || e.Len != 24 || e.Status&block.StatusZero == 0 {
		t.Errorf("status of the tail is %+v, %v", e, err)
	}
}

func TestReadOnlyServer(t *testing.T) {
	o := nbdkit(t, "-r", "memory", "size=1M")
	_, err := Open(bounded(t), o)
	wantErr(t, err, block.KindReadOnly, "is read-only")
	o.AutoReadOnly = true
	d := open(t, o)
	g := block.NewGraph()
	n := blocktest.NewNode(t, g, "n", d, block.Options{})
	must(t, n.ReadAt(t.Context(), make([]byte, 512), 0))
	err = g.Change(t.Context(), func(tx *block.Tx) error {
		_, err := tx.Attach(n, "writer", block.PermWrite, block.PermAll)
		return err
	})
	wantErr(t, err, block.KindReadOnly, "is read-only")
	o.AutoReadOnly, o.ReadOnly = false, true
	open(t, o)
}

func TestServerErrors(t *testing.T) {
	d := open(t, nbdkit(t, "--filter=error", "memory", "size=1M", "error=ENOSPC", "error-rate=100%"))
	wantErr(t, d.WriteAt(t.Context(), make([]byte, 512), 0, 0), block.KindNoSpace, "ENOSPC")
	wantErr(t, d.ReadAt(t.Context(), make([]byte, 512), 0), block.KindNoSpace, "ENOSPC")
	o := nbdkit(t, "--tls=off", "memory", "size=1M")
	o.Context = "qemu:dirty-bitmap:none"
	_, err := Open(bounded(t), o)
	if err == nil {
		t.Error("a metadata context that is not there can be had")
	}
}

// TestPeerThatExits has a server that ends and comes back with the same file.
func TestPeerThatExits(t *testing.T) {
	dir := t.TempDir()
	image, socket := filepath.Join(dir, "disk.img"), filepath.Join(dir, "nbd")
	must(t, os.WriteFile(image, make([]byte, mib), 0o600))
	program, err := exec.LookPath("nbdkit")
	if err != nil {
		t.Skipf("needs nbdkit: %v", err)
	}
	run := func() *exec.Cmd {
		_ = os.Remove(socket)
		c := exec.Command(program, "-f", "--exit-with-parent", "-U", socket, "file", image)
		must(t, c.Start())
		return c
	}
	server := run()
	d := open(t, Options{Server: Address{Network: "unix", Address: socket}, OpenTimeout: patience, ReconnectDelay: patience})
	for i := range 5 {
		data := pattern(64*kib, byte(i*16))
		must(t, d.WriteAt(t.Context(), data, int64(i)*64*kib, 0))
		_ = server.Process.Kill()
		_ = server.Wait()
		got := make([]byte, len(data))
		done := start(func() error { return d.ReadAt(bounded(t), got, int64(i)*64*kib) })
		server = run()
		must(t, wait(t, done, "the read"))
		if !bytes.Equal(got, data) {
			t.Error("another content")
		}
	}
	_ = server.Process.Kill()
	_ = server.Wait()
}

func TestConnectErrors(t *testing.T) {
	for _, c := range []struct {
		o    Options
		kind block.Kind
		want string
	}{
		{Options{Server: Address{Network: "unix", Address: "/no/such"}}, block.KindNotFound, "Failed to connect to '/no/such': No such file or directory"},
		{Options{Server: Address{Network: "tcp", Address: "127.0.0.1:1"}}, block.KindIO, "Failed to connect to '127.0.0.1:1': Connection refused"},
		{Options{Server: Address{Network: "tcp", Address: "localhost"}}, block.KindInvalid, "no address"},
		{Options{Server: Address{Network: "fd", Address: "x"}}, block.KindInvalid, "not the number of a descriptor"},
		{Options{Server: Address{Network: "fd", Address: "987654"}}, block.KindInvalid, "not a socket"},
		{Options{Server: Address{Network: "carrier pigeon"}}, block.KindInvalid, "carrier pigeon"},
		{Options{Server: Address{Network: "unix", Address: "x"}, Connections: 17}, block.KindInvalid, "from 1 to 16"},
	} {
		_, err := Open(bounded(t), c.o)
		wantErr(t, err, c.kind, c.want)
	}
	began := time.Now()
	o := Options{Server: Address{Network: "unix", Address: "/no/such"}, OpenTimeout: 50 * time.Millisecond}
	if _, err := Open(bounded(t), o); err == nil || time.Since(began) < 40*time.Millisecond {
		t.Errorf("gave up after %v: %v", time.Since(began), err)
	}
	h := newFullHouse(t)
	o = h.options()
	o.Export = "other"
	_, err := Open(bounded(t), o)
	wantErr(t, err, block.KindNotFound, "Requested export 'other'")
}
