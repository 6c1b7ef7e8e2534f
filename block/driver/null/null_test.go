// SPDX-License-Identifier: Apache-2.0

package null_test

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/blocktest"
	"github.com/blkmirror/blkmirror/block/driver/null"
)

func open(t *testing.T, o null.Options) *null.Null {
	t.Helper()
	d, err := null.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestNullPassesTheSuite(t *testing.T) {
	for _, readZeroes := range []bool{false, true} {
		blocktest.TestDriver(t, blocktest.Suite{StoresNothing: true, Open: func(t *testing.T, size int64) block.Driver {
			return open(t, null.Options{Size: &size, ReadZeroes: readZeroes})
		}})
	}
}

func TestSize(t *testing.T) {
	if d := open(t, null.Options{}); d.Size() != 1<<30 {
		t.Errorf("default size %d", d.Size())
	}
	for size, want := range map[int64]int64{0: 0, 1: 512, 512: 512, 1000: 1024} {
		if d := open(t, null.Options{Size: &size}); d.Size() != want {
			t.Errorf("size %d becomes %d", size, d.Size())
		}
	}
	for _, size := range []int64{-1, 1<<63 - 1} {
		if _, err := null.Open(null.Options{Size: &size}); block.KindOf(err) != block.KindInvalid || err == nil {
			t.Errorf("size %d: %v", size, err)
		}
	}
	if _, err := null.Open(null.Options{Latency: -1}); err == nil {
		t.Error("a negative latency was taken")
	}
}

func TestStatusAndReads(t *testing.T) {
	for readZeroes, want := range map[bool]block.Status{false: 0, true: block.StatusZero | block.StatusAllocated} {
		d := open(t, null.Options{ReadZeroes: readZeroes})
		if e, err := d.BlockStatus(context.Background(), 512, 1024); err != nil || e != (block.Extent{Len: 1024, Status: want}) {
			t.Errorf("read-zeroes %v: status %v, %v", readZeroes, e, err)
		}
		b := bytes.Repeat([]byte{1}, 100)
		if err := d.ReadAt(context.Background(), b, 0); err != nil || !block.IsZero(b) {
			t.Errorf("read-zeroes %v: what was in the buffer got out, %v", readZeroes, err)
		}
	}
}

func TestLatency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := open(t, null.Options{Latency: time.Second})
		start := time.Now()
		if err := d.WriteAt(t.Context(), make([]byte, 512), 0, 0); err != nil || time.Since(start) != time.Second {
			t.Errorf("write took %v, %v", time.Since(start), err)
		}
		gone := errors.New("gone")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Millisecond, func() { cancel(gone) })
		start = time.Now()
		if err := d.ReadAt(ctx, make([]byte, 512), 0); !errors.Is(err, gone) || time.Since(start) != time.Millisecond {
			t.Errorf("read took %v, %v", time.Since(start), err)
		}
	})
}
