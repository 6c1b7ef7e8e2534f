// SPDX-License-Identifier: Apache-2.0

package mirror

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/blocktest"
	"github.com/blkmirror/blkmirror/block/budget"
	"github.com/blkmirror/blkmirror/job"
)

// busy has writes of data to a disk take some time, and counts those under way.
type busy struct {
	now, most atomic.Int64
	bytes     atomic.Int64
}

func (b *busy) watch(d *disk, took func(under int64) time.Duration) {
	d.onRequest(func(c blocktest.Call) error {
		if c.Op != block.OpWrite {
			return nil
		}
		n := b.now.Add(1)
		defer b.now.Add(-1)
		b.bytes.Add(c.Len)
		b.most.Store(max(n, b.most.Load()))
		time.Sleep(took(n))
		return nil
	})
}

// A mirror to a far target has many pieces in flight, as far as buf-size lets it, one to a disk that is busy with one has few.
func TestCopiesInFlight(t *testing.T) {
	far := func(int64) time.Duration { return 20 * time.Millisecond }
	near := func(under int64) time.Duration { return time.Duration(under) * time.Millisecond }
	for _, c := range []struct {
		name        string
		took        func(int64) time.Duration
		size        int64
		bufSize     int64
		memory      int64
		least, most int64
	}{
		{"far", far, 96 * mib, 0, 64 * mib, 16, 16},
		{"far, small buf-size", far, 32 * mib, 3 * mib, 64 * mib, 3, 3},
		{"far, little memory", far, 32 * mib, 0, 5 * mib, 3, 9},
		{"near", near, 64 * mib, 0, 64 * mib, 1, 4},
	} {
		t.Run(c.name, func(t *testing.T) {
			in(t, func(t *testing.T) {
				r := plain(t, c.size)
				r.jobs.ShareMemory(budget.New(c.memory))
				var b busy
				b.watch(r.target, c.took)
				m := r.start(Options{Mode: WriteBlocking, AutoFinalize: true, Offload: OffloadOff, BufSize: c.bufSize, Granularity: 64 * kib})
				r.ready(m)
				if n := b.most.Load(); n < c.least || n > c.most {
					t.Errorf("%d pieces were in flight, want %d to %d", n, c.least, c.most)
				}
				must(t, m.job.Complete(nil))
				r.over(m)
				r.same()
			})
		})
	}
}

// A target that does not answer holds what its mirror has in flight, and the other mirror goes on to its end all the same, with
// the smallest buffers.
func TestDeadTargetStarvesNobody(t *testing.T) {
	in(t, func(t *testing.T) {
		dead, r := plain(t, 8*mib), plain(t, 8*mib)
		memory := budget.New(mib)
		dead.jobs.ShareMemory(memory)
		r.jobs.ShareMemory(memory)
		release := make(chan struct{})
		dead.target.onRequest(func(c blocktest.Call) error {
			if c.Op == block.OpWrite {
				<-release
			}
			return nil
		})
		first := dead.start(Options{Mode: WriteBlocking, Offload: OffloadOff})
		time.Sleep(time.Second)
		if held := memory.Use().Held; held == 0 {
			t.Error("what is in flight is not counted")
		}
		second := r.start(Options{Mode: WriteBlocking, AutoFinalize: true, Offload: OffloadOff})
		r.ready(second)
		must(t, second.job.Complete(nil))
		r.over(second)
		r.same()
		close(release)
		dead.ready(first)
		must(t, first.job.Cancel(nil))
		dead.over(first)
		if u := memory.Use(); u.Held != 0 || u.Accounts != 0 {
			t.Errorf("in the end %+v is in use", u)
		}
	})
}

// Guests' writes in write-blocking mode are not held to the speed of the job, and count as work done.
func TestSpeedLeavesGuestsAlone(t *testing.T) {
	in(t, func(t *testing.T) {
		const speed = 64 * kib
		r := plain(t, 16*mib)
		m := r.start(Options{Mode: WriteBlocking, AutoFinalize: true, Offload: OffloadOff, Speed: speed, BufSize: 64 * kib})
		time.Sleep(time.Second)
		i, copied := m.job.Info(), m.State().Bytes.Copied
		began := time.Now()
		const n = 4 * mib
		for at := int64(0); at < n; at += mib {
			must(t, r.guest.WriteAt(bg, pattern(9, mib), 8*mib+at, 0))
		}
		if took := time.Since(began); took > 100*time.Millisecond {
			t.Errorf("writing %d bytes took guests %v beside a speed of %d", n, took, speed)
		}
		if done := m.job.Info().Current - i.Current; done < n || done > n+2*speed {
			t.Errorf("%d bytes count as done after guests wrote %d", done, n)
		}
		time.Sleep(4 * time.Second)
		if c := m.State().Bytes.Copied - copied; c < 3*speed || c > 6*speed {
			t.Errorf("the copy did %d bytes in 4 s beside guests with speed %d", c, speed)
		}
		must(t, m.job.SetSpeed(0))
		r.ready(m)
		must(t, m.job.Complete(nil))
		r.over(m)
		r.same()
	})
}

// ---- What is done for each request and each copy

// nothing is a disk that costs nothing.
type nothing struct{}

func (nothing) Size() int64                                                  { return 64 * mib }
func (nothing) ReadAt(context.Context, []byte, int64) error                  { return nil }
func (nothing) WriteAt(context.Context, []byte, int64, block.Flags) error    { return nil }
func (nothing) WriteZeroes(context.Context, int64, int64, block.Flags) error { return nil }
func (nothing) Discard(context.Context, int64, int64) error                  { return nil }
func (nothing) Flush(context.Context) error                                  { return nil }
func (nothing) Close() error                                                 { return nil }

// hot runs a mirror on disks that cost nothing, without virtual time.
func hot(t testing.TB, o Options) *Mirror {
	r := &rig{t: t, graph: block.NewGraph(), events: &recorder{current: map[string]int64{}}}
	r.jobs = job.NewRegistry(r.events)
	r.sn = blocktest.NewNode(t, r.graph, "source", nothing{}, unmapping)
	r.tn = blocktest.NewNode(t, r.graph, "target", nothing{}, unmapping)
	o.Sync = SyncNone
	m := r.start(o)
	t.Cleanup(func() {
		_ = m.job.Cancel(nil)
		<-m.job.Done()
	})
	for !m.job.IsReady() {
		time.Sleep(time.Millisecond)
	}
	return m
}

// TestHotPathsDoNotAllocate is the gate for what a guest's request costs beside a mirror: the filter, the planner, the estimate of
// latency. The mirror's own reactions are
// part of it: a write in background mode is copied at some time.
func TestHotPathsDoNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector has pools drop what they are given")
	}
	p, ctx := make([]byte, 4096), context.Background()
	for _, most := range []time.Duration{0, time.Hour} {
		for _, mode := range []Mode{Background, WriteBlocking} {
			m := hot(t, Options{Mode: mode, MaxGuestLatency: most})
			f := m.filter
			for name, do := range map[string]func() error{
				"read": func() error { return f.ReadAt(ctx, p, 8192) },
				"begin and end": func() error {
					o, err := f.begin(ctx, reqData, 8192, 4096)
					if err != nil {
						return err
					}
					return f.end(o, nil, nil)
				},
				"write":  func() error { return f.WriteAt(ctx, p, 8192, 0) },
				"zeroes": func() error { return f.WriteZeroes(ctx, 8192, 4096, 0) },
				"trim":   func() error { return f.Discard(ctx, 8192, 4096) },
				"flush":  func() error { return f.Flush(ctx) },
			} {
				if n := testing.AllocsPerRun(200, func() { must(t, do()) }); n > 0 {
					t.Errorf("%s, limit %v, %s: %v allocations", mode, most, name, n)
				}
			}
		}
	}
	for _, mode := range []Mode{Background, WriteBlocking} {
		p, err := newPlanner(1<<40, 64<<10, mode)
		must(t, err)
		p.skipScan()
		o := &op{}
		for name, do := range planned(p, o) {
			if n := testing.AllocsPerRun(200, do); n > 0 {
				t.Errorf("planner, %s, %s: %v allocations", mode, name, n)
			}
		}
	}
}

// planned are the ways through the planner.
func planned(p *planner, o *op) map[string]func() {
	at := int64(0)
	next := func() int64 {
		at = (at + 1<<20 + 4096) % (1 << 39)
		return at
	}
	guest := func(r request, n int64) {
		if !p.beginGuest(o, r, next(), n) {
			panic("nobody else holds anything")
		}
		p.endGuest(o, false, false)
	}
	return map[string]func(){
		"data":   func() { guest(reqData, 4096) },
		"zeroes": func() { guest(reqZero, 128<<10) },
		"copy": func() {
			p.d.Set(p.d.Outward(next(), 1<<20))
			for p.nextCopy(o, 1<<20, span{}, 0) != foundWork {
			}
			p.copyData(o, o.off, o.end)
			p.endCopy(o, false, false)
		},
	}
}

func BenchmarkPlanner(b *testing.B) {
	for _, mode := range []Mode{Background, WriteBlocking} {
		p, err := newPlanner(1<<40, 64<<10, mode)
		must(b, err)
		p.skipScan()
		for name, do := range planned(p, &op{}) {
			b.Run(mode.String()+"/"+name, func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					do()
				}
			})
		}
	}
}
