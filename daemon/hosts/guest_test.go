// SPDX-License-Identifier: Apache-2.0

package hosts

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc64"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/block/nbd/nbdguest"
)

const (
	unit  = 4 << 10 // what the journal has an entry for, bytes
	lanes = 4       // writes at a time; each lane has every fourth group of units
	group = 16      // units in a row that belong to one lane, the most in one write
)

var table = crc64.MakeTable(crc64.ECMA)

// guest writes to a disk all the time and keeps a journal of what it was told to be done: a checksum of each unit. A unit
// that it writes begins with its number and its version.
type guest struct {
	t      *testing.T
	client *nbdguest.Client
	seed   uint64
	pace   time.Duration // between the writes of a lane
	cancel context.CancelFunc
	ended  sync.WaitGroup

	mu struct {
		sync.Mutex
		sums    []uint64 // the journal
		done    int      // writes that were answered
		slowest time.Duration
		held    bool // no write begins
		active  int  // lanes that write
		err     error
		changed chan struct{} // closed, and replaced, when any of these changed
	}
}

// startGuest begins to write to an export whose image has the content that it has.
func startGuest(t *testing.T, client *nbdguest.Client, image string, pace time.Duration, seed uint64) *guest {
	t.Helper()
	g := &guest{t: t, client: client, pace: pace, seed: seed}
	g.mu.changed = make(chan struct{})
	content, err := os.ReadFile(image)
	must(t, err)
	for at := 0; at < len(content); at += unit {
		g.mu.sums = append(g.mu.sums, crc64.Checksum(content[at:at+unit], table))
	}
	ctx, cancel := context.WithCancel(context.Background())
	g.cancel = cancel
	for lane := range lanes {
		g.ended.Go(func() { g.write(ctx, lane) })
	}
	t.Cleanup(func() {
		cancel()
		g.ended.Wait()
	})
	return g
}

// write is one lane.
func (g *guest) write(ctx context.Context, lane int) {
	random := rand.New(rand.NewPCG(g.seed, uint64(lane)))
	pause := time.NewTicker(g.pace)
	defer pause.Stop()
	groups := len(g.mu.sums) / group
	for version := uint64(1); ; version++ {
		select {
		case <-pause.C:
		case <-ctx.Done():
			return
		}
		if g.begin(ctx) != nil {
			return
		}
		first := (random.IntN(groups/lanes)*lanes + lane) * group
		from := random.IntN(group)
		n := 1 + random.IntN(group-from)
		err := g.one(ctx, random, first+from, n, version)
		g.update(func() {
			g.mu.active--
			if err != nil && ctx.Err() == nil && g.mu.err == nil {
				g.mu.err = err
			}
		})
		if err != nil {
			return
		}
	}
}

// one writes n units and takes note of them once that was answered.
func (g *guest) one(ctx context.Context, random *rand.Rand, first, n int, version uint64) error {
	data := make([]byte, n*unit)
	kind := random.IntN(10)
	var flags nbdguest.CommandFlags
	if kind == 1 {
		flags = nbdguest.FUA
	}
	began := time.Now()
	var err error
	if kind == 0 {
		err = g.client.Zero(ctx, uint64(first*unit), uint32(len(data)), flags)
	} else {
		for at := 0; at < len(data); at += 8 {
			binary.LittleEndian.PutUint64(data[at:], random.Uint64())
		}
		for i := range n {
			binary.LittleEndian.PutUint64(data[i*unit:], uint64(first+i))
			binary.LittleEndian.PutUint64(data[i*unit+8:], version)
		}
		err = g.client.WriteAt(ctx, data, uint64(first*unit), flags)
	}
	if err == nil && kind == 2 {
		err = g.client.Flush(ctx)
	}
	took := time.Since(began)
	if err != nil {
		return err
	}
	g.update(func() {
		for i := range n {
			g.mu.sums[first+i] = crc64.Checksum(data[i*unit:(i+1)*unit], table)
		}
		g.mu.done++
		g.mu.slowest = max(g.mu.slowest, took)
	})
	return nil
}

func (g *guest) update(f func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	f()
	close(g.mu.changed)
	g.mu.changed = make(chan struct{})
}

// begin waits until writes may begin, and notes that one does.
func (g *guest) begin(ctx context.Context) error {
	for {
		g.mu.Lock()
		held, changed := g.mu.held, g.mu.changed
		if !held {
			g.mu.active++
		}
		g.mu.Unlock()
		if !held {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// until waits until something about the guest holds.
func (g *guest) until(what string, limit time.Duration, holds func() bool) {
	g.t.Helper()
	timeout := time.After(limit)
	for {
		g.mu.Lock()
		err, ok, changed := g.mu.err, holds(), g.mu.changed
		g.mu.Unlock()
		switch {
		case err != nil:
			g.t.Fatalf("the guest saw an error: %v", err)
		case ok:
			return
		}
		select {
		case <-changed:
		case <-timeout:
			g.t.Fatalf("the guest: it did not come about in %v that %s", limit, what)
		}
	}
}

// more waits until the guest has done n writes more, within a time.
func (g *guest) more(n int, limit time.Duration) {
	g.t.Helper()
	g.mu.Lock()
	want := g.mu.done + n
	g.mu.Unlock()
	g.until(fmt.Sprintf("it did %d writes more", n), limit, func() bool { return g.mu.done >= want })
}

// hold lets the guest end what it does and begin nothing.
func (g *guest) hold() {
	g.t.Helper()
	g.update(func() { g.mu.held = true })
	g.until("it holds still", patience, func() bool { return g.mu.active == 0 })
}

func (g *guest) goOn() { g.update(func() { g.mu.held = false }) }

// slowest is the longest time that a write took so far.
func (g *guest) slowest() time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.mu.slowest
}

// check ends the guest and sees that all that it was told to be done is in an image.
func (g *guest) check(image string) {
	g.t.Helper()
	g.hold()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	must(g.t, g.client.Flush(ctx))
	content, err := os.ReadFile(image)
	must(g.t, err)
	wrong := 0
	for i, want := range g.mu.sums { // nobody changes it any more
		at := content[i*unit : (i+1)*unit]
		if crc64.Checksum(at, table) == want {
			continue
		}
		if wrong++; wrong <= 5 {
			g.t.Errorf("%s: unit %d is not what the guest wrote; it says of itself unit %d, version %d", image, i,
				binary.LittleEndian.Uint64(at), binary.LittleEndian.Uint64(at[8:]))
		}
	}
	if wrong > 0 {
		g.t.Fatalf("%s: %d units of %d are wrong", image, wrong, len(g.mu.sums))
	}
}

// count is how many writes were done.
func (g *guest) count() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.mu.done
}
