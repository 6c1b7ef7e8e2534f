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
	socket := filepath.Join(t.TempDir(), "nbd")
	var complaints bytes.Buffer
	server := exec.Command(path, arguments(socket)...)
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
		{"nbdkit without zeroes", sized("--filter=nozero", "memory")},
		{"nbdkit without extents", sized("--filter=noextents", "memory")},
		{"nbdkit without FUA", sized("--filter=fua", "memory")},
		{"nbdkit with blocks", sized("--filter=blocksize-policy", "memory", "blocksize-minimum=512",
			"blocksize-preferred=4096", "blocksize-maximum=8192", "blocksize-error-policy=error")},
		{"qemu-nbd", func(t *testing.T, size int64) Options {
			image := filepath.Join(t.TempDir(), "disk.img")
			must(t, os.WriteFile(image, nil, 0o600))
			must(t, os.Truncate(image, size))
			o := peer(t, "qemu-nbd", func(socket string) []string {
				return []string{"-k", socket, "-f", "raw", "-x", "disk", "-t", "-e", "8", "--discard=unmap", image}
			})
			o.Export, o.Connections = "disk", 2
			return o
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			blocktest.TestDriver(t, blocktest.Suite{
				Open: func(t *testing.T, size int64) block.Driver { return open(t, c.open(t, size)) },
			})
		})
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
