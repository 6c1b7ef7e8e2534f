// SPDX-License-Identifier: Apache-2.0

package mirror

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/blocktest"
)

// crowded makes requests to a disk take the longer the more of them there are: two milliseconds times the square of their
// number, a whole MiB as often again.
func crowded(d *disk) {
	var inside atomic.Int64
	d.onRequest(func(c blocktest.Call) error {
		if c.Op == block.OpRead || c.Op == block.OpWrite {
			n := inside.Add(1)
			time.Sleep(time.Duration(n*n) * 2 * time.Millisecond)
			if c.Len >= mib {
				time.Sleep(time.Duration(n*n) * 2 * time.Millisecond)
			}
			inside.Add(-1)
		}
		return nil
	})
}

// load is what some guests do, and how long it took them.
type load struct {
	stop atomic.Bool
	all  sync.WaitGroup
	mu   sync.Mutex
	took []time.Duration
}

func (r *rig) load(guests int, writes bool) *load {
	l := &load{}
	for i := range guests {
		l.all.Go(func() {
			random := rand.New(rand.NewPCG(7, uint64(i)))
			p := pattern(uint64(i), 4096)
			for !l.stop.Load() {
				off := random.Int64N(r.source.Size()/4096) * 4096
				began := time.Now()
				if writes && random.IntN(10) == 0 {
					must(r.t, r.guest.WriteAt(bg, p, off, 0))
				} else {
					must(r.t, r.guest.ReadAt(bg, make([]byte, 4096), off))
				}
				l.mu.Lock()
				l.took = append(l.took, time.Since(began))
				l.mu.Unlock()
				time.Sleep(time.Millisecond)
			}
		})
	}
	return l
}

// mean is how long a request took on average since mean was called last.
func (l *load) mean() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	var sum time.Duration
	for _, d := range l.took {
		sum += d
	}
	n := len(l.took)
	l.took = l.took[:0]
	return sum / time.Duration(max(n, 1))
}

func (l *load) end() {
	l.stop.Store(true)
	l.all.Wait()
}

// With a limit guests' requests take about as long as they may while the copy goes on and gets to its end; without one
// the copy takes what it can.
func TestMaxGuestLatency(t *testing.T) {
	const size, most = 64 * mib, 24 * time.Millisecond
	for _, mode := range []Mode{Background, WriteBlocking} {
		t.Run(mode.String(), func(t *testing.T) {
			measure := func(o Options) (mean, estimate, passed time.Duration, kept float64) {
				in(t, func(t *testing.T) {
					r := plain(t, size)
					crowded(r.source)
					l := r.load(2, true)
					time.Sleep(time.Second)
					o.Mode, o.AutoFinalize, o.Offload, o.Granularity = mode, true, OffloadOff, 4*kib
					began := time.Now()
					m := r.start(o)
					l.mean()
					if o.MaxGuestLatency > 0 {
						time.Sleep(2 * time.Second) // it finds its speed
						l.mean()
					}
					looks := 0
					for !m.job.IsReady() && looks < 300 {
						time.Sleep(100 * time.Millisecond)
						s := m.State()
						estimate += s.GuestLatency
						looks++
						if s.GuestLatency <= most {
							kept++
						}
					}
					mean, estimate, kept = l.mean(), estimate/time.Duration(max(looks, 1)), kept/float64(max(looks, 1))
					r.ready(m)
					passed = time.Since(began)
					l.end()
					must(t, m.job.Complete(nil))
					r.over(m)
					must(t, m.job.Err())
					r.same()
				})
				return mean, estimate, passed, kept
			}
			mean, estimate, passed, kept := measure(Options{MaxGuestLatency: most})
			t.Logf("with the limit %v: on average %v, estimated %v, kept %.2f of the time, ready after %v", most, mean, estimate, kept, passed)
			if mean > most/2 || estimate > most*2 || kept < 0.4 {
				t.Errorf("with a limit of %v requests took %v, and were estimated to take %v in the worse cases", most, mean, estimate)
			}
			free, none, soon, _ := measure(Options{})
			t.Logf("without: on average %v, ready after %v", free, soon)
			if none != 0 || free < 2*mean || soon > passed {
				t.Errorf("without a limit requests took %v, were estimated to take %v, and the job was ready after %v", free, none, soon)
			}
		})
	}
}

// The limit changes while the job runs, the operator's speed holds besides, and what cannot be reached does not keep the job from
// its end.
func TestMaxGuestLatencyChanges(t *testing.T) {
	in(t, func(t *testing.T) {
		r := plain(t, 64*mib)
		crowded(r.source)
		l := r.load(2, false)
		const speed = 4 * mib
		m := r.start(Options{Mode: WriteBlocking, AutoFinalize: true, Offload: OffloadOff, Speed: speed, MaxGuestLatency: time.Second})
		time.Sleep(5 * time.Second)
		if n := m.State().Bytes.Copied; n < 4*speed || n > 6*speed {
			t.Errorf("with a limit that is never met %d bytes were copied in 5 s with speed %d", n, speed)
		}
		m.SetMaxGuestLatency(time.Microsecond)
		time.Sleep(5 * time.Second)
		if s := m.State(); s.Braked != leastSpeed || s.MaxGuestLatency != time.Microsecond || s.GuestLatency < time.Microsecond {
			t.Errorf("with a limit that nothing meets the state is %+v", s)
		}
		before := m.State().Bytes.Copied
		time.Sleep(5 * time.Second)
		if n := m.State().Bytes.Copied - before; n < 4*leastSpeed || n > 6*leastSpeed {
			t.Errorf("%d bytes were copied in 5 s, with %d a second at least", n, leastSpeed)
		}
		m.SetMaxGuestLatency(0)
		must(t, m.job.SetSpeed(0))
		time.Sleep(3 * time.Second)
		if s := m.State(); s.Braked != 0 || s.GuestLatency != 0 || !m.job.IsReady() {
			t.Errorf("without limits the state is %+v", s)
		}
		l.end()
		must(t, m.job.Complete(nil))
		r.over(m)
		r.same()
	})
}

// The estimate lies above nearly all of what requests take, and follows when that changes.
func TestLatencyEstimate(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for name, draw := range map[string]func() time.Duration{
		"constant": func() time.Duration { return time.Millisecond },
		"normal": func() time.Duration {
			return time.Duration((1 + max(random.NormFloat64()/5, -1)) * float64(time.Millisecond))
		},
		"exponential": func() time.Duration { return time.Duration(random.ExpFloat64() * float64(time.Millisecond)) },
		"two kinds": func() time.Duration {
			if random.IntN(10) == 0 {
				return 10 * time.Millisecond
			}
			return time.Millisecond
		},
	} {
		var l latency
		var above, estimates float64
		const n = 20000
		for range n {
			took := draw()
			if took > l.estimate()+latencyUnit*latencyPart {
				above++
			}
			l.add(took)
			estimates += float64(l.estimate()) / n
		}
		t.Logf("%s: %v on average, %.1f %% took longer", name, time.Duration(estimates), above/n*100)
		if above/n > 0.08 {
			t.Errorf("%s: %.1f %% of requests took longer than estimated", name, above/n*100)
		}
		for range 200 {
			l.add(100 * time.Microsecond)
		}
		if e := l.estimate(); e > 110*time.Microsecond {
			t.Errorf("%s: after 200 requests of 100 µs the estimate is %v", name, e)
		}
	}
}

func TestLatencyLongest(t *testing.T) {
	var l latency
	for range 1000 {
		l.add(1 << 62)
	}
	if e := l.estimate(); e < 200*time.Second {
		t.Errorf("requests that take for ever are estimated to take %v", e)
	}
}

// What guests send allocates nothing more with a limit than without.
func TestLatencyAllocatesNothing(t *testing.T) {
	var l latency
	for _, most := range []int64{0, 1} {
		l.most.Store(most)
		if n := testing.AllocsPerRun(100, func() { l.end(l.begin()) }); n > 0 {
			t.Errorf("%v allocations", n)
		}
	}
}

func BenchmarkLatency(b *testing.B) {
	for name, most := range map[string]int64{"off": 0, "on": 1} {
		b.Run(name, func(b *testing.B) {
			var l latency
			l.most.Store(most)
			b.ReportAllocs()
			b.RunParallel(func(p *testing.PB) {
				for p.Next() {
					l.end(l.begin())
				}
			})
		})
	}
}
