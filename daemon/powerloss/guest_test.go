// SPDX-License-Identifier: Apache-2.0

package powerloss

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/blkmirror/blkmirror/block"
)

// Guests share the disk in stripes, each with one request at a time, so that the journal knows in which order its writes came.
const (
	guests = 3
	stripe = 16 << 10
)

// drive lets guests work on the disk of the export.
func (l *life) drive(node string) {
	for id := range guests {
		b := l.attach(node, block.PermConsistentRead|block.PermWrite)
		if b == nil {
			return
		}
		l.backends = append(l.backends, b)
		random := rand.New(rand.NewPCG(l.random.Uint64(), uint64(id)))
		g := &guest{life: l, b: b, random: random, id: int64(id), idle: time.Duration(1+random.Int64N(20)) * time.Millisecond}
		l.guests.Go(g.work)
	}
}

type guest struct {
	*life
	b      *block.Backend
	random *rand.Rand
	id     int64
	idle   time.Duration
}

func (g *guest) work() {
	for {
		select {
		case <-g.stop:
			return
		case <-time.After(time.Duration(g.random.Int64N(int64(g.idle)))):
		}
		if err := g.request(); err != nil {
			g.mu.Lock()
			if !g.frozen {
				g.wrong("guest %d: %v", g.id, err)
			}
			g.mu.Unlock()
			return
		}
	}
}

// place is where a request goes: some places are used often.
func (g *guest) place() (off, n int64) {
	number := g.random.Int64N(g.size / stripe / guests)
	if g.random.IntN(3) > 0 {
		number %= 3
	}
	first, count := g.random.Int64N(stripe/sector), int64(stripe/sector)
	n = min(1+g.random.Int64N(1+g.random.Int64N(count)), count-first)
	return (number*guests+g.id)*stripe + first*sector, n * sector
}

func (g *guest) request() (err error) {
	ctx, j := context.Background(), g.journal
	off, n := g.place()
	flags, durable := block.Flags(0), false
	if g.random.IntN(6) == 0 {
		flags, durable = block.FUA, true
	}
	switch chance := g.random.IntN(20); {
	case chance < 11:
		p := make([]byte, n)
		j.fill(p, j.begin(off, n, false))
		if err = g.b.WriteAt(ctx, p, off, flags); err == nil {
			j.answer(off, n, durable)
		}
	case chance < 13:
		j.begin(off, n, true)
		if err = g.b.WriteZeroes(ctx, off, n, flags|block.MayUnmap); err == nil {
			j.answer(off, n, durable)
		}
	case chance < 14:
		j.begin(off, n, true)
		err = g.b.Discard(ctx, off, n) // what it reads as is not told
	case chance < 17:
		began := j.flushing()
		if err = g.b.Flush(ctx); err == nil {
			j.flushed(began)
		}
	default:
		p := make([]byte, n)
		if err = g.b.ReadAt(ctx, p, off); err == nil {
			if err := j.read(p, off, nothing); err != nil {
				g.wrong("read of guest %d: %v", g.id, err)
			}
		}
	}
	return err
}
