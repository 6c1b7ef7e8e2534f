// SPDX-License-Identifier: Apache-2.0

package nbdserver

import (
	"bytes"
	"testing"

	"github.com/blkmirror/blkmirror/block/nbd/nbdguest"
)

func TestSmoke(t *testing.T) {
	h := newHouse(t, Options{})
	h.export("d")
	c := h.dial("d")
	data := bytes.Repeat([]byte{7}, 8192)
	h.must(c.WriteAt(t.Context(), data, 4096, nbdguest.FUA))
	got := make([]byte, 16384)
	h.must(c.ReadAt(t.Context(), got, 0))
	if !bytes.Equal(got[4096:12288], data) {
		t.Fatal("data differs")
	}
	extents, err := c.Status(t.Context(), 0, 4<<20)
	h.must(err)
	t.Log(extents)
	h.must(c.Flush(t.Context()))
	h.must(c.Trim(t.Context(), 4096, 4096, 0))
	h.must(c.Disconnect(t.Context()))
	h.must(<-h.closed)
}
