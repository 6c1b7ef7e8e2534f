// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
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
		d, err := newDisk(ctx, k.daemon, fmt.Sprintf("disk%d", i), soakSize, k.firstSeed+uint64(i), false)
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
	var names []string
	for _, d := range k.disks {
		if d.remote {
			names = append(names, d.name+"-far")
			if err := makeHole(k.daemon.path(d.name+"-far"), soakSize); err != nil {
				return err
			}
		}
	}
	k.server = newServerOf(k.settings, k.folder, names)
	if err := k.server.start(ctx); err != nil {
		return err
	}
	for _, name := range names {
		if err := k.daemon.do(ctx, "blockdev-add", remoteNode(name, name, "server"), nil); err != nil {
			return err
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

// judge says whether what the daemon holds stayed the same.
func (k *soak) judge(samples []sample) (err error) {
	for _, what := range []struct {
		name  string
		of    func(sample) int64
		slack int64
		part  int64
	}{
		{"bytes of anonymous memory", func(s sample) int64 { return s.resident }, 8 << 20, 4},
		{"descriptors", func(s sample) int64 { return s.descriptors }, 3, 10},
		{"threads", func(s sample) int64 { return s.threads }, 3, 10},
	} {
		before, after, flat := growth(samples, what.of, what.slack, what.part)
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
		k.counts.longest("longest wait of a guest", d.guest.slowest())
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
