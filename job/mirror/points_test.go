// SPDX-License-Identifier: Apache-2.0

package mirror

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/blocktest"
	"github.com/blkmirror/blkmirror/job"
)

// TestAtEveryPoint does something to a mirror at each request that reaches one of its disks, from its first probe to its last
// flush: everything must come to a good end from there.
func TestAtEveryPoint(t *testing.T) {
	for _, what := range []string{"cancel", "soft cancel", "pause", "fail", "stop", "ignore", "background", "write-blocking", "drain", "finalize"} {
		t.Run(what, func(t *testing.T) {
			reached := false
			for point := 1; point == 1 || reached; point++ {
				in(t, func(t *testing.T) { reached = pointed(t, what, point) })
				if t.Failed() || point > 500 {
					t.Fatalf("%s at request %d", what, point)
				}
			}
		})
	}
}

func pointed(t *testing.T, what string, point int) (reached bool) {
	const size = 640 * kib
	content := pattern(1, size)
	clear(content[100*kib : 300*kib])
	old := pattern(2, size)
	r := newRig(t, newDisk(1, content, blocktest.MemOptions{}), newDisk(2, old, blocktest.MemOptions{NoZeroUnmap: point%2 == 0}), unmapping, unmapping)
	var n atomic.Int64
	var m atomic.Pointer[Mirror]
	act := func(c blocktest.Call) error {
		time.Sleep(time.Millisecond)
		if c.Op == block.OpStatus && strings.Contains("fail ignore stop", what) {
			return nil // ends the job whatever the policy is
		}
		if m.Load() == nil || int(n.Add(1)) != point {
			return nil
		}
		j := m.Load().job
		switch what {
		case "cancel":
			_ = j.Cancel(nil)
		case "soft cancel":
			_ = j.SoftCancel(false, nil)
		case "pause":
			_ = j.Pause(nil)
		case "fail", "ignore", "stop":
			return syscall.EIO
		case "background":
			m.Load().ChangeMode(Background, false)
		case "write-blocking":
			m.Load().ChangeMode(WriteBlocking, false)
		case "drain":
			go func() {
				_ = r.graph.Change(bg, func(tx *block.Tx) error {
					err := tx.Drain(bg, nil, r.sn)
					time.Sleep(20 * time.Millisecond)
					return err
				})
			}()
		}
		return nil
	}
	r.source.onRequest(act)
	r.target.onRequest(func(c blocktest.Call) error {
		if c.Op == block.OpRead {
			return nil // of a probe, as block status
		}
		return act(c)
	})
	stop := make(chan struct{})
	guest := at(func() {
		for i := uint64(1); ; i++ {
			select {
			case <-stop:
				return
			case <-time.After(3 * time.Millisecond):
			}
			off := int64(i*7919*61) % (size - 70*kib)
			if i%3 == 0 {
				_ = r.guest.WriteZeroes(bg, off, int64(i*977)%(70*kib)+1, block.MayUnmap)
			} else {
				_ = r.guest.WriteAt(bg, pattern(i, int64(i*1999)%(70*kib)+1), off, 0)
			}
		}
	})
	policy := map[string]job.Policy{"ignore": job.PolicyIgnore, "stop": job.PolicyStop}[what]
	o := Options{Mode: Mode(point / 2 % 2), AutoFinalize: what != "finalize", OnSourceError: policy, OnTargetError: policy, BufSize: 128 * kib}
	m.Store(r.start(o))
	j := m.Load().job
	over := func() bool {
		select {
		case <-j.Done():
			return true
		default:
			return false
		}
	}
	for turn := 0; !over(); turn++ {
		if turn > 2000 {
			t.Errorf("stuck: %+v %s", m.Load().State(), r.events.of("m"))
			_ = j.Cancel(nil)
		}
		time.Sleep(10 * time.Millisecond)
		_ = j.Resume(nil)
		_ = j.Complete(nil)
		if j.Info().Status == job.Pending && turn%7 == 0 {
			_ = j.Finalize(nil)
		}
	}
	close(stop)
	guest()
	time.Sleep(time.Second)
	life := r.events.of("m")
	if bad := illegal(life); bad != "" || !strings.HasSuffix(life, "null") {
		t.Errorf("%s: %s", life, bad)
	}
	reached = int(n.Load()) >= point
	err, on := j.Err(), r.guest.Node()
	switch {
	case err != nil && on != r.sn || on != r.sn && on != r.tn:
		t.Errorf("ended with %v on '%s'", err, on.Name())
	case errors.Is(err, job.ErrCancelled) && what != "cancel" && what != "soft cancel":
		t.Errorf("cancelled: %s", life)
	case err != nil && !errors.Is(err, job.ErrCancelled) && what != "fail":
		t.Errorf("failed with %v: %s", err, life)
	}
	return reached
}

func (r *rig) refused(o Options, want string) {
	r.t.Helper()
	if o.JobID == "" {
		o.JobID = "other"
	}
	if o.Source == nil {
		o.Source, o.Target = r.sn, r.tn
	}
	m, err := Start(bg, r.graph, r.jobs, o, nil)
	if err == nil {
		_ = m.job.Cancel(nil)
		<-m.job.Done()
		r.t.Errorf("not refused: %s", want)
	} else if !strings.Contains(err.Error(), want) {
		r.t.Errorf("refused with %q, want %q", err, want)
	}
}

func TestRefusals(t *testing.T) {
	in(t, func(t *testing.T) {
		r := plain(t, 64*kib)
		r.refused(Options{JobID: "1"}, "Invalid job ID")
		r.refused(Options{Granularity: 1000}, "power of 2")
		r.refused(Options{Granularity: 256}, "granularity")
		r.refused(Options{BufSize: -1}, "buf-size")
		r.refused(Options{Speed: -1}, "speed")
		r.refused(Options{Source: r.sn, Target: r.sn}, "into itself")
		r.refused(Options{FilterName: "source"}, "Duplicate")
		must(t, r.target.WriteAt(bg, pattern(1, 10), 5, 0))
		r.refused(Options{TargetIsZero: true}, "target-is-zero")
		writer := blocktest.Attach(t, r.graph, r.tn, "writer", block.PermWrite, block.PermAll)
		r.refused(Options{}, "writer")
		blocktest.Detach(t, r.graph, writer)
		if users := r.graph.Users(r.sn); fmt.Sprint(users) != "[guest]" || r.guest.Node() != r.sn {
			t.Errorf("a refused mirror left traces: %v", users)
		}
		m := r.start(Options{Mode: Background})
		r.refused(Options{JobID: "m"}, "already in use")
		r.refused(Options{}, "")
		r.refused(Options{Source: r.tn, Target: r.sn}, "")
		r.ready(m)
		must(t, m.job.Cancel(nil))
		r.over(m)
	})
}

func TestSizesDiffer(t *testing.T) {
	in(t, func(t *testing.T) {
		r := newRig(t, newDisk(1, nil, blocktest.MemOptions{Size: 64 * kib}), newDisk(2, nil, blocktest.MemOptions{Size: 128 * kib}), unmapping, unmapping)
		m := r.start(Options{})
		r.over(m)
		if got := r.events.of("m"); got != "created running aborting COMPLETED concluded null" || m.job.Err() != errSizes {
			t.Errorf("%s, %v", got, m.job.Err())
		}
	})
}

// A pivot that the permissions of the target's other users forbid fails the job, and leaves guests where they are.
func TestPivotForbidden(t *testing.T) {
	in(t, func(t *testing.T) {
		r := plain(t, 64*kib)
		other := blocktest.Attach(t, r.graph, r.sn, "resizer", block.PermResize, block.PermAll)
		m := r.start(Options{AutoFinalize: true})
		r.ready(m)
		blocker := blocktest.Attach(t, r.graph, r.tn, "keeper", 0, block.PermAll&^block.PermResize)
		must(t, m.job.Complete(nil))
		r.over(m)
		if m.job.Err() == nil || r.guest.Node() != r.sn || other.Node() != r.sn {
			t.Errorf("ended with %v on '%s'", m.job.Err(), r.guest.Node().Name())
		}
		if bad := illegal(r.events.of("m")); bad != "" {
			t.Error(bad)
		}
		blocktest.Detach(t, r.graph, blocker)
		must(t, r.guest.WriteAt(bg, pattern(1, 10), 5, 0))
	})
}

// Zeroes that the target has already cost nothing there, whatever their alignment and on whichever path.
func TestRedundantZeroesCostNothing(t *testing.T) {
	for _, mode := range []Mode{Background, WriteBlocking} {
		for _, detect := range []block.DetectZeroes{block.DetectZeroesOff, block.DetectZeroesOn} {
			in(t, func(t *testing.T) {
				const size = 1*mib + 512
				target := newDisk(2, nil, blocktest.MemOptions{Size: size})
				r := newRig(t, newDisk(1, nil, blocktest.MemOptions{Size: size}), target, unmapping, block.Options{Discard: true, DetectZeroes: detect})
				m := r.start(Options{Mode: mode, AutoFinalize: true, Granularity: 4 * kib})
				r.ready(m)
				for i, span := range [][2]int64{{0, size}, {0, 1}, {5, 10000}, {4096, 8192}, {size - 1, 1}, {1 * mib, 512}, {77777, 500000}} {
					must(t, r.guest.WriteZeroes(bg, span[0], span[1], one[block.Flags](rand.New(rand.NewPCG(uint64(i), 1)), 0, block.MayUnmap, block.FUA, block.FUA|block.MayUnmap)))
					if i < 4 { // then the source has zeroes as data, of which a trim leaves parts
						must(t, r.guest.Discard(bg, span[0], span[1]))
					} else if detect != block.DetectZeroesOff || mode == Background {
						must(t, r.guest.WriteAt(bg, make([]byte, span[1]), span[0], 0))
					}
					must(t, r.guest.Flush(bg))
				}
				time.Sleep(time.Second)
				if n := target.changes(); mode == WriteBlocking && n != 0 {
					t.Errorf("%s: %d requests changed the target", mode, n)
				} else if _, written := target.mem.Count(block.OpWrite); detect != block.DetectZeroesOff && written != 0 {
					t.Errorf("%s: %d bytes were written", mode, written)
				}
				if i := m.job.Info(); i.Current != i.Total {
					t.Errorf("%s: progress %d of %d", mode, i.Current, i.Total)
				}
				must(t, m.job.Complete(nil))
				r.over(m)
				r.same()
			})
		}
	}
}

// The speed holds from the first byte on, and changes at once.
func TestSpeed(t *testing.T) {
	in(t, func(t *testing.T) {
		const size, speed = 16 * mib, 1 * mib
		r := plain(t, size)
		type read struct {
			at time.Time
			n  int64
		}
		var reads []read
		r.target.onRequest(func(c blocktest.Call) error {
			if c.Op == block.OpWrite {
				reads = append(reads, read{time.Now(), c.Len})
			}
			return nil
		})
		began := time.Now()
		m := r.start(Options{Mode: Background, AutoFinalize: true, Speed: speed, BufSize: 1 * mib})
		passed := func(from, until time.Duration) (n int64) {
			for _, r := range reads {
				if d := r.at.Sub(began); from <= d && d < until {
					n += r.n
				}
			}
			return n
		}
		time.Sleep(5 * time.Second)
		synctest.Wait()
		for from := time.Duration(0); from <= 4*time.Second; from += 50 * time.Millisecond {
			if n := passed(from, from+time.Second); n > speed*110/100+128*kib || n < speed*90/100-128*kib {
				t.Errorf("%d bytes in the second from %v on", n, from)
			}
		}
		must(t, m.job.SetSpeed(4*speed))
		time.Sleep(time.Second)
		synctest.Wait()
		if n := passed(5*time.Second, 6*time.Second); n > 4*speed*110/100+512*kib || n < 4*speed*90/100-512*kib {
			t.Errorf("%d bytes in the second after raising", n)
		}
		must(t, m.job.SetSpeed(speed/4))
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if n := passed(6100*time.Millisecond, 8*time.Second); n > speed/2*110/100+128*kib {
			t.Errorf("%d bytes in the two seconds after lowering", n)
		}
		must(t, m.job.SetSpeed(0))
		time.Sleep(time.Millisecond)
		synctest.Wait()
		if !m.job.IsReady() {
			t.Error("not ready at once without a limit")
		}
		must(t, m.job.Complete(nil))
		r.over(m)
		r.same()
	})
}
