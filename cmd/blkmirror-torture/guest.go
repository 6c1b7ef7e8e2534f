// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/blkmirror/blkmirror/block/nbd/nbdguest"
)

// Limits of a guest's requests, in sectors.
const (
	maxDataSectors = 64 << 10 / sectorSize
	maxZeroSectors = 512 << 10 / sectorSize
)

// guest is a client of the exported disk with a few requests at a time. It connects again whenever its connection ends. Its
// requests do not overlap with each other or those of other guests of the disk, as those of a cluster's filesystem.
type guest struct {
	socket, export string
	model          *model
	pause          time.Duration                                           // between the requests of a lane, on average
	forgive        func(errno nbdguest.Errno, t nbdguest.CommandType) bool // errors that the guest may see
	hot            bool                                                    // most requests go to the same few places
	durable        bool                                                    // every request asks for FUA: formats keep tables in memory until then
	late           func() bool                                             // whether a request that was not answered may be carried out later

	cancel context.CancelCauseFunc
	lanes  sync.WaitGroup
	done   atomic.Int64 // requests that were answered
	writes atomic.Int64 // bytes of data in them
	lost   atomic.Int64 // requests whose answer was lost
	again  atomic.Int64 // connections after the first one
	failed atomic.Int64 // requests that ended with an error that was to be expected

	mu struct {
		sync.Mutex
		client  *nbdguest.Client
		dialing chan struct{} // closed when somebody's attempt to connect is over
		held    chan struct{} // closed when requests may begin again; nil while they may
		active  int
		worst   time.Duration // longest time of a request that was answered on the connection that it was sent on last
		err     error
		changed chan struct{} // closed, and replaced, when active or err changes
	}
}

// start starts the guest's lanes.
func (g *guest) start(seed uint64, lanes int) {
	ctx, cancel := context.WithCancelCause(context.Background())
	g.cancel = cancel
	g.mu.changed = make(chan struct{})
	for i := range lanes {
		random := rand.New(rand.NewPCG(seed, uint64(i)+1))
		g.lanes.Go(func() {
			if err := g.lane(ctx, random); ctx.Err() == nil {
				g.update(func() {
					if g.mu.err == nil {
						g.mu.err = err
					}
				})
			}
		})
	}
}

// end ends the guest.
func (g *guest) end() {
	g.cancel(errors.New("the guest has ended"))
	g.drop()
	g.lanes.Wait()
}

// drop ends the guest's connection as if the guest had died.
func (g *guest) drop() {
	g.mu.Lock()
	c := g.mu.client
	g.mu.client = nil
	g.mu.Unlock()
	if c != nil {
		c.Close()
	}
}

func (g *guest) update(f func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	f()
	close(g.mu.changed)
	g.mu.changed = make(chan struct{})
}

// hold lets the requests under way end, and no others begin.
func (g *guest) hold(ctx context.Context) error {
	g.mu.Lock()
	if g.mu.held == nil {
		g.mu.held = make(chan struct{})
	}
	g.mu.Unlock()
	for {
		g.mu.Lock()
		active, err, changed := g.mu.active, g.mu.err, g.mu.changed
		g.mu.Unlock()
		if err != nil || active == 0 {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("a guest's %d requests were not answered: %w", active, context.Cause(ctx))
		}
	}
}

func (g *guest) goOn() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.mu.held != nil {
		close(g.mu.held)
		g.mu.held = nil
	}
}

// error is what went wrong for the guest.
func (g *guest) error() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.mu.err
}

// slowest is the longest that a request took on one connection.
func (g *guest) slowest() time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.mu.worst
}

// begin waits until requests may begin, and notes that one does.
func (g *guest) begin(ctx context.Context) error {
	for {
		g.mu.Lock()
		held := g.mu.held
		if held == nil {
			g.mu.active++
		}
		g.mu.Unlock()
		if held == nil {
			return nil
		}
		select {
		case <-held:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// lane does one request after the other, until something goes wrong or ctx ends.
func (g *guest) lane(ctx context.Context, random *rand.Rand) error {
	for {
		if err := sleep(ctx, time.Duration(random.ExpFloat64()*float64(g.pause))); err != nil {
			return err
		}
		if err := g.begin(ctx); err != nil {
			return err
		}
		err := g.request(ctx, random)
		g.update(func() { g.mu.active-- })
		if err != nil {
			return err
		}
	}
}

// connection returns the guest's connection, a new one if there is none.
func (g *guest) connection(ctx context.Context) (*nbdguest.Client, error) {
	for {
		g.mu.Lock()
		if c := g.mu.client; c != nil {
			select {
			case <-c.Ended():
				g.mu.client = nil
			default:
				g.mu.Unlock()
				return c, nil
			}
		}
		dialing := g.mu.dialing
		if dialing == nil {
			g.mu.dialing = make(chan struct{})
		}
		g.mu.Unlock()
		if dialing != nil {
			select {
			case <-dialing:
				continue
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			}
		}
		attempt, cancel := context.WithTimeout(ctx, 15*time.Second)
		c, err := nbdguest.Dial(attempt, "unix", g.socket, g.export, nbdguest.Options{})
		cancel()
		g.mu.Lock()
		close(g.mu.dialing)
		g.mu.dialing = nil
		if err == nil {
			g.mu.client = c
			g.again.Add(1)
		}
		g.mu.Unlock()
		if err != nil {
			if err := sleep(ctx, 3*time.Millisecond); err != nil {
				return nil, err
			}
		}
	}
}

// request does one request of a random kind at a random place, and writes into the journal what becomes of it.
func (g *guest) request(ctx context.Context, random *rand.Rand) error {
	command, s, c := g.choose(random)
	defer g.model.release(s)
	for {
		client, err := g.connection(ctx)
		if err != nil {
			return err
		}
		began := time.Now()
		request := client.Submit(command)
		err = request.Wait(ctx)
		var refused *nbdguest.ReplyError
		switch {
		case err == nil:
			g.done.Add(1)
			g.mu.Lock()
			g.mu.worst = max(g.mu.worst, time.Since(began))
			g.mu.Unlock()
			return g.answered(request, command, s, c)
		case errors.As(err, &refused):
			if !g.forgive(refused.Errno, command.Type) {
				return fmt.Errorf("a guest was refused: %w", err)
			}
			g.failed.Add(1)
			g.doubt(command, s, c, false)
			return nil
		case errors.Is(err, nbdguest.ErrProtocol):
			return err
		}
		// Nobody knows whether it was carried out, or will be.
		g.lost.Add(1)
		g.doubt(command, s, c, errors.Is(err, nbdguest.ErrClosed) || g.late())
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if random.IntN(2) == 0 {
			return nil
		}
	}
}

// doubt notes that a request may have been carried out, or not.
func (g *guest) doubt(command nbdguest.Command, s span, c content, late bool) {
	switch command.Type {
	case nbdguest.CmdWrite, nbdguest.CmdWriteZeroes, nbdguest.CmdTrim:
		g.model.doubted(s, c, late)
	}
}

// answered notes what the disk must have now, or looks at what it has.
func (g *guest) answered(request *nbdguest.Request, command nbdguest.Command, s span, c content) error {
	switch command.Type {
	case nbdguest.CmdWrite, nbdguest.CmdWriteZeroes:
		g.writes.Add(s.bytes())
		g.model.wrote(s, c)
	case nbdguest.CmdTrim:
		g.model.trimmed(s)
	case nbdguest.CmdRead:
		if err := g.model.check(request.Data(), s.first); err != nil {
			return fmt.Errorf("a guest read: %w", err)
		}
	}
	return nil
}

// choose makes a request and claims its range. Most are small, as a guest's are; some are whole pages.
func (g *guest) choose(random *rand.Rand) (nbdguest.Command, span, content) {
	kind, limit := nbdguest.CmdWrite, int64(maxDataSectors)
	switch n := random.IntN(100); {
	case n < 55:
	case n < 67:
		kind, limit = nbdguest.CmdWriteZeroes, maxZeroSectors
	case n < 75:
		kind, limit = nbdguest.CmdTrim, maxZeroSectors
	case n < 80:
		kind, limit = nbdguest.CmdFlush, 0
	default:
		kind = nbdguest.CmdRead
	}
	if limit == 0 {
		return nbdguest.Command{Type: kind}, span{}, 0
	}
	s := g.claim(random, limit, kind != nbdguest.CmdRead)
	command := nbdguest.Command{Type: kind, Offset: uint64(s.offset()), Length: uint32(s.bytes())}
	c := content(0)
	if kind == nbdguest.CmdWrite {
		command.Data, c = make([]byte, s.bytes()), g.model.fresh()
		g.model.fill(command.Data, s.first, c)
	}
	if kind == nbdguest.CmdWriteZeroes && random.IntN(4) == 0 {
		command.Flags = nbdguest.NoHole
	}
	if kind != nbdguest.CmdRead && (g.durable || random.IntN(10) == 0) {
		command.Flags |= nbdguest.FUA
	}
	return command, s, c
}

func (g *guest) claim(random *rand.Rand, limit int64, writes bool) span {
	sectors := int64(len(g.model.mu.sectors)) // never changes
	// Room for all requests at once, with more to spare.
	if hot := int64(512 << 10 / sectorSize); g.hot && hot < sectors && random.IntN(4) > 0 {
		sectors, limit = hot, limit/8
	}
	for {
		length := 1 + random.Int64N(1+random.Int64N(limit))
		first := random.Int64N(sectors - length + 1)
		if random.IntN(2) == 0 {
			first, length = first&^7, min(sectors-first&^7, (length+7)&^7)
		}
		if s := (span{first, first + length}); g.model.claim(s, writes) {
			return s
		}
	}
}
