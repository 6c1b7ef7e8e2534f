// SPDX-License-Identifier: Apache-2.0

package mirror

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/blocktest"
	"github.com/blkmirror/blkmirror/job"
)

// told keeps what a mirror tells of its comparison.
type told struct {
	mu          sync.Mutex
	differences []Difference
	verified    int
	differing   int64
}

func (k *told) options(o Options) Options {
	o.Verify = true
	o.OnDifference = func(d Difference) {
		k.mu.Lock()
		k.differences = append(k.differences, d)
		k.mu.Unlock()
	}
	o.OnVerified = func(differing int64) {
		k.mu.Lock()
		k.verified++
		k.differing = differing
		k.mu.Unlock()
	}
	return o
}

// now is what was told so far.
func (k *told) now() (differences []Difference, verified int, differing int64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.differences), k.verified, k.differing
}

// covers says whether a difference was told that a byte lies in.
func (k *told) covers(at int64) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.ContainsFunc(k.differences, func(d Difference) bool { return d.Off <= at && at < d.Off+d.Len })
}

// A target loses a bit on its way, in whatever way: the mirror tells, and mends it, while a guest writes.
func TestVerifyMends(t *testing.T) {
	const size, where = 4*mib + 512, 3*mib + 77
	flip := func(r *rig) {
		p := make([]byte, 1)
		must(r.t, r.target.mem.ReadAt(bg, p, where))
		p[0] ^= 0x10
		must(r.t, r.target.mem.WriteAt(bg, p, where, 0))
	}
	spoilOnce := func(r *rig) {
		var once sync.Once
		f := func(p []byte, off int64) {
			if off <= where && where < off+int64(len(p)) {
				once.Do(func() { p[where-off] ^= 0x10 })
			}
		}
		r.target.spoils.Store(&f)
	}
	cases := map[string]struct {
		spoil func(r *rig) // before the mirror starts
		flip  bool         // when it is ready
		hole  bool         // source and target are zero
	}{
		"a write of the copy":            {spoil: spoilOnce},
		"behind the back":                {flip: true},
		"in a hole that counts as known": {flip: true, hole: true},
	}
	for name, c := range cases {
		for _, mode := range []Mode{Background, WriteBlocking} {
			for _, soft := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%v/soft=%v", name, mode, soft), func(t *testing.T) {
					in(t, func(t *testing.T) {
						content := pattern(1, size)
						if c.hole {
							clear(content[2*mib:])
						}
						source := newDisk(1, content, blocktest.MemOptions{})
						target := newDisk(2, nil, blocktest.MemOptions{Size: size})
						source.slow, target.slow = time.Millisecond, time.Millisecond
						r := newRig(t, source, target, unmapping, unmapping)
						if c.spoil != nil {
							c.spoil(r)
						}
						if c.flip {
							r.events.onReady = func(job.Info) { flip(r) }
						}
						var k told
						m := r.start(k.options(Options{Mode: mode, AutoFinalize: true}))
						r.ready(m)
						random := rand.New(rand.NewPCG(uint64(mode), 7))
						guest := at(func() {
							for range 100 {
								p := pattern(random.Uint64(), 1+random.Int64N(20000))
								must(t, r.guest.WriteAt(bg, p, random.Int64N(where/2), 0))
								time.Sleep(time.Millisecond)
							}
						})
						complete(t, m, soft)
						guest()
						r.over(m)
						must(t, m.job.Err())
						p := m.State().Proof
						if found, verified, bytes := k.now(); !k.covers(where) || len(found) != 1 || verified != 1 || bytes != sector {
							t.Errorf("told of %+v, %d times verified, %d bytes", found, verified, bytes)
						}
						if p.Left != 0 || p.Verified != size || p.Differing != sector {
							t.Errorf("at the end: %+v", p)
						}
						if c.hole {
							zeroes := make([]byte, 512)
							must(t, r.target.mem.ReadAt(bg, zeroes, where&^511))
							if !block.IsZero(zeroes) {
								t.Error("the hole was not mended")
							}
						}
						if at := differAt(r.source.Bytes()[2*mib:], r.target.Bytes()[2*mib:]); at >= 0 {
							t.Errorf("the disks differ at %d", 2*mib+at) // before that, the guest goes on after the job
						}
					})
				})
			}
		}
	}
}

// Extents may begin anywhere, as those of servers do. A difference lies in one chunk all the same: if there is a reason for it there,
// nothing is told of the chunk before.
func TestVerifySectors(t *testing.T) {
	const odd, where = 70000, 3 << 16 // no multiple of a sector, and where a chunk begins
	in(t, func(t *testing.T) {
		o := blocktest.MemOptions{StatusMost: odd}
		r := newRig(t, newDisk(1, pattern(1, mib), o), newDisk(2, pattern(1, mib), o), unmapping, unmapping)
		r.events.onReady = func(job.Info) { must(t, r.target.mem.WriteAt(bg, make([]byte, 1), where, 0)) }
		var k told
		m := r.start(k.options(Options{Granularity: 64 << 10, AutoFinalize: true}))
		r.ready(m)
		complete(t, m, false)
		r.over(m)
		must(t, m.job.Err())
		found, _, _ := k.now()
		if want := (Difference{where, sector, sector}); len(found) != 1 || found[0] != want {
			t.Errorf("told of %+v, want %+v", found, want)
		}
	})
}

func complete(t *testing.T, m *Mirror, soft bool) {
	t.Helper()
	if soft {
		must(t, m.job.SoftCancel(false, nil))
	} else {
		must(t, m.job.Complete(nil))
	}
}

// A target that never keeps what it is given is no copy: the job fails, and says where.
func TestVerifyGivesUp(t *testing.T) {
	in(t, func(t *testing.T) {
		r := plain(t, 2*mib)
		r.t = t
		spoil := func(p []byte, off int64) {
			if at := int64(mib) - off; at >= 0 && at < int64(len(p)) {
				p[at] ^= 1
			}
		}
		r.target.spoils.Store(&spoil)
		var k told
		m := r.start(k.options(Options{AutoFinalize: true}))
		r.over(m)
		found, verified, _ := k.now()
		if err := m.job.Err(); !errors.Is(err, errDiffersAgain) || !k.covers(mib) || verified > 0 {
			t.Errorf("the job ended with %v, told of %+v", err, found)
		}
		if f := r.events.failed; len(f) != 1 || f[0].Off != mib || f[0].Len != sector || f[0].Node != "target" {
			t.Errorf("told of %+v", f)
		}
	})
}

// What cannot be read stops the comparison as the policy says, and what was left is compared after that.
func TestVerifyFailedReads(t *testing.T) {
	for name, d := range map[string]func(r *rig) *disk{
		"source": func(r *rig) *disk { return r.source }, "target": func(r *rig) *disk { return r.target },
	} {
		t.Run(name, func(t *testing.T) {
			in(t, func(t *testing.T) {
				r := plain(t, 2*mib)
				r.t = t
				r.events.onReady = func(job.Info) { d(r).addFault(fault{op: block.OpRead, errno: syscall.EIO, times: 1}) }
				var k told
				m := r.start(k.options(Options{OnSourceError: job.PolicyStop, OnTargetError: job.PolicyStop, AutoFinalize: true}))
				r.ready(m)
				time.Sleep(time.Second)
				if i := m.job.Info(); i.Status != job.Standby || r.events.failures() != 1 || r.events.failed[0].Node != name {
					t.Errorf("after a failed read: %+v %+v", i, r.events.failed)
				}
				must(t, m.job.Resume(nil))
				time.Sleep(time.Second)
				if found, verified, _ := k.now(); m.State().Proof.Left != 0 || verified != 1 || len(found) > 0 {
					t.Errorf("after the resume: %+v %+v", m.State().Proof, found)
				}
				must(t, m.job.Cancel(nil))
				r.over(m)
			})
		})
	}
}

// The comparison heeds speed and pause, and a job that was asked to complete waits for it; a cancel does not.
func TestVerifyIsSteered(t *testing.T) {
	for _, cancel := range []bool{false, true} {
		in(t, func(t *testing.T) {
			r := plain(t, 8*mib)
			r.t = t
			var k told
			m := r.start(k.options(Options{AutoFinalize: true, Mode: WriteBlocking, Speed: mib}))
			r.ready(m)
			began := time.Now()
			must(t, m.job.Complete(nil))
			time.Sleep(3 * time.Second)
			must(t, m.job.Pause(nil))
			time.Sleep(time.Second)
			before := m.State().Proof
			if before.Verified < 2*mib || before.Verified > 5*mib {
				t.Errorf("after 3 s at 1 MiB/s: %+v", before)
			}
			time.Sleep(time.Minute)
			if now := m.State().Proof; now != before {
				t.Errorf("while the job is paused: %+v after %+v", now, before)
			}
			if cancel {
				must(t, m.job.Cancel(nil))
				r.over(m)
				if _, verified, _ := k.now(); verified > 0 || !errors.Is(m.job.Err(), job.ErrCancelled) {
					t.Errorf("verified %d times; %v", verified, m.job.Err())
				}
				return
			}
			must(t, m.job.Resume(nil))
			r.over(m)
			must(t, m.job.Err())
			// The last 4 MiB are compared at once, while guests are held.
			_, verified, _ := k.now()
			if took := time.Since(began) - 61*time.Second; took < 3*time.Second || took > 5*time.Second || verified != 1 {
				t.Errorf("the comparison took %v, verified %d times", took, verified)
			}
		})
	}
}

// What the target loses since a flush fails is no difference: the flush tells.
func TestVerifyAsksTheFlush(t *testing.T) {
	in(t, func(t *testing.T) {
		r := plain(t, 8*mib)
		r.t = t
		var k told
		m := r.start(k.options(Options{AutoFinalize: true, Mode: WriteBlocking, Speed: mib, OnTargetError: job.PolicyIgnore}))
		r.ready(m)
		must(t, r.guest.WriteAt(bg, pattern(7, 64*kib), 7*mib, 0))
		r.target.addFault(fault{op: block.OpFlush, errno: syscall.EIO, times: 1})
		must(t, r.target.mem.WriteAt(bg, make([]byte, 64*kib), 7*mib, 0))
		time.Sleep(time.Minute)
		if found, verified, _ := k.now(); verified != 1 || len(found) > 0 || r.events.failures() != 1 {
			t.Errorf("verified %d times, told of %+v, after %d failures", verified, found, r.events.failures())
		}
		must(t, m.job.Complete(nil))
		r.over(m)
		must(t, m.job.Err())
		r.same()
	})
}

// Differences are told at most once a second, and those that do not fit in are joined.
func TestDifferencesAreJoined(t *testing.T) {
	in(t, func(t *testing.T) {
		r := plain(t, 8*mib)
		r.t = t
		r.target.slow = time.Millisecond
		r.events.onReady = func(job.Info) {
			for at := int64(0); at < 8*mib; at += 64 * kib {
				_ = r.target.mem.WriteAt(bg, make([]byte, 1024), at, 0)
			}
		}
		var k told
		m := r.start(k.options(Options{}))
		r.ready(m)
		time.Sleep(10 * time.Second)
		var total int64
		found, _, differing := k.now()
		for _, d := range found {
			total += d.Bytes
		}
		if len(found) > 3*tellMost || total != 128*1024 || differing != total {
			t.Errorf("%d differences told, %d bytes, in all %d", len(found), total, differing)
		}
		must(t, m.job.Cancel(nil))
		r.over(m)
		r.same()
	})
}

// What the planner makes of a range that differs.
func TestPlannerVerify(t *testing.T) {
	cases := []struct {
		name      string
		mode      Mode
		before    func(b *bench) // the claim is asked for
		meanwhile func(b *bench)
		differ    []span // empty for chunk 1
		claim     string
		told      string
		d, todo   string
	}{
		{name: "a difference", told: "[{4096 8192}]", d: "1", todo: "1", claim: "0..43008"},
		{name: "two sectors", differ: []span{{chunk, chunk + 512}, {2*chunk - 512, 2 * chunk}}, told: "[{4096 4608} {7680 8192}]", d: "1",
			todo: "1", claim: "0..43008"},
		{name: "the last chunk", differ: []span{{10 * chunk, benchSize}}, told: "[{40960 43008}]", d: "10", todo: "10"},
		{name: "a write of background mode ended meanwhile", meanwhile: func(b *bench) {
			b.guest("g", reqData, chunk, 2*chunk)
			b.endGuest(b.ops["g"], false, false)
		}, told: "[]", d: "1", todo: "1"},
		{name: "zeroes that need no copy otherwise", before: func(b *bench) { b.setZ(0, 11) }, meanwhile: func(b *bench) {
			b.guest("g", reqZero, chunk, 2*chunk)
			b.endGuest(b.ops["g"], false, false)
		}, told: "[]", d: "1", todo: "1"},
		{name: "a write of background mode is under way", meanwhile: func(b *bench) { b.guest("g", reqData, chunk+1, chunk+2) },
			told: "[]", todo: "1"},
		{name: "a write of background mode elsewhere", meanwhile: func(b *bench) { b.guest("g", reqData, 2*chunk, 3*chunk) },
			told: "[{4096 8192}]", d: "1", todo: "1"},
		{name: "a suspect", meanwhile: func(b *bench) { b.suspect(chunk, chunk) }, told: "[]", d: "1", todo: "1"},
		{name: "the target may have lost it", before: func(b *bench) { b.touch(0, benchSize) }, meanwhile: func(b *bench) { b.lost() },
			told: "[]", d: "0 1 2 3 4 5 6 7 8 9 10", todo: "1"},
		{name: "a write that waits", mode: WriteBlocking, meanwhile: func(b *bench) { b.guest("g", reqData, chunk, 2*chunk) },
			told: "[{4096 8192}]", todo: "1"}, // it has the whole chunk
		{name: "a write of background mode was under way", before: func(b *bench) { b.guest("g", reqData, 3*chunk, 4*chunk) },
			claim: "0..12288", told: "[{4096 8192}]", d: "1", todo: "1 3 4 5 6 7 8 9 10"},
		{name: "a claim", mode: WriteBlocking, before: func(b *bench) { b.guest("g", reqData, 0, chunk) }, claim: "4096..43008",
			told: "[{4096 8192}]", d: "1", todo: "0 1"},
		{name: "dirty", before: func(b *bench) { b.setD(2, 4) }, claim: "0..8192", told: "[{4096 8192}]", d: "1 2 3",
			todo: "1 2 3 4 5 6 7 8 9 10"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t, c.mode)
			b.verify = &verification{}
			b.beginVerify()
			if c.before != nil {
				c.before(b)
			}
			o := &op{}
			for b.nextVerify(o, mib, span{}, 0) == foundSlice {
			}
			if c.claim != "" {
				b.expect("the claim", fmt.Sprintf("%d..%d", o.off, o.end), strings.Replace(c.claim, "43008", "43008", 1))
			}
			if c.meanwhile != nil {
				c.meanwhile(b)
			}
			differ := c.differ
			if differ == nil {
				differ = []span{{chunk, 2 * chunk}}
			}
			found, _ := b.endVerify(o, o.end, differ, nil)
			b.release(o)
			b.expect("what is told", fmt.Sprint(found), c.told)
			b.expect("D", chunks(b.d), c.d)
			b.expect("what is left", chunks(b.verify.todo), c.todo)
		})
	}
}
