// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"
)

// step waits for the moment of a fault, does it, and heals it.
func (r *round) step(ctx context.Context, st step) error {
	if err := sleep(ctx, st.after); err != nil {
		return err
	}
	if !r.over {
		if err := r.ensure(ctx, st.ready); err != nil {
			return err
		}
	}
	r.say("seed %d: %s", r.seed, st.what)
	if err := r.inject(ctx, st); err != nil {
		return err
	}
	r.counts.fault(st.what, 1)
	return r.guestError()
}

func (r *round) inject(ctx context.Context, st step) error {
	wait := func() error { return sleep(ctx, st.lasts) }
	switch st.what {
	case killDaemon:
		r.daemon.kill()
		return r.restarted(ctx)
	case stopDaemon:
		if err := r.stopDaemon(ctx, func() { r.daemon.process.signal(syscall.SIGTERM) }); err != nil {
			return err
		}
		return r.restarted(ctx)
	case orphans:
		return r.orphan(ctx, wait)
	case killTarget:
		r.server.process.kill()
		if err := wait(); err != nil {
			return err
		}
		return r.server.start(ctx)
	case killBoth:
		r.server.process.kill()
		r.daemon.kill()
		if err := r.server.start(ctx); err != nil {
			return err
		}
		return r.restarted(ctx)
	case freezeTarget:
		r.server.process.signal(syscall.SIGSTOP)
		err := wait()
		r.server.process.signal(syscall.SIGCONT)
		return err
	case cutLine:
		r.line.cut()
	case cutLate:
		return r.cutLate(ctx, st.lasts)
	case silentLine:
		r.line.silence()
		err := wait()
		r.line.speak()
		return err
	case dropGuest:
		r.guests[st.pick%uint64(len(r.guests))].drop()
	case fullTarget:
		if err := r.fillUp(r.space, wait); err != nil || r.server == nil || r.medium != mediumLoop {
			return err
		}
		// A server that has lost pages fails all flushes from then on, because it cannot know what was in them.
		r.server.process.kill()
		return r.server.start(ctx)
	case fullState:
		return r.fillUp(r.state, func() error { return errors.Join(r.recordNothing(ctx), wait()) })
	case truncateTarget:
		r.excused = true
		size := int64(st.pick % uint64(r.size))
		if err := os.Truncate(r.image, size); err != nil {
			return err
		}
		if err := wait(); err != nil {
			return err
		}
		return r.newTarget(ctx)
	case deleteTarget:
		r.excused = true
		if err := os.Remove(r.image); err != nil {
			return err
		}
		if err := wait(); err != nil {
			return err
		}
		return r.newTarget(ctx)
	case missingTarget:
		return r.missing(ctx)
	case pauseJob:
		// It may be stopped by an error, or end by one; then it is not paused.
		_ = r.daemon.do(ctx, "job-pause", args{"id": jobID}, nil)
		if err := wait(); err != nil {
			return err
		}
		_ = r.daemon.do(ctx, "job-resume", args{"id": jobID}, nil)
	case changeSpeed:
		_ = r.daemon.do(ctx, "block-job-set-speed", args{"device": jobID, "speed": (1 + st.pick%64) << 20}, nil)
	case changeMode:
		mode := []string{"background", "write-blocking", "auto"}[st.pick%3]
		_ = r.daemon.do(ctx, "block-job-change", args{"id": jobID, "type": "mirror", "copy-mode": mode}, nil)
	default:
		return fmt.Errorf("there is no fault '%s'", st.what)
	}
	return nil
}

// cutLate cuts the line while requests are on it. The server gets them after the daemon is connected again.
func (r *round) cutLate(ctx context.Context, lasts time.Duration) error {
	r.line.silence()
	err := sleep(ctx, lasts/2)
	deliver := r.line.cutLate()
	err = errors.Join(err, sleep(ctx, lasts/2))
	deliver()
	if err != nil {
		return err
	}
	// What is late arrives while this mirror is there, and not another one that cannot know of it.
	return r.line.settle(ctx)
}

// orphan kills the daemon with requests on the line, as the network may keep them when a process dies, and lets the server have
// them when a mirror of the next process is ready.
func (r *round) orphan(ctx context.Context, wait func() error) error {
	r.line.silence()
	err := wait()
	r.daemon.kill()
	deliver := r.line.cutLate()
	if err == nil {
		err = r.restarted(ctx)
	}
	if err == nil {
		err = r.ensure(ctx, true)
	}
	deliver()
	return errors.Join(err, r.line.settle(ctx))
}

// fillUp takes all space of a file system for a while.
func (r *round) fillUp(fs *small, wait func() error) error {
	r.excused = true
	if err := fs.full(); err != nil {
		return err
	}
	return errors.Join(wait(), fs.writeBack(), fs.heal())
}

// recordNothing sees that what cannot be recorded is refused, and that a mirror that cannot record its end does not end well.
func (r *round) recordNothing(ctx context.Context) error {
	err := r.daemon.do(ctx, "blockdev-add", args{"driver": "null-co", "node-name": "more", "size": 1 << 20}, nil)
	if err == nil {
		return r.daemon.do(ctx, "blockdev-del", args{"node-name": "more"}, nil) // it fitted in
	}
	if !strings.Contains(err.Error(), "space") {
		return fmt.Errorf("refused, but not for lack of space: %w", err)
	}
	return r.look(ctx)
}

// newTarget ends the mirror and makes a new image in place of the damaged one.
func (r *round) newTarget(ctx context.Context) error {
	if err := r.cancelMirror(ctx); err != nil {
		return err
	}
	if r.server == nil {
		if err := r.removeTarget(ctx); err != nil {
			return err
		}
	} else {
		r.server.process.kill()
	}
	if err := os.Remove(r.image); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := makeTarget(ctx, r.settings, r.targetFormat, r.image, r.size); err != nil {
		return err
	}
	if r.server == nil {
		if err := r.daemon.do(ctx, "blockdev-add", r.targetDefinition(), nil); err != nil {
			return err
		}
	} else if err := r.server.start(ctx); err != nil {
		return err
	}
	return r.look(ctx)
}

// removeTarget removes the target's node. A node that cannot flush stays; errors of fault nodes come once each.
func (r *round) removeTarget(ctx context.Context) (err error) {
	for range 4 {
		if err = r.daemon.do(ctx, "blockdev-del", args{"node-name": targetNode}, nil); err == nil || !r.errors {
			break
		}
	}
	return err
}

// missing starts the daemon while the target's image is away: it must refuse, naming it, and start well once it is back.
func (r *round) missing(ctx context.Context) error {
	r.daemon.kill()
	away := r.image + ".away"
	if err := os.Rename(r.image, away); err != nil {
		return err
	}
	err := r.daemon.start(ctx)
	var exit *exitError
	if !errors.As(err, &exit) || exit.status != 1 || !strings.Contains(exit.said, r.image) {
		return fmt.Errorf("started without the target's image %s: %w", r.image, err)
	}
	if err := os.Rename(away, r.image); err != nil {
		return err
	}
	return r.restarted(ctx)
}
