// SPDX-License-Identifier: Apache-2.0

package hosts

import "testing"

// TestTargetKilled: the target's daemon dies and comes back, several times, before the mirror is ready and after. The
// connection's requests wait, and the mirror goes on by itself.
func TestTargetKilled(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		mode   string
		ending ending
		always bool
	}{
		{"write-blocking", pivot, true},
		{"background", pivotUnder, false},
		{"auto", leave, false},
	} {
		t.Run(c.mode, func(t *testing.T) {
			if !c.always {
				interop(t)
			}
			t.Parallel()
			p := newPair(t, setup{connection: 2})
			p.mirror(args{"copy-mode": c.mode, "speed": slow})
			for range 3 {
				p.copied(p.job().Offset + 512<<10)
				p.restart()
			}
			p.ready()
			for range 3 {
				p.restart()
			}
			p.finish(c.ending)
			p.noErrors()
		})
	}
}

// restart kills the target's daemon and starts it again; the guest writes before, meanwhile and afterwards.
func (p *pair) restart() {
	p.t.Helper()
	p.guest.more(5, quick)
	p.target.kill()
	p.source.wait("BLOCK_NODE_CONNECTION", args{"node-name": "dst", "state": "waiting"})
	p.guest.more(60, quick) // enough to come across what the mirror copies next
	p.startTarget()
	p.source.wait("BLOCK_NODE_CONNECTION", args{"node-name": "dst", "state": "connected"})
	p.guest.more(5, quick)
}

// noErrors sees that the job had no error, because the target came back in time.
func (p *pair) noErrors() {
	p.t.Helper()
	if n := p.source.told("BLOCK_JOB_ERROR", nil); n > 0 {
		p.t.Errorf("%d errors of the job, though the target came back in time; came:\n%s", n, show(p.source.events))
	}
}
