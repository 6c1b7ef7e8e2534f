// SPDX-License-Identifier: Apache-2.0

package blocktest_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/blocktest"
)

func TestMemPassesTheSuite(t *testing.T) {
	for name, o := range map[string]blocktest.MemOptions{
		"default":         {},
		"aligned 512":     {Limits: block.Limits{RequestAlign: 512, MemoryAlign: 512}},
		"aligned 4096":    {Limits: block.Limits{RequestAlign: 4096, MemoryAlign: 4096, MaxTransfer: 16384}},
		"no capabilities": {NoZeroes: true, NoDiscard: true, NoStatus: true},
		"slow zeroes":     {SlowZeroes: true, NoZeroUnmap: true, StatusMost: 1024},
		"keeps":           {OnDiscard: blocktest.DiscardKeeps},
		"garbage":         {OnDiscard: blocktest.DiscardGarbage},
	} {
		t.Run(name, func(t *testing.T) {
			blocktest.TestDriver(t, blocktest.Suite{Open: func(_ *testing.T, size int64) block.Driver {
				o.Size = size
				return blocktest.NewMem(o)
			}})
		})
	}
	t.Run("plain", func(t *testing.T) {
		blocktest.TestDriver(t, blocktest.Suite{Open: func(_ *testing.T, size int64) block.Driver {
			return blocktest.Plain(blocktest.NewMem(blocktest.MemOptions{Size: size}))
		}})
	})
}

var bg = context.Background()

func TestCrashKeepsWhatWasFlushedAndPartsOfTheRest(t *testing.T) {
	const size, half = 64 << 10, 32 << 10
	old, fresh, fua := bytes.Repeat([]byte{1}, half), bytes.Repeat([]byte{2}, half), bytes.Repeat([]byte{3}, 512)
	outcomes := map[string]int{}
	for seed := range uint64(60) {
		m := blocktest.NewMem(blocktest.MemOptions{Size: size})
		for _, err := range []error{m.WriteAt(bg, old, 0, 0), m.Flush(bg), m.WriteAt(bg, fresh, 0, 0), m.WriteAt(bg, fresh, half, 0),
			m.WriteAt(bg, fua, 4096, block.FUA)} {
			if err != nil {
				t.Fatal(err)
			}
		}
		after := m.Crash(seed)
		if !bytes.Equal(after.Bytes(), m.Crash(seed).Bytes()) {
			t.Fatal("the same seed gave another disk")
		}
		got := after.Bytes()
		if !bytes.Equal(got[4096:4608], fua) {
			t.Fatal("a durable write is lost")
		}
		olds, news := 0, 0
		for off := 0; off < half; off += 512 {
			switch b := got[off : off+512]; {
			case off == 4096:
			case bytes.Equal(b, old[:512]):
				olds++
			case bytes.Equal(b, fresh[:512]):
				news++
			default:
				t.Fatalf("the sector at %d is torn", off)
			}
		}
		switch {
		case olds == 0:
			outcomes["all"]++
		case news == 0:
			outcomes["none"]++
		default:
			outcomes["torn"]++
		}
		if !bytes.Equal(m.Copy().Bytes(), m.Bytes()) {
			t.Fatal("the death of the process lost a write")
		}
		if err := m.Flush(bg); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(m.Crash(seed).Bytes(), m.Bytes()) {
			t.Fatal("a flushed write is lost")
		}
	}
	if len(outcomes) != 3 {
		t.Errorf("outcomes: %v", outcomes)
	}
}

func TestMemKeepsTheContract(t *testing.T) {
	m := blocktest.NewMem(blocktest.MemOptions{Size: 10 * 512, Limits: block.Limits{RequestAlign: 4096, MaxTransfer: 8192}})
	for name, err := range map[string]error{
		"unaligned":     m.ReadAt(bg, make([]byte, 512), 0),
		"beyond":        m.ReadAt(bg, make([]byte, 4096), 8192),
		"nothing":       m.WriteAt(bg, nil, 0, 0),
		"too long":      m.ReadAt(bg, make([]byte, 12288), 0),
		"foreign flags": m.WriteAt(bg, make([]byte, 4096), 0, block.MayUnmap),
	} {
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	// The padding behind the end is not kept.
	if err := m.WriteAt(bg, bytes.Repeat([]byte{1}, 8192), 0, 0); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 8192)
	if err := m.ReadAt(bg, got, 0); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got[:5120], bytes.Repeat([]byte{1}, 5120)) || !block.IsZero(got[5120:]) {
		t.Error("wrong content around the end of the disk")
	}
	_ = m.Close()
	if m.Flush(bg) == nil {
		t.Error("a request after Close went through")
	}
}

func TestHooksAndCalls(t *testing.T) {
	m := blocktest.NewMem(blocktest.MemOptions{Size: 64 << 10, NonAtomic: true})
	var seen []string
	broken := errors.New("broken")
	m.SetHook(func(_ context.Context, c blocktest.Call) error {
		seen = append(seen, c.String())
		if c.Op == block.OpWrite && c.Off == 8192 {
			return broken
		}
		return nil
	})
	if err := m.WriteAt(bg, bytes.Repeat([]byte{1}, 12288), 0, block.FUA); !errors.Is(err, broken) {
		t.Errorf("the hook's error became %v", err)
	}
	if want := "[write 0+4096 fua write 4096+4096 fua write 8192+4096 fua]"; fmt.Sprint(seen) != want {
		t.Errorf("hooks saw %v, want %v", seen, want)
	}
	if got := m.Bytes(); got[8191] != 1 || got[8192] != 0 {
		t.Error("the pieces before the failure were not written, or the failed one was")
	}
	m.SetHook(nil)
	m.SetAfterHook(func(context.Context, blocktest.Call) error { return broken })
	if err := m.WriteZeroes(bg, 0, 8192, 0); !errors.Is(err, broken) || m.Bytes()[0] != 0 {
		t.Error("the hook after a request came before it, or not at all")
	}
	if n, bytes := m.Count(block.OpWrite); n != 1 || bytes != 12288 {
		t.Errorf("%d writes of %d bytes counted", n, bytes)
	}
	if calls := m.Calls(); len(calls) != 2 || calls[1].Op != block.OpZero {
		t.Errorf("calls: %v", calls)
	}
}
