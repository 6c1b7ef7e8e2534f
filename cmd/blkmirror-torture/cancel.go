// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/blkmirror/blkmirror/block/nbd/nbdguest"
)

// Of the disks whose mirrors are cancelled: small, so that a mirror is ready soon, and with guests that write all the time.
const (
	cancelSize  = 2 << 20
	cancelLanes = 4
)

// disk is one disk of a daemon that has several, with its guest and a node for the mirror's target.
type disk struct {
	name   string // of the source's node and of the export
	target string // node
	model  *model
	guest  *guest
	random *rand.Rand
}

// runCancel starts mirrors under guests' writes and cancels them by force as soon as they are ready, in one daemon.
func runCancel(ctx context.Context, s *settings) (err error) {
	folder, err := os.MkdirTemp(s.folder, "torture-cancel-")
	if err != nil {
		return err
	}
	began := time.Now()
	d := newDaemon(folder, s.daemon, "--state-dir", "state", "--nbd-server", "addr.type=unix,addr.path=nbd")
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	var disks []*disk
	defer func() {
		for _, k := range disks {
			k.guest.end()
		}
		if d.process != nil && d.process.alive() {
			d.process.dump()
		}
		d.hangUp()
		if err == nil && !s.keep {
			err = os.RemoveAll(folder)
		} else {
			fmt.Fprintf(s.out, "kept in %s\n", folder)
		}
	}()
	if err := d.start(ctx); err != nil {
		return err
	}
	// Every second disk has its target on another daemon.
	n, names := max(2, s.jobs), []string(nil)
	for i := 1; i < n; i += 2 {
		names = append(names, fmt.Sprintf("disk%d-copy", i))
		if err := makeHole(filepath.Join(folder, names[len(names)-1]), cancelSize); err != nil {
			return err
		}
	}
	away := newServerOf(s, folder, names)
	if err := away.start(ctx); err != nil {
		return err
	}
	defer away.process.kill()
	for i := range n {
		k, err := newDisk(ctx, d, fmt.Sprintf("disk%d", i), cancelSize, s.firstSeed+uint64(i), i%2 == 1)
		if err != nil {
			return err
		}
		disks = append(disks, k)
		k.guest.start(s.firstSeed+uint64(i)*1000, cancelLanes)
	}
	before, err := d.picture(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintf(s.out, "%d mirrors of %d disks to cancel, seed %d\n", s.count, len(disks), s.firstSeed)
	var left, done atomic.Int64
	left.Store(int64(s.count))
	c := newCounts()
	for left.Load() > 0 && time.Since(began) < s.time {
		// All disks cancel a batch at once; then none has a mirror, and the graph must be as it was.
		var batch sync.WaitGroup
		for _, k := range disks {
			batch.Go(func() {
				for range 25 {
					if left.Add(-1) < 0 {
						return
					}
					if err := k.cancelOne(ctx, d, c); err != nil {
						fail(fmt.Errorf("%s, mirror %d: %w", k.name, done.Load(), err))
						return
					}
					done.Add(1)
				}
			})
		}
		batch.Wait()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		now, err := d.picture(ctx)
		if err != nil {
			return err
		}
		if now != before {
			return fmt.Errorf("after %d mirrors nodes and exports were\n%s\nand are\n%s", done.Load(), before, now)
		}
		if n := done.Load(); n%1000 == 0 {
			fmt.Fprintf(s.out, "%d cancelled, %v\n", n, time.Since(began).Round(time.Second))
		}
	}
	for _, k := range disks {
		if err := k.guest.hold(ctx); err != nil {
			return err
		}
		k.guest.end()
		c.add("guest requests answered", k.guest.done.Load())
		c.add("guest requests whose answer was lost", k.guest.lost.Load())
		c.add("guest connections made again", k.guest.again.Load()-1)
		c.longest("longest wait of a guest", k.guest.slowest())
	}
	if err := d.stop(ctx, func() { d.process.signal(syscall.SIGTERM) }); err != nil {
		return err
	}
	for _, k := range disks {
		if err := k.verify(filepath.Join(folder, k.name)); err != nil {
			return err
		}
	}
	c.add("mirrors cancelled by force when ready", done.Load())
	fmt.Fprintf(s.out, "%d mirrors cancelled in %v; every disk has what its guest was told\n", done.Load(), time.Since(began).Round(time.Second/10))
	c.print(s.out)
	if done.Load() < int64(s.count) {
		return errors.New("there was no time for all of them")
	}
	return nil
}

// newDisk makes two images, their nodes, and an export of the first with a guest that has not begun. A second image that is
// away is made, and served, by others.
func newDisk(ctx context.Context, d *daemon, name string, size int64, seed uint64, away bool) (*disk, error) {
	k := &disk{name: name, target: name + "-copy", model: newModel(size, seed), random: rand.New(rand.NewPCG(seed, 2))}
	if err := makeRaw(d.path(name), size, "thin", k.model, k.random); err != nil {
		return nil, err
	}
	target := remoteNode(k.target, k.target, "server")
	if !away {
		if err := makeHole(d.path(k.target), size); err != nil {
			return nil, err
		}
		target = imageNode(k.target, "raw", d.path(k.target), nil)
	}
	for _, n := range []args{imageNode(name, "raw", d.path(name), nil), target} {
		if err := d.do(ctx, "blockdev-add", n, nil); err != nil {
			return nil, err
		}
	}
	if err := d.do(ctx, "block-export-add", args{"type": "nbd", "id": name, "node-name": name, "name": name, "writable": true}, nil); err != nil {
		return nil, err
	}
	k.guest = &guest{socket: d.path("nbd"), export: name, model: k.model, pause: 500 * time.Microsecond,
		forgive: func(nbdguest.Errno, nbdguest.CommandType) bool { return false }, late: func() bool { return false }}
	return k, nil
}

// verify reads the disk when nobody uses it any more.
func (k *disk) verify(image string) error {
	f, err := os.Open(image)
	if err != nil {
		return err
	}
	defer f.Close()
	return pieces(f, int64(len(k.model.mu.sectors))*sectorSize, func(data []byte, off int64) error { return k.model.check(data, off/sectorSize) })
}

// cancelOne starts a mirror and cancels it by force at some moment after it became ready.
func (k *disk) cancelOne(ctx context.Context, d *daemon, c *counts) error {
	id := k.name + "-mirror"
	ready, cancelled, ended := d.seen("BLOCK_JOB_READY "+id), d.seen("BLOCK_JOB_CANCELLED "+id), d.seen("BLOCK_JOB_COMPLETED "+id)
	mode := pick(k.random, "background", "write-blocking", "write-blocking", "auto")
	err := d.do(ctx, "blockdev-mirror", args{"job-id": id, "device": k.name, "target": k.target, "sync": "full", "copy-mode": mode,
		"granularity": 4096 << k.random.IntN(5)}, nil)
	if err != nil {
		return err
	}
	c.add("in mode "+mode, 1)
	if err := until(ctx, convergeLimit, "the mirror is ready", func() (bool, error) {
		return d.seen("BLOCK_JOB_READY "+id) > ready, k.guest.error()
	}); err != nil {
		return err
	}
	if err := sleep(ctx, time.Duration(k.random.Int64N(int64(2*time.Millisecond)))); err != nil {
		return err
	}
	command, a := "job-cancel", args{"id": id}
	if k.random.IntN(2) == 0 {
		command, a = "block-job-cancel", args{"device": id, "force": true}
	}
	if err := d.do(ctx, command, a, nil); err != nil {
		return err
	}
	return until(ctx, convergeLimit, "the mirror is gone", func() (bool, error) {
		if d.seen("BLOCK_JOB_COMPLETED "+id) > ended {
			return false, fmt.Errorf("the mirror was not cancelled but completed: %s", d.said("BLOCK_JOB_COMPLETED "+id))
		}
		return d.seen("BLOCK_JOB_CANCELLED "+id) > cancelled && d.said("JOB_STATUS_CHANGE "+id) == "null", k.guest.error()
	})
}
