// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"bytes"
	"net"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/blocktest"
	"github.com/blkmirror/blkmirror/block/export/nbdserver"
)

// TestDescriptor has a connection that somebody else made. It cannot be made again.
func TestDescriptor(t *testing.T) {
	h := newFullHouse(t)
	conn, err := net.Dial("unix", h.path)
	must(t, err)
	f, err := conn.(*net.UnixConn).File()
	must(t, err)
	must(t, conn.Close())
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 100) // the disk closes its own
	must(t, err)
	must(t, f.Close())
	o := Options{Server: Address{Network: "fd", Address: strconv.Itoa(fd)}, Export: "d", ReconnectDelay: patience, OpenTimeout: patience}
	d := open(t, o)
	if name := d.FileName(); name != "nbd+fd://"+o.Server.Address+"/d" {
		t.Errorf("it is called %s", name)
	}
	data := pattern(64*kib, 3)
	must(t, d.WriteAt(t.Context(), data, 4096, block.FUA))
	if !bytes.Equal(h.disk.Bytes()[4096:4096+len(data)], data) {
		t.Error("another content")
	}
	h.stop()
	h.start(nbdserver.Config{Writable: true})
	wantErr(t, d.ReadAt(bounded(t), data, 0), block.KindIO, "a descriptor cannot be connected again")
}

// TestBitmapAsStatus asks for a dirty bitmap in place of what is allocated: what is dirty is no data, as in QEMU.
func TestBitmapAsStatus(t *testing.T) {
	h := newFullHouse(t)
	var bitmap *block.DirtyBitmap
	blocktest.Change(t, h.graph, func(tx *block.Tx) (err error) {
		bitmap, err = tx.AddBitmap(h.node, block.BitmapConfig{Name: "b", Granularity: 64 << 10})
		return err
	})
	must(t, h.server.AddExport(t.Context(), nbdserver.Config{ID: "bitmap", Name: "bitmap", Node: h.node, Writable: true,
		Bitmaps: []*block.DirtyBitmap{bitmap}}))
	must(t, h.node.WriteAt(t.Context(), []byte{1}, 200*kib, 0))
	o := h.options()
	o.Context = "qemu:dirty-bitmap:b"
	_, err := Open(bounded(t), o)
	wantErr(t, err, block.KindInvalid, "requested x-dirty-bitmap qemu:dirty-bitmap:b not found")
	o.Export = "bitmap"
	d := open(t, o)
	for off, want := range map[int64]block.Extent{
		0:         {Len: 192 * kib, Status: block.StatusAllocated | block.StatusData},
		192 * kib: {Len: 64 * kib, Status: block.StatusAllocated},
		256 * kib: {Len: 768 * kib, Status: block.StatusAllocated | block.StatusData},
	} {
		if got, err := d.BlockStatus(t.Context(), off, mib-off); err != nil || got != want {
			t.Errorf("at %d: %+v, %v, want %+v", off, got, err, want)
		}
	}
}
