// SPDX-License-Identifier: Apache-2.0

package images

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/blkmirror/blkmirror/block/nbd/nbdguest"
)

const sector = 512

// version is what a sector may hold: a stamp of the operation that wrote it, or 0 for zeroes. What a trim does is not certain.
type version struct {
	stamp uint64
	maybe bool
}

// guest is somebody who writes to a disk from several connections and knows what it may hold. Each connection has a part of the
// disk to itself; parts meet within clusters.
type guest struct {
	t       testing.TB
	size    int64
	sectors [][]version // what each may hold after a kill; the last is what it holds now
	stamp   atomic.Uint64
	done    atomic.Int64 // operations
	seed    uint64
	stop    context.CancelFunc
	ended   sync.WaitGroup
	failed  atomic.Pointer[error]
}

func newGuest(t testing.TB, size int64) *guest {
	g := &guest{t: t, size: size, sectors: make([][]version, size/sector), seed: *seed}
	for i := range g.sectors {
		g.sectors[i] = []version{{}}
	}
	return g
}

// content is what a sector with a stamp holds.
func content(b []byte, number int64, stamp uint64) {
	clear(b)
	if stamp == 0 {
		return
	}
	for at := 0; at < sector; at += 16 {
		binary.BigEndian.PutUint64(b[at:], stamp)
		binary.BigEndian.PutUint64(b[at+8:], uint64(number))
	}
}

// begin starts to write.
func (g *guest) begin(d *daemon, export string) {
	g.t.Helper()
	const connections = 3
	ctx, cancel := context.WithCancel(g.t.Context())
	g.stop = cancel
	g.seed++
	for i := range int64(connections) {
		c := d.connect(export)
		count := g.size / sector
		from, to := count*i/connections|1, count*(i+1)/connections|1
		if i == connections-1 {
			to = count
		}
		random := rand.New(rand.NewPCG(g.seed, uint64(i)))
		g.ended.Go(func() {
			for ctx.Err() == nil {
				if err := g.step(c, random, from, to); err != nil {
					g.failed.Store(&err)
					return
				}
				g.done.Add(1)
			}
		})
	}
	g.t.Cleanup(func() {
		cancel()
		g.ended.Wait()
	})
}

// step does one thing to sectors that nobody else touches.
func (g *guest) step(c *nbdguest.Client, random *rand.Rand, from, to int64) error {
	ctx := context.Background() // what began is seen to its end
	n := 1 + random.Int64N(8)
	if random.IntN(8) == 0 {
		n = 1 + random.Int64N(200)
	}
	n = min(n, to-from)
	at := from + random.Int64N(to-from-n+1)
	switch random.IntN(12) {
	case 0:
		g.note(at, n, 0, false)
		flags := nbdguest.CommandFlags(0)
		if random.IntN(2) == 0 {
			flags = nbdguest.NoHole
		}
		return c.Zero(ctx, uint64(at*sector), uint32(n*sector), flags)
	case 1:
		g.note(at, n, 0, true)
		return c.Trim(ctx, uint64(at*sector), uint32(n*sector), 0)
	case 2:
		if err := c.Flush(ctx); err != nil {
			return err
		}
		for i := from; i < to; i++ {
			g.settle(i)
		}
		return nil
	case 3:
		b := make([]byte, n*sector)
		if err := c.ReadAt(ctx, b, uint64(at*sector)); err != nil {
			return err
		}
		return g.look(b, at, true)
	}
	b := make([]byte, n*sector)
	stamp := g.stamp.Add(1)
	for i := range n {
		content(b[i*sector:(i+1)*sector], at+i, stamp)
	}
	g.note(at, n, stamp, false)
	return c.WriteAt(ctx, b, uint64(at*sector), 0)
}

func (g *guest) note(at, n int64, stamp uint64, maybe bool) {
	for i := at; i < at+n; i++ {
		g.sectors[i] = append(g.sectors[i], version{stamp, maybe})
	}
}

// settle forgets what a sector cannot hold after a flush.
func (g *guest) settle(i int64) {
	list := g.sectors[i]
	for k := len(list) - 1; k >= 0; k-- {
		if !list[k].maybe {
			g.sectors[i] = list[k:]
			return
		}
	}
}

// look compares what was read with what may be there. now: nothing was lost.
func (g *guest) look(b []byte, at int64, now bool) error {
	var want [sector]byte
	for i := range int64(len(b) / sector) {
		got, list := b[i*sector:(i+1)*sector], g.sectors[at+i]
		fits := false
		for k := len(list) - 1; k >= 0 && !fits; k-- {
			content(want[:], at+i, list[k].stamp)
			fits = string(got) == string(want[:])
			if now && !list[k].maybe {
				break
			}
		}
		if !fits {
			return fmt.Errorf("sector %d holds %x…; it may hold %v, of that the last alone: %v", at+i, got[:16], list, now)
		}
	}
	return nil
}

// until waits until more operations have been done.
func (g *guest) until(more int64) {
	g.t.Helper()
	from := g.done.Load()
	eventually(g.t, "the guest goes on", func() bool {
		if err := g.failed.Load(); err != nil {
			g.t.Fatalf("the guest: %v", *err)
		}
		return g.done.Load() >= from+more
	})
}

// end stops writing; nothing may have failed.
func (g *guest) end() {
	g.t.Helper()
	g.stop()
	g.ended.Wait()
	if err := g.failed.Load(); err != nil {
		g.t.Fatalf("the guest: %v", *err)
	}
}

// take makes what the disk holds what it is known to hold; it must be one of what it may hold.
func (g *guest) take(what string, disk []byte, now bool) {
	g.t.Helper()
	if int64(len(disk)) != g.size {
		g.t.Fatalf("%s has %d bytes, not %d", what, len(disk), g.size)
	}
	if err := g.look(disk, 0, now); err != nil {
		g.t.Fatalf("%s: %v", what, err)
	}
	for i := range g.sectors {
		g.sectors[i] = []version{{stamp: binary.BigEndian.Uint64(disk[i*sector:])}}
	}
}
