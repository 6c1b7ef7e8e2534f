// SPDX-License-Identifier: Apache-2.0

// Package chaintest tries jobs on backing chains: a chain of disks in memory, guests that write to its top all the time, and a
// flat copy of what they must read.
package chaintest

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/blocktest"
	"github.com/blkmirror/blkmirror/job"
)

// Recorder keeps what happens to jobs.
type Recorder struct {
	mu  sync.Mutex
	log []string
}

func (r *Recorder) note(what string) {
	r.mu.Lock()
	r.log = append(r.log, what)
	r.mu.Unlock()
}

// StatusChanged and the other methods take down one word for each event.
func (r *Recorder) StatusChanged(_ string, s job.Status) { r.note(s.String()) }
func (r *Recorder) BecameReady(i job.Info)               { r.note("READY " + figures(i)) }
func (r *Recorder) BecamePending(job.Info)               { r.note("PENDING") }
func (r *Recorder) Cancelled(job.Info)                   { r.note("CANCELLED") }
func (r *Recorder) Failed(_ string, f job.Failure) {
	r.note(fmt.Sprintf("ERROR(%v,%s)", f.Read, f.Action))
}
func (r *Recorder) Completed(i job.Info) {
	if i.Error != "" {
		r.note("COMPLETED(" + i.Error + ")")
		return
	}
	r.note("COMPLETED " + figures(i))
}

func figures(i job.Info) string { return fmt.Sprintf("%d/%d", i.Current, i.Total) }

// String is all of it.
func (r *Recorder) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Join(r.log, " ")
}

// Layer is one disk of a chain.
type Layer struct {
	Node    *block.Node
	Overlay *blocktest.Overlay // nil for a disk without layers below it
	Mem     *blocktest.Mem     // where its data lies
}

// Rig is a chain and its guest.
type Rig struct {
	T      testing.TB
	Graph  *block.Graph
	Jobs   *job.Registry
	Events *Recorder
	Layers []Layer // from the bottom up
	Guest  *block.Backend

	delay  atomic.Int64  // most time that a request to a disk takes, nanoseconds
	fault  atomic.Uint64 // one in so many requests fails; 0 for none
	model  []byte        // what the guest reads; each guest has its own part
	stop   chan struct{}
	guests sync.WaitGroup
}

// Ctx is what requests run under.
var Ctx = context.Background()

// New makes a chain with a base of that many bytes, of plain memory.
func New(t testing.TB, base []byte) *Rig {
	r := &Rig{T: t, Graph: block.NewGraph(), Events: &Recorder{}, stop: make(chan struct{})}
	r.Jobs = job.NewRegistry(r.Events)
	mem := blocktest.NewMemOf(base, blocktest.MemOptions{})
	n := blocktest.NewNode(t, r.Graph, "base", mem, block.Options{Discard: true})
	r.Layers = append(r.Layers, Layer{Node: n, Mem: mem})
	return r
}

// AddOverlay puts a layer on the chain.
func (r *Rig) AddOverlay(o blocktest.OverlayOptions) *Layer {
	l := r.Overlay(fmt.Sprintf("layer%d", len(r.Layers)), r.Top(), o)
	r.Layers = append(r.Layers, l)
	return &r.Layers[len(r.Layers)-1]
}

// Overlay makes a disk over a node, or over nothing, that is not part of the chain.
func (r *Rig) Overlay(name string, below *block.Node, o blocktest.OverlayOptions) (l Layer) {
	var children []block.Child
	if below != nil {
		children = []block.Child{{Name: "backing", Node: below}}
	}
	l.Node = blocktest.NewParent(r.T, r.Graph, name, block.Options{Discard: true}, children,
		func(edges []*block.Edge) (block.Driver, error) {
			var backing *block.Edge
			if len(edges) > 0 {
				backing = edges[0]
			}
			l.Overlay = blocktest.NewOverlay(backing, o)
			return l.Overlay, nil
		})
	l.Mem = l.Overlay.Own
	r.T.Cleanup(func() { _ = l.Overlay.Close() })
	return l
}

// Top is the node that a guest would use.
func (r *Rig) Top() *block.Node { return r.Layers[len(r.Layers)-1].Node }

// Slow has the requests to all disks take time, and from then on fail when faults are on.
func (r *Rig) Slow(layers []Layer, random *rand.Rand, most time.Duration) {
	r.delay.Store(int64(most))
	var mu sync.Mutex
	for _, l := range layers {
		l.Mem.SetHook(func(_ context.Context, c blocktest.Call) error {
			mu.Lock()
			wait, draw := random.Int64N(max(r.delay.Load(), 1)), random.Uint64()
			mu.Unlock()
			time.Sleep(time.Duration(wait))
			if one := r.fault.Load(); one > 0 && draw%one == 0 && c.Op != block.OpResize {
				return syscall.EIO
			}
			return nil
		})
	}
}

// Hurry has the requests to all disks take no time any more.
func (r *Rig) Hurry() { r.delay.Store(0) }

// Faults has one in so many requests fail; 0 for none. The guest must not run: it expects no errors.
func (r *Rig) Faults(one uint64) { r.fault.Store(one) }

// Attach takes the guest's view of the chain as the model.
func (r *Rig) Attach() {
	r.Guest = blocktest.Attach(r.T, r.Graph, r.Top(), "guest", block.PermConsistentRead|block.PermWrite, block.PermAll&^block.PermResize)
	r.model = r.Read(r.Top())
}

// Model is what the guest must read. No guest runs.
func (r *Rig) Model() []byte { return r.model }

// Read is all that a node shows.
func (r *Rig) Read(n *block.Node) []byte {
	r.T.Helper()
	p := make([]byte, n.Size())
	if err := n.ReadAt(Ctx, p, 0); err != nil {
		r.T.Fatalf("reading node '%s': %v", n.Name(), err)
	}
	return p
}

// Guests starts so many guests, each with a part of the disk.
func (r *Rig) Guests(many int, seed uint64, gap time.Duration) {
	size := int64(len(r.model))
	for i := range int64(many) {
		from, end := (size*i/int64(many))&^511, (size*(i+1)/int64(many))&^511
		random := rand.New(rand.NewPCG(seed, uint64(i)))
		r.guests.Go(func() {
			for {
				select {
				case <-r.stop:
					return
				default:
				}
				time.Sleep(time.Duration(random.Int64N(int64(gap))))
				if end > from {
					r.Request(random, from, end)
				}
			}
		})
	}
}

// Request is one request of a guest to a range, and what it must bring.
func (r *Rig) Request(random *rand.Rand, from, end int64) {
	n := 512 * (1 + random.Int64N(min(300, (end-from)/512)))
	if random.IntN(3) == 0 {
		n = min(n, 512*(1+random.Int64N(4)))
	}
	off := from + 512*random.Int64N((end-from-n)/512+1)
	var err error
	switch kind := random.IntN(10); {
	case kind < 4:
		p := bytes.Repeat([]byte{byte(1 + random.IntN(255))}, int(n))
		err = r.Guest.WriteAt(Ctx, p, off, 0)
		copy(r.model[off:], p)
	case kind < 6:
		err = r.Guest.WriteZeroes(Ctx, off, n, block.Flags(random.IntN(2))*block.MayUnmap)
		clear(r.model[off : off+n])
	case kind < 7:
		if err = r.Guest.Discard(Ctx, off, n); err == nil {
			err = r.Guest.ReadAt(Ctx, r.model[off:off+n], off) // whatever that leaves, it has to stay so
		}
	case kind < 8:
		err = r.Guest.Flush(Ctx)
	default:
		r.Check(off, n)
	}
	if err != nil {
		r.T.Errorf("a guest's request to %d+%d: %v; %s", off, n, err, r.Events)
	}
}

// Check compares what the guest reads with what it must read.
func (r *Rig) Check(off, n int64) {
	p := make([]byte, n)
	if err := r.Guest.ReadAt(Ctx, p, off); err != nil {
		r.T.Errorf("a guest's read of %d+%d: %v", off, n, err)
		return
	}
	if at := Differ(p, r.model[off:off+n]); at >= 0 {
		r.T.Errorf("the guest reads %#x at %d, and not %#x; %s", p[at], off+int64(at), r.model[off+int64(at)], r.Events)
	}
}

// StopGuests ends the guests and checks the whole disk.
func (r *Rig) StopGuests() {
	close(r.stop)
	r.guests.Wait()
	r.stop = make(chan struct{})
	r.Check(0, int64(len(r.model)))
}

// Differ is the first byte in which two disks of the same length differ, -1 if there is none.
func Differ(a, b []byte) int {
	if bytes.Equal(a, b) {
		return -1
	}
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

// Fill writes at random to the layer that is the top so far.
func (r *Rig) Fill(random *rand.Rand, times int) {
	r.T.Helper()
	n := r.Top()
	for range times {
		length := 512 * (1 + random.Int64N(min(200, n.Size()/512)))
		off := 512 * random.Int64N((n.Size()-length)/512+1)
		var err error
		switch random.IntN(4) {
		case 0:
			err = n.WriteZeroes(Ctx, off, length, 0)
		default:
			err = n.WriteAt(Ctx, bytes.Repeat([]byte{byte(1 + random.IntN(255))}, int(length)), off, 0)
		}
		if err != nil {
			r.T.Fatal(err)
		}
	}
}

// Random makes a chain at random, with two to five layers of different sizes and cluster sizes.
func Random(t testing.TB, random *rand.Rand) *Rig {
	size := func() int64 { return 512 * (1 + random.Int64N(4096)) }
	base := bytes.Repeat([]byte{0xba}, int(size()))
	r := New(t, base)
	last := int64(len(base))
	for range 1 + random.IntN(4) {
		o := blocktest.OverlayOptions{Size: last, Cluster: 512 << random.IntN(9)}
		if random.IntN(3) == 0 {
			o.Size = size()
		}
		last = o.Size
		r.AddOverlay(o)
		r.Fill(random, random.IntN(20))
	}
	return r
}
