// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"syscall"
	"time"
)

// Of a soak.
const (
	soakDisks   = 8
	soakSize    = 8 << 20
	soakLanes   = 2
	soakPause   = 4 * time.Millisecond // between the requests of a lane: the daemon is to live long, not to be busy
	soakSamples = 300                  // in all
)

// soak is one daemon with many disks, whose mirrors come and go.
type soak struct {
	*settings
	daemon *daemon
	server *server // has the targets of some of the disks
	disks  []*soakDisk
	counts *counts
	folder string
}

// soakDisk is a disk that moves between its images.
type soakDisk struct {
	*disk
	remote bool   // the target is the server's
	source string // node that guests use
	rules  int    // fault nodes made so far
}

// runSoak lets mirrors begin, be completed and cancelled, fail and go on, for a time, and watches what the daemon holds.
func runSoak(ctx context.Context, s *settings) (err error) {
	k := &soak{settings: s, counts: newCounts()}
	if k.folder, err = os.MkdirTemp(s.folder, "torture-soak-"); err != nil {
		return err
	}
	defer func() {
		k.end()
		if err == nil && !s.keep {
			err = os.RemoveAll(k.folder)
		} else {
			fmt.Fprintf(s.out, "kept in %s\n", k.folder)
		}
	}()
	if err := k.prepare(ctx); err != nil {
		return err
	}
	samples, err := k.run(ctx)
	k.counts.print(s.out)
	if err != nil {
		return err
	}
	return errors.Join(k.judge(samples), k.finish(ctx))
}

func (k *soak) prepare(ctx context.Context) error {
	k.daemon = newDaemon(k.folder, k.settings.daemon, "--state-dir", "state", "--nbd-server", "addr.type=unix,addr.path=nbd")
	if err := k.daemon.start(ctx); err != nil {
		return err
	}
	for i := range soakDisks {
		d, err := newDisk(ctx, k.daemon, fmt.Sprintf("disk%d", i), soakSize, k.firstSeed+uint64(i), nil)
		if err != nil {
			return err
		}
		d.guest.pause = soakPause
		k.disks = append(k.disks, &soakDisk{disk: d, source: d.name, remote: i%4 == 3})
	}
	return k.startServer(ctx)
}

// startServer starts the server of the targets that are away.
func (k *soak) startServer(ctx context.Context) error {
	argv := []string{k.settings.daemon, "--nbd-server", "addr.type=unix,addr.path=server"}
	for _, d := range k.disks {
		if d.remote {
			name := d.name + "-far"
			if err := makeTarget(ctx, k.settings, "raw", k.daemon.path(name), soakSize); err != nil {
				return err
			}
			argv = append(argv, option("--blockdev", imageNode(name, "raw", name, nil))...)
			argv = append(argv, option("--export", args{"type": "nbd", "id": name, "node-name": name, "name": name, "writable": true})...)
		}
	}
	k.server = &server{argv: argv, folder: k.folder}
	if err := k.server.start(ctx); err != nil {
		return err
	}
	for _, d := range k.disks {
		if d.remote {
			if err := k.daemon.do(ctx, "blockdev-add", args{"driver": "nbd", "node-name": d.name + "-far", "export": d.name + "-far",
				"server": args{"type": "unix", "path": "server"}, "reconnect-delay": reconnectDelay}, nil); err != nil {
				return err
			}
		}
	}
	return nil
}

// run lets everything go on until the time is over.
func (k *soak) run(ctx context.Context) (samples []sample, err error) {
	fmt.Fprintf(k.out, "a soak of %v: %d disks, seed %d\n", k.settings.time, len(k.disks), k.firstSeed)
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	timed, stop := context.WithTimeout(ctx, k.settings.time)
	defer stop()
	var workers sync.WaitGroup
	for i, d := range k.disks {
		d.guest.start(k.firstSeed+uint64(i)*1000, soakLanes)
		workers.Go(func() {
			for timed.Err() == nil {
				if err := k.one(ctx, d); err != nil {
					fail(fmt.Errorf("%s: %w", d.name, err))
					return
				}
			}
		})
	}
	workers.Go(func() { // the server dies now and then
		for sleep(timed, 7*time.Second) == nil {
			k.server.process.kill()
			k.counts.fault(killTarget, 1)
			if err := errors.Join(sleep(ctx, 100*time.Millisecond), k.server.start(ctx)); err != nil {
				fail(err)
				return
			}
		}
	})
	began, every := time.Now(), max(k.settings.time/soakSamples, 100*time.Millisecond)
	for sleep(timed, every) == nil {
		s, err := measure(k.daemon.process.pid(), time.Since(began))
		if err != nil {
			fail(errors.Join(err, fmt.Errorf("the daemon is gone")))
			break
		}
		if samples = append(samples, s); len(samples)%30 == 0 {
			fmt.Fprintf(k.out, "%v: %d MiB, %d descriptors, %d threads\n", s.at.Round(time.Second), s.resident>>20, s.descriptors, s.threads)
		}
	}
	workers.Wait()
	if ctx.Err() != nil {
		return samples, context.Cause(ctx)
	}
	return samples, nil
}

// one is one mirror of a disk, from its beginning to its end.
func (k *soak) one(ctx context.Context, d *soakDisk) error {
	id, random := d.name+"-mirror", d.random
	target, fault := d.target, ""
	if d.source == target {
		target = d.name
	}
	ending := pick(random, "complete", "complete", "complete", "cancel", "force", "force early", "fail", "resume")
	if d.remote && ending != "complete" {
		target = d.name + "-far" // the guests stay
	}
	if ending == "fail" || ending == "resume" {
		// A fault node between the job and its target, for this time only.
		d.rules++
		fault = fmt.Sprintf("%s-fault%d", d.name, d.rules)
		if err := k.daemon.do(ctx, "blockdev-add", args{"driver": "blkdebug", "node-name": fault, "image": target,
			"inject-error": rules(random, soakSize, "write")}, nil); err != nil {
			return err
		}
		target = fault
	}
	completed := k.daemon.seen("BLOCK_JOB_COMPLETED "+id) + k.daemon.seen("BLOCK_JOB_CANCELLED "+id)
	policy := map[string]string{"fail": "report"}[ending]
	if policy == "" {
		policy = "stop"
	}
	if err := k.daemon.do(ctx, "blockdev-mirror", args{"job-id": id, "device": d.source, "target": target, "sync": "full",
		"copy-mode":       pick(random, "background", "write-blocking", "auto"),
		"speed":           int64(soakSize / between(random, 50*time.Millisecond, 400*time.Millisecond).Seconds()),
		"on-target-error": policy, "on-source-error": "report"}, nil); err != nil {
		return err
	}
	if err := k.drive(ctx, d, id, ending, random); err != nil {
		return fmt.Errorf("%s: %w", ending, err)
	}
	if err := until(ctx, convergeLimit, "the end of the job is told", func() (bool, error) {
		return k.daemon.seen("BLOCK_JOB_COMPLETED "+id)+k.daemon.seen("BLOCK_JOB_CANCELLED "+id) > completed &&
			k.daemon.said("JOB_STATUS_CHANGE "+id) == "null", nil
	}); err != nil {
		return err
	}
	k.counts.add("mirrors: "+ending, 1)
	node, err := k.daemon.exported(ctx, d.name)
	if err != nil {
		return err
	}
	why := k.daemon.said("BLOCK_JOB_COMPLETED " + id)
	if ending == "complete" && (node != target || why != "") || ending != "complete" && node != d.source {
		return fmt.Errorf("%s of %s to %s ended with '%s', and guests use %s", ending, d.source, target, why, node)
	}
	d.source = node
	if fault != "" {
		return k.daemon.do(ctx, "blockdev-del", args{"node-name": fault}, nil)
	}
	return nil
}

// drive brings a mirror to its end.
func (k *soak) drive(ctx context.Context, d *soakDisk, id, ending string, random *rand.Rand) error {
	pause := between(random, time.Millisecond, 200*time.Millisecond)
	if ending == "force early" {
		return errors.Join(sleep(ctx, pause), k.end1(ctx, id, true))
	}
	began, helped, finished := time.Now(), false, false
	return until(ctx, convergeLimit, "the mirror ends", func() (bool, error) {
		if err := d.guest.error(); err != nil {
			return false, err
		}
		j, err := k.daemon.jobNamed(ctx, id)
		switch {
		case err != nil || j == nil:
			return j == nil, err
		case j.Paused && j.IOStatus != "ok":
			k.counts.add("mirrors resumed after an error", 1)
			_ = k.daemon.do(ctx, "job-resume", args{"id": id}, nil)
		case j.Status != "ready" && time.Since(began) > patience && !helped:
			helped = true
			_ = k.daemon.do(ctx, "block-job-set-speed", args{"device": id, "speed": 0}, nil)
			_ = k.daemon.do(ctx, "block-job-change", args{"id": id, "type": "mirror", "copy-mode": "write-blocking"}, nil)
		case j.Status == "ready" && !finished:
			finished = true
			if err := sleep(ctx, pause/4); err != nil {
				return false, err
			}
			switch ending {
			case "complete":
				return false, k.daemon.do(ctx, "job-complete", args{"id": id}, nil)
			case "cancel":
				return false, k.end1(ctx, id, false)
			default: // the errors that were to come did not
				_ = k.end1(ctx, id, true)
			}
		}
		return false, nil
	})
}

// end1 cancels a mirror.
func (k *soak) end1(ctx context.Context, id string, force bool) error {
	err := k.daemon.do(ctx, "block-job-cancel", args{"device": id, "force": force}, nil)
	if j, e := k.daemon.jobNamed(ctx, id); e == nil && j == nil {
		return nil // it had ended
	}
	return err
}

// judge says whether what the daemon holds stayed the same.
func (k *soak) judge(samples []sample) (err error) {
	for _, what := range []struct {
		name  string
		of    func(sample) int64
		slack int64
	}{
		{"bytes of anonymous memory", func(s sample) int64 { return s.resident }, 8 << 20},
		{"descriptors", func(s sample) int64 { return s.descriptors }, 3},
		{"threads", func(s sample) int64 { return s.threads }, 3},
	} {
		before, after, flat := growth(samples, what.of, what.slack)
		fmt.Fprintf(k.out, "%s: %d in the second third, %d in the last\n", what.name, before, after)
		if !flat {
			err = errors.Join(err, fmt.Errorf("%s grew from %d to %d", what.name, before, after))
		}
	}
	return err
}

// finish ends guests and daemon and reads the disks. The daemon ends twice: the first time it prints its goroutines, which are
// to be no more than those of one that has just been started on the same state.
func (k *soak) finish(ctx context.Context) error {
	for _, d := range k.disks {
		if err := d.guest.hold(ctx); err != nil {
			return err
		}
		d.guest.end()
	}
	idle := func() (int, error) {
		if err := sleep(ctx, time.Second); err != nil { // connections end
			return 0, err
		}
		n, err := goroutines(k.daemon.process)
		k.daemon.hangUp()
		return n, err
	}
	after, err := idle()
	if err != nil {
		return err
	}
	if err := k.daemon.start(ctx); err != nil {
		return err
	}
	before, err := idle()
	if err != nil {
		return err
	}
	fmt.Fprintf(k.out, "goroutines: %d after the soak, %d of a daemon just started\n", after, before)
	if after > before+8 {
		return fmt.Errorf("the daemon had %d goroutines at the end, one just started has %d", after, before)
	}
	if err := k.daemon.start(ctx); err != nil {
		return err
	}
	if err := k.daemon.stop(ctx, func() { k.daemon.process.signal(syscall.SIGTERM) }); err != nil {
		return err
	}
	if err := k.server.stop(ctx); err != nil {
		return err
	}
	for _, d := range k.disks {
		if err := d.verify(k.daemon.path(d.source)); err != nil {
			return err
		}
		k.counts.longest("longest wait of a guest", time.Duration(d.guest.worst.Load()))
	}
	fmt.Fprintln(k.out, "every disk has what its guest was told")
	return nil
}

// end ends whatever still runs.
func (k *soak) end() {
	for _, d := range k.disks {
		if d.guest.cancel != nil {
			d.guest.end()
		}
	}
	if k.daemon != nil && k.daemon.process != nil {
		if k.daemon.process.alive() {
			k.daemon.process.dump()
		}
		k.daemon.hangUp()
	}
	if k.server != nil && k.server.process != nil {
		k.server.process.kill()
	}
}
