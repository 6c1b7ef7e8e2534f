// SPDX-License-Identifier: Apache-2.0

package metamorphic

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/blkmirror/blkmirror/block/nbd/nbdguest"
)

// run is one history under one set.
type run struct {
	*rig
	set      set
	oracle   *oracle
	under    []underWay
	targets  int    // that were opened
	job      string // the mirror
	mirror   bool   // it exists
	blocking bool   // its copy mode
	paused   bool
	switched bool   // the guest is on the target
	since    []step // what the guest changed after the job was told to complete
}

// underWay is a step that the guest has no answer to yet.
type underWay struct {
	step
	request *nbdguest.Request
}

// play runs a history under a set in a folder of its own.
func play(ctx context.Context, dir string, h history, s set) (err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	rig, err := newRig(ctx, dir, s)
	r := &run{rig: rig, set: s, oracle: new(oracle)}
	if err == nil {
		err = r.steps(ctx, h)
	}
	if err == nil {
		err = r.readAll(ctx)
	}
	err = errors.Join(err, rig.close())
	if err == nil {
		err = r.compare()
	}
	return err
}

// steps carries out a history. The guest has several steps under way while they do not conflict; the operator acts beside them.
func (r *run) steps(ctx context.Context, h history) error {
	for i, s := range h {
		if err := r.step(ctx, s); err != nil {
			return fmt.Errorf("step %d, %v: %w", i, s, err)
		}
	}
	return r.settle(ctx)
}

func (r *run) step(ctx context.Context, s step) error {
	if s.byOperator() {
		mirrored := r.mirror
		if err := r.operate(ctx, s.verb); err != nil {
			return err
		}
		// What is under way may come before the end of a mirror or after it.
		unsure := r.changing()
		if err := r.settle(ctx); err != nil || s.verb != stay || !mirrored {
			return err
		}
		return r.same(unsure)
	}
	full := len(r.under) == depth
	for _, other := range r.under {
		full = full || s.conflicts(other.step)
	}
	if full {
		if err := r.settle(ctx); err != nil {
			return err
		}
	}
	r.under = append(r.under, underWay{s, r.guest.Submit(r.command(s))})
	if r.switched && s.changes() {
		r.since = append(r.since, s)
	}
	return nil
}

func (r *run) command(s step) nbdguest.Command {
	c := nbdguest.Command{Offset: uint64(s.off), Length: uint32(s.end - s.off)}
	switch s.verb {
	case read:
		c.Type = nbdguest.CmdRead
	case write:
		c.Type, c.Data = nbdguest.CmdWrite, make([]byte, s.end-s.off)
		filled(c.Data, s.fill)
	case zero:
		c.Type = nbdguest.CmdWriteZeroes
		if !s.mayUnmap {
			c.Flags |= nbdguest.NoHole
		}
	case trim:
		c.Type = nbdguest.CmdTrim
	case flush:
		c.Type = nbdguest.CmdFlush
	}
	if s.fua {
		c.Flags |= nbdguest.FUA
	}
	return c
}

// settle waits for the guest's answers, and looks at what was read.
func (r *run) settle(ctx context.Context) error {
	for _, u := range r.under {
		if err := u.request.Wait(ctx); err != nil {
			return fmt.Errorf("%v: %w", u.step, err)
		}
		if u.verb == read {
			if err := r.oracle.check(u.request.Data(), u.off); err != nil {
				return fmt.Errorf("%v: %w", u.step, err)
			}
		}
		r.oracle.apply(u.step)
	}
	r.under = r.under[:0]
	return nil
}

// operate does what the operator does. What makes no sense at that time is left out, so that every part of a history is one, too.
func (r *run) operate(ctx context.Context, v verb) error {
	if (v == start) == r.mirror || r.switched {
		return nil
	}
	switch v {
	case start:
		return r.start(ctx)
	case mode:
		r.blocking = !r.blocking
		name := map[bool]string{false: "background", true: "write-blocking"}[r.blocking]
		return r.do(ctx, "block-job-change", args{"id": r.job, "type": "mirror", "copy-mode": name})
	case pause:
		if r.paused {
			return nil
		}
		r.paused = true
		return r.do(ctx, "job-pause", args{"id": r.job})
	case resume:
		return r.resume(ctx)
	}
	return r.end(ctx, v)
}

// changing is what is under way and changes the disk.
func (r *run) changing() (steps []step) {
	for _, u := range r.under {
		if u.changes() {
			steps = append(steps, u.step)
		}
	}
	return steps
}

func (r *run) target() string { return fmt.Sprint("target", r.targets) }

// start starts a mirror to the target, which is a new one at first and a used one later.
func (r *run) start(ctx context.Context) error {
	if r.targets == 0 {
		r.targets++
		if err := r.open(ctx, r.target(), r.set.target, r.set.used); err != nil {
			return err
		}
	}
	r.job += "m"
	r.mirror, r.blocking = true, r.set.mode == "write-blocking"
	return r.do(ctx, "blockdev-mirror", args{"job-id": r.job, "device": "source", "target": r.target(), "sync": "full",
		"granularity": r.set.granularity, "buf-size": r.set.bufSize, "copy-mode": r.set.mode, "speed": r.set.speed})
}

func (r *run) resume(ctx context.Context) error {
	if !r.paused {
		return nil
	}
	r.paused = false
	return r.do(ctx, "job-resume", args{"id": r.job})
}

// end ends a mirror in one of the ways there are.
func (r *run) end(ctx context.Context, v verb) error {
	if err := r.resume(ctx); err != nil {
		return err
	}
	command, a := "job-complete", args{"id": r.job}
	switch v {
	case cancel:
		command, a = "block-job-cancel", args{"device": r.job, "force": true}
	case stay:
		command, a = "block-job-cancel", args{"device": r.job}
		fallthrough
	default:
		if err := r.wait(ctx, r.job, "ready"); err != nil {
			return err
		}
	}
	if v == complete {
		r.switched, r.since = true, r.changing()
	}
	if err := r.do(ctx, command, a); err != nil {
		return err
	}
	r.mirror = false
	return r.wait(ctx, r.job, "null")
}

// readAll is the guest's last look at the disk; it settles what was open.
func (r *run) readAll(ctx context.Context) error {
	p := make([]byte, diskSize)
	if err := r.guest.ReadAt(ctx, p, 0); err != nil {
		return err
	}
	if err := r.oracle.check(p, 0); err != nil {
		return fmt.Errorf("the guest's last look: %w", err)
	}
	return nil
}

// compare looks at the files after the daemon has ended.
func (r *run) compare() error {
	if !r.switched {
		disk, err := r.content("source", r.set.source)
		return errors.Join(err, equal("the disk", disk, "the model", r.oracle.bytes[:]))
	}
	disk, err := r.content(r.target(), r.set.target)
	return errors.Join(err, equal("the disk", disk, "the model", r.oracle.bytes[:]), r.same(r.since))
}

// same compares the files of source and target, but for where steps may have changed only one of them.
func (r *run) same(but []step) error {
	source, err := r.content("source", r.set.source)
	if err != nil {
		return err
	}
	target, err := r.content(r.target(), r.set.target)
	if err != nil {
		return err
	}
	for _, s := range but {
		copy(source[s.off:s.end], target[s.off:s.end])
	}
	return equal("the target", target, "the source", source)
}

func equal(nameA string, a []byte, nameB string, b []byte) error {
	if len(a) != len(b) {
		return fmt.Errorf("%s has %d bytes, %s %d", nameA, len(a), nameB, len(b))
	}
	if bytes.Equal(a, b) {
		return nil
	}
	first, count := -1, 0
	for i := range a {
		if a[i] != b[i] {
			if count++; first < 0 {
				first = i
			}
		}
	}
	return fmt.Errorf("%s differs from %s in %d bytes, first at %d: %#x and %#x", nameA, nameB, count, first, a[first], b[first])
}
