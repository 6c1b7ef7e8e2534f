// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/blkmirror/blkmirror/block/nbd/nbdguest"
)

// Limits of the guest's requests, in sectors.
const (
	maxDataSectors = 64 << 10 / sectorSize
	maxZeroSectors = 1 << 20 / sectorSize
)

// guest uses the exported disk: a few requests at a time, of random kinds, at
// random places. It sees to it that its own requests do not overlap, as a
// guest's filesystem does.
type guest struct {
	disk      *nbdguest.Client
	model     *model
	latencies latencies
	counts    [numOps]atomic.Int64
	written   atomic.Int64 // bytes of data

	stop    chan struct{}
	workers sync.WaitGroup
}

// op is a kind of request.
type op int

const (
	opWrite op = iota
	opZero
	opTrim
	opRead
	numOps
)

var opNames = [numOps]string{"writes", "zero writes", "trims", "reads"}

// startGuest starts the guest. fail is called with what goes wrong; from then
// on nothing counts.
func startGuest(ctx context.Context, disk *nbdguest.Client, m *model, seed uint64, depth, rate int, fail func(error)) *guest {
	g := &guest{disk: disk, model: m, stop: make(chan struct{})}
	slots := make(chan struct{})
	g.workers.Go(func() { g.pace(ctx, rate, slots) })
	for i := range depth {
		rng := rand.New(rand.NewPCG(seed, uint64(i)+1))
		g.workers.Go(func() {
			for range slots {
				if err := g.request(ctx, rng); err != nil {
					fail(fmt.Errorf("the guest: %w", err))
					return
				}
			}
		})
	}
	return g
}

// finish lets the requests in flight end, and no others begin.
func (g *guest) finish() {
	close(g.stop)
	g.workers.Wait()
}

// pace gives out as many requests per second.
func (g *guest) pace(ctx context.Context, rate int, slots chan<- struct{}) {
	defer close(slots)
	ticker := time.NewTicker(time.Second / time.Duration(rate))
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-g.stop:
			return
		case <-ctx.Done():
			return
		}
		select {
		case slots <- struct{}{}:
		case <-g.stop:
			return
		case <-ctx.Done():
			return
		}
	}
}

// request does one request, and notes what it did to the disk once it is
// acknowledged.
func (g *guest) request(ctx context.Context, rng *rand.Rand) error {
	kind, limit := opWrite, int64(maxDataSectors)
	switch n := rng.IntN(100); {
	case n < 60:
	case n < 75:
		kind, limit = opZero, maxZeroSectors
	case n < 85:
		kind, limit = opTrim, maxZeroSectors
	default:
		kind = opRead
	}
	s := g.choose(rng, limit)
	defer g.model.release(s)

	command := nbdguest.Command{Offset: uint64(s.offset()), Length: uint32(s.bytes())}
	c := content(0)
	switch kind {
	case opWrite:
		command.Type, command.Data = nbdguest.CmdWrite, make([]byte, s.bytes())
		c = g.model.fresh()
		g.model.fill(command.Data, s.first, c)
		g.written.Add(s.bytes())
	case opZero:
		command.Type = nbdguest.CmdWriteZeroes
		if rng.IntN(4) == 0 {
			command.Flags = nbdguest.NoHole
		}
	case opTrim:
		command.Type = nbdguest.CmdTrim
	case opRead:
		command.Type = nbdguest.CmdRead
	}
	began, when := time.Now(), g.latencies.phase()
	request := g.disk.Submit(command)
	if err := request.Wait(ctx); err != nil {
		return err
	}
	g.latencies.add(when, time.Since(began))
	g.counts[kind].Add(1)

	switch kind {
	case opWrite, opZero:
		g.model.wrote(s, c)
	case opTrim:
		g.model.trimmed(s)
	case opRead:
		return g.model.check(request.Data(), s.first)
	}
	return nil
}

// choose claims a range. Most are small, as a guest's are.
func (g *guest) choose(rng *rand.Rand, limit int64) span {
	for {
		length := 1 + rng.Int64N(1+rng.Int64N(limit))
		first := rng.Int64N(int64(len(g.model.sectors)) - length + 1)
		if s := (span{first, first + length}); g.model.claim(s) {
			return s
		}
	}
}
