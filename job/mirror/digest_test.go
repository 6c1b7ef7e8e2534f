// SPDX-License-Identifier: Apache-2.0

package mirror

import (
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/block/blocktest"
	"github.com/blkmirror/blkmirror/job"
	"github.com/blkmirror/blkmirror/job/digest"
	"github.com/blkmirror/blkmirror/job/digest/digesttest"
)

// digested has a mirror tell its digest.
func digested(o Options, to *[]Digest) Options {
	o.Verify, o.Digest = true, true
	o.OnDigest = func(d Digest) { *to = append(*to, d) }
	return o
}

// writers write small pieces all over the disk, one after another, until they are stopped. The longest write is told.
func writers(t *testing.T, r *rig, n int, think time.Duration) (stop func() (longest time.Duration)) {
	var waits []func()
	done := make(chan struct{})
	took := make([]time.Duration, n)
	for i := range n {
		random := rand.New(rand.NewPCG(uint64(i), 5))
		waits = append(waits, at(func() {
			for {
				select {
				case <-done:
					return
				case <-time.After(think):
				}
				began := time.Now()
				must(t, r.guest.WriteAt(bg, pattern(random.Uint64(), 512), random.Int64N(r.sn.Size()/512)*512, 0))
				took[i] = max(took[i], time.Since(began))
			}
		}))
	}
	return func() (longest time.Duration) {
		close(done)
		for i, wait := range waits {
			wait()
			longest = max(longest, took[i])
		}
		return longest
	}
}

// The digest is that of both disks at completion, though guests wrote after each leaf was compared.
func TestDigestAtCompletion(t *testing.T) {
	for name, soft := range map[string]bool{"complete": false, "soft": true} {
		t.Run(name, func(t *testing.T) {
			in(t, func(t *testing.T) {
				const size = 24*mib + 512
				content := pattern(3, size)
				clear(content[5*mib : 8*mib+100])
				target := newDisk(2, nil, blocktest.MemOptions{Size: size})
				r := newRig(t, newDisk(1, content, blocktest.MemOptions{}), target, unmapping, unmapping)
				r.source.slow, target.slow = time.Millisecond, time.Millisecond
				var told []Digest
				m := r.start(digested(Options{Mode: WriteBlocking, AutoFinalize: true}, &told))
				r.ready(m)
				for m.State().Proof.Left > 0 {
					time.Sleep(10 * time.Millisecond)
				}
				for at := range int64(21) { // more leaves than guests may be held for
					must(t, r.guest.WriteAt(bg, pattern(99, 700), at*mib+mib-300, 0))
				}
				if d := m.State().Proof.Digest; d != (Digest{}) || len(told) > 0 {
					t.Errorf("before the job is over: %+v, %+v", d, told)
				}
				complete(t, m, soft)
				r.over(m)
				must(t, m.job.Err())
				want := Digest{Sum: digesttest.Plain(r.source.Bytes())}
				if len(told) != 1 || told[0] != want || m.State().Proof.Digest != want {
					t.Errorf("told %+v, shown %+v, want %+v", told, m.State().Proof.Digest, want)
				}
				r.same()
			})
		})
	}
}

// Guests who write faster than leaves are compared do not keep the job from its end, and are held only for a moment.
func TestDigestGivenUp(t *testing.T) {
	in(t, func(t *testing.T) {
		const size = 64 * mib
		r := plain(t, size)
		r.source.slow, r.target.slow = 50*time.Millisecond, 50*time.Millisecond
		var told []Digest
		m := r.start(digested(Options{Mode: WriteBlocking, AutoFinalize: true}, &told))
		r.ready(m)
		stop := writers(t, r, 60, time.Millisecond)
		time.Sleep(time.Second)
		began := time.Now()
		complete(t, m, false)
		r.over(m)
		longest := stop()
		must(t, m.job.Err())
		if d := m.State().Proof.Digest; len(told) != 1 || d != told[0] || d.Sum != "" || !strings.Contains(d.Why, "faster") {
			t.Errorf("told %+v, shown %+v", told, d)
		}
		if took := time.Since(began); took < chaseTime || took > 4*chaseTime || longest > 500*time.Millisecond {
			t.Errorf("the job took %v to complete; the longest write took %v", took, longest)
		}
	})
}

// A pass that another one follows finds what was lost meanwhile.
func TestVerifyAgain(t *testing.T) {
	in(t, func(t *testing.T) {
		r := plain(t, 3*mib)
		r.source.slow, r.target.slow = time.Millisecond, time.Millisecond
		var k told
		o := k.options(Options{AutoFinalize: true})
		o.Verify = false // it is asked for later
		m := r.start(o)
		if err := m.Verify(); err == nil || !strings.Contains(err.Error(), "ready") {
			t.Errorf("before it is ready: %v", err)
		}
		r.ready(m)
		if p := m.State().Proof; p != (Proof{}) {
			t.Errorf("not asked to compare: %+v", p)
		}
		pass := func(number int, differing int64) {
			t.Helper()
			must(t, m.Verify())
			if err := m.Verify(); err == nil || !strings.Contains(err.Error(), "already") {
				t.Errorf("while it compares: %v", err)
			}
			for verified := 0; verified < number; _, verified, _ = k.now() {
				time.Sleep(10 * time.Millisecond)
			}
			found, _, bytes := k.now()
			if p := m.State().Proof; bytes != differing || p != (Proof{On: true, Verified: 3 * mib, Differing: differing}) {
				t.Errorf("pass %d: %d bytes differed, %+v; %+v", number, bytes, found, p)
			}
			r.same()
		}
		pass(1, 0)
		for number := 2; number < 4; number++ { // the same place differs twice, and is no error of the target
			must(t, r.target.mem.WriteAt(bg, []byte{0}, 2*mib+5, 0))
			pass(number, sector)
		}
		pass(4, 0)
		must(t, m.Verify())
		complete(t, m, false) // waits for the pass
		if err := m.Verify(); err == nil || !strings.Contains(err.Error(), "complete") {
			t.Errorf("about to complete: %v", err)
		}
		r.over(m)
		must(t, m.job.Err())
		if _, verified, _ := k.now(); verified != 5 {
			t.Errorf("%d passes", verified)
		}
		if err := m.Verify(); err == nil {
			t.Error("a job that is over compares its disks")
		}
	})
}

func TestVerifyRefused(t *testing.T) {
	in(t, func(t *testing.T) {
		r := plain(t, mib)
		m := r.start(Options{Sync: SyncNone})
		r.ready(m)
		if err := m.Verify(); err == nil || !strings.Contains(err.Error(), "sync mode 'full'") {
			t.Errorf("sync=none: %v", err)
		}
		must(t, m.job.Cancel(nil))
		r.over(m)
		if _, err := Start(bg, r.graph, r.jobs, Options{JobID: "d", Source: r.sn, Target: r.tn, Digest: true}, nil); err == nil ||
			!strings.Contains(err.Error(), "needs 'x-verify'") {
			t.Errorf("a digest alone: %v", err)
		}
		const size = 8<<40 + 512
		large := newRig(t, newDisk(1, nil, blocktest.MemOptions{Size: size}), newDisk(2, nil, blocktest.MemOptions{Size: size}), unmapping, unmapping)
		_, err := Start(bg, large.graph, large.jobs, Options{JobID: "d", Source: large.sn, Target: large.tn, Verify: true, Digest: true}, nil)
		if err == nil || !strings.Contains(err.Error(), "8796093022208 is not") {
			t.Errorf("a disk of more than 8 TiB: %v", err)
		}
	})
}

// A job whose digest waits is pending until it is told to end, and does no work for it before.
func TestDigestPending(t *testing.T) {
	in(t, func(t *testing.T) {
		r := plain(t, 24*mib)
		r.source.slow, r.target.slow = time.Millisecond, time.Millisecond
		var told []Digest
		m := r.start(digested(Options{Mode: WriteBlocking}, &told))
		r.ready(m)
		complete(t, m, false)
		for m.job.Info().Status != job.Pending {
			time.Sleep(10 * time.Millisecond)
		}
		stop := writers(t, r, 4, time.Millisecond)
		time.Sleep(time.Second)
		stop()
		must(t, m.job.Finalize(nil))
		r.over(m)
		must(t, m.job.Err())
		if want := digesttest.Plain(r.target.Bytes()); len(told) != 1 || told[0].Sum != want {
			t.Errorf("told %+v, want %s", told, want)
		}
	})
}

// What a lost target has copied anew is compared again before the digest counts.
func TestPlannerStale(t *testing.T) {
	p, err := newPlanner(4*mib, 64<<10, WriteBlocking)
	must(t, err)
	p.verify = &verification{digests: true}
	p.skipScan()
	p.beginVerify()
	compare := func() {
		for {
			o := &op{}
			switch p.nextVerify(o, mib, span{}, 0) {
			case foundWork:
				p.endVerify(o, o.end, nil, []digest.Hash{{1}})
				p.release(o)
			case foundNone:
				return
			}
		}
	}
	compare()
	p.verify.seeking = true
	stale := func(what string, want int64) {
		t.Helper()
		if got := p.staleBytes(); got != want {
			t.Errorf("%s: %d bytes are stale, not %d", what, got, want)
		}
	}
	stale("all is compared", 0)
	p.touch(mib+5, 1)
	p.lost()
	o := &op{}
	for p.nextCopy(o, mib, (span{}), 0) != foundWork {
	}
	p.endCopy(o, false, false)
	stale("a copy", mib)
	compare()
	stale("compared again", 0)
	p.mode = Background
	p.beginGuest(o, reqZero, 3*mib-1, 2)
	p.z.Set(p.z.All())
	if _, dirtied := p.endGuest(o, false, false); dirtied {
		t.Error("zeroes that need no copy")
	}
	stale("zeroes that need no copy", 2*mib)
}
