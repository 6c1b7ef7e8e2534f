// SPDX-License-Identifier: Apache-2.0

package hosts

import (
	"testing"
	"time"
)

// last is real time that passes while something is broken.
func (p *pair) last(d time.Duration) {
	p.t.Helper()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-p.t.Context().Done():
	}
}

// TestLinkCut: the link is gone for a while, before the mirror is ready and after. The mirror goes on by itself.
func TestLinkCut(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		mode   string
		far    bool // the target's end is cut: the source's host has a route still
		short  time.Duration
		long   time.Duration
		ending ending
		always bool
	}{
		{"1 s, background", "background", false, time.Second, 0, pivotUnder, true},
		{"1 s, write-blocking", "write-blocking", true, time.Second, 0, leave, false},
		{"10 s, background", "background", true, time.Second, 10 * time.Second, pivot, false},
		{"10 s, write-blocking", "write-blocking", false, time.Second, 10 * time.Second, pivotUnder, false},
		{"10 s, auto", "auto", true, time.Second, 10 * time.Second, pivot, false},
		{"20 s, write-blocking", "write-blocking", true, 0, 20 * time.Second, pivotUnder, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if !c.always {
				interop(t)
			}
			t.Parallel()
			p := newPair(t, setup{})
			if c.far {
				p.cable.end = p.targetHost
			}
			if c.mode != "background" {
				p.bound = noticed
			}
			p.mirror(args{"copy-mode": c.mode, "speed": slow})
			p.copied(1 << 20)
			p.cable.cut()
			p.last(c.short)
			p.cable.mend()
			p.guest.more(10, p.bound)
			p.ready()
			if c.long > 0 {
				p.cable.cut()
				p.last(c.long)
				p.cable.mend()
			}
			p.guest.more(10, p.bound)
			p.finish(c.ending)
			p.noErrors()
		})
	}
}

// TestTargetRestartedBehindCutLink: what was on its way to the old daemon never comes, and the new one knows nothing of it.
func TestTargetRestartedBehindCutLink(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"background", "write-blocking"} {
		t.Run(mode, func(t *testing.T) {
			interop(t)
			t.Parallel()
			p := newPair(t, setup{})
			p.bound = noticed
			p.mirror(args{"copy-mode": mode})
			p.ready()
			p.guest.more(10, quick)
			p.cable.cut()
			p.target.kill()
			p.last(time.Second)
			p.startTarget()
			p.cable.mend()
			p.guest.more(10, noticed)
			p.source.wait("BLOCK_NODE_CONNECTION", args{"node-name": "dst", "state": "connected"})
			p.finish(pivot)
			p.noErrors()
		})
	}
}

// TestLinkCutForGood: the mirror ends when it is told to, at once, or when its policy says so, and the guest keeps its disk.
func TestLinkCutForGood(t *testing.T) {
	t.Parallel()
	const delay = 2
	for _, c := range []struct{ mode, policy string }{
		{"background", "stop"},
		{"write-blocking", "stop"},
		{"auto", "ignore"},
		{"write-blocking", "report"},
	} {
		for _, when := range []string{"at once", "later"} {
			if when == "at once" && c.policy != "stop" {
				continue
			}
			t.Run(c.mode+", "+c.policy+", "+when, func(t *testing.T) {
				interop(t)
				t.Parallel()
				p := newPair(t, setup{delay: delay})
				if c.mode != "background" {
					p.bound = noticed
				}
				p.mirror(args{"copy-mode": c.mode, "on-target-error": c.policy})
				p.ready()
				p.guest.more(10, quick)
				p.cable.cut()
				p.guest.more(1, noticed)
				if when == "later" {
					p.source.waitFor(noticed+quick, "BLOCK_NODE_CONNECTION", args{"node-name": "dst", "state": "waiting"})
					p.source.waitFor(noticed, "BLOCK_NODE_CONNECTION", args{"node-name": "dst", "state": "failing"})
					p.source.wait("BLOCK_JOB_ERROR", args{"device": "m", "operation": "write", "action": c.policy, "node-name": "dst"})
					if c.policy == "report" {
						if e := p.source.wait("BLOCK_JOB_COMPLETED", nil); !has(e, args{"error": "Input/output error"}) {
							error, _ := e.Data.Get("error")
							t.Errorf("the job ended with %v", error)
						}
						p.gaveUp()
						return
					}
					if c.policy == "stop" {
						p.stopped()
					}
				}
				p.guest.more(10, noticed)
				p.source.do("block-job-cancel", args{"device": "m", "force": true})
				told := time.Now()
				p.source.wait("BLOCK_JOB_CANCELLED", args{"device": "m"})
				if took := time.Since(told); took > quick {
					t.Errorf("the job took %v to end after it was cancelled by force", took)
				}
				if n := p.source.told("BLOCK_JOB_ERROR", nil); n > 20 {
					t.Errorf("%d events of the job's errors", n)
				}
				p.gaveUp()
			})
		}
	}
}

// TestLinkCutForTooLong: the mirror stops, the events say when it can be resumed, and it goes on where it was.
func TestLinkCutForTooLong(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"background", "write-blocking"} {
		t.Run(mode, func(t *testing.T) {
			interop(t)
			t.Parallel()
			p := newPair(t, setup{delay: 1})
			p.bound = noticed
			p.mirror(args{"copy-mode": mode})
			p.ready()
			p.guest.more(10, quick)
			p.cable.cut()
			p.source.waitFor(noticed+quick, "BLOCK_JOB_ERROR", args{"action": "stop", "node-name": "dst"})
			p.stopped()
			p.guest.more(10, noticed)
			p.cable.mend()
			p.source.wait("BLOCK_NODE_CONNECTION", args{"node-name": "dst", "state": "connected"})
			p.source.do("job-resume", args{"id": "m"})
			p.finish(pivot)
		})
	}
}

// stopped waits until the job has stopped for an error.
func (p *pair) stopped() {
	p.t.Helper()
	eventually(p.t, "the job is paused", patience, func() bool {
		s := p.job().Status
		return s == "paused" || s == "standby"
	})
	if s := p.job().IOStatus; s != "failed" {
		p.t.Errorf("io-status is %s", s)
	}
}
