// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"time"

	"github.com/blkmirror/blkmirror/block/nbd/nbdguest"
	"github.com/blkmirror/blkmirror/cmd/blkmirror/bytesize"
	"github.com/blkmirror/blkmirror/cmd/blkmirror/follow"
	"github.com/blkmirror/blkmirror/cmd/blkmirror/progress"
	"github.com/blkmirror/blkmirror/qmp/api"
	"github.com/blkmirror/blkmirror/qmp/client"
)

// jobID is the mirror's.
const jobID = "mirror"

// granularity is the mirror's, in bytes. By default it copies 64 KiB at least,
// which is good for large extents of data; the pieces here are small, and the
// target is to be as thin as the source.
const granularity = 4096

// Shares of the time that the phases take, about; the rest is the switch.
const (
	shareAlone    = 0.15
	shareCopying  = 0.45
	shareInStep   = 0.1
	shareOnTarget = 0.25
)

// demo is one demonstration.
type demo struct {
	*settings
	out     io.Writer
	paths   paths
	model   *model
	daemon  *process
	monitor *client.Client
	disk    *nbdguest.Client
	guest   *guest
	data    int64       // bytes of data on the source at first
	final   api.JobInfo // of the mirror, when it was over
}

// run gives the demonstration, and returns nil only if everything was right.
func run(ctx context.Context, s *settings, out io.Writer) (err error) {
	folder, err := os.MkdirTemp(s.folder, "blkmirror-demo-")
	if err != nil {
		return err
	}
	if s.keep {
		fmt.Fprintf(out, "The files are kept in %s.\n", folder)
	} else {
		defer func() { err = errors.Join(err, os.RemoveAll(folder)) }()
	}
	ctx, fail := context.WithCancelCause(ctx)
	d := &demo{settings: s, out: out, paths: pathsIn(folder), model: newModel(int64(s.size), s.seed)}
	defer d.close(fail)
	for _, step := range []func(context.Context, func(error)) error{d.prepare, d.mirror, d.shutDown} {
		if err := step(ctx, fail); err != nil {
			// What goes wrong first makes other things fail, too.
			if cause := context.Cause(ctx); cause != nil {
				err = cause
			}
			return err
		}
	}
	return d.report()
}

// close ends what still runs, in case of a failure.
func (d *demo) close(fail func(error)) {
	fail(nil)
	if d.guest != nil {
		d.guest.workers.Wait()
	}
	if d.disk != nil {
		d.disk.Close()
	}
	if d.monitor != nil {
		d.monitor.Close()
	}
	if d.daemon != nil {
		<-d.daemon.exited
	}
}

func (d *demo) say(format string, args ...any) { fmt.Fprintf(d.out, format+"\n", args...) }

// prepare makes the disks, and starts the daemon and the guest.
func (d *demo) prepare(ctx context.Context, fail func(error)) (err error) {
	rng := rand.New(rand.NewPCG(d.seed, 0))
	if d.data, err = makeSource(d.paths.source, d.model, d.pieces, int64(d.settings.data), rng); err != nil {
		return err
	}
	if err := makeTarget(d.paths.target, int64(d.size)); err != nil {
		return err
	}
	d.say("Seed %d. Source: %s, with %s of data in %d pieces. Target: %s, empty.", d.seed, bytesize.Format(int64(d.size)),
		bytesize.Format(d.data), d.pieces, bytesize.Format(int64(d.size)))

	if d.daemon, err = startDaemon(ctx, d.settings.daemon, d.paths); err != nil {
		return err
	}
	if d.monitor, err = d.daemon.connect(ctx, d.paths.qmp); err != nil {
		return err
	}
	if d.disk, err = nbdguest.Dial(ctx, "unix", d.paths.nbd, exportName, nbdguest.Options{}); err != nil {
		return err
	}
	if d.disk.Size() != uint64(d.size) || !d.disk.Flags().Has(nbdguest.SendTrim|nbdguest.SendWriteZeroes|nbdguest.SendFlush) {
		return fmt.Errorf("the export has %d bytes and flags %#x", d.disk.Size(), d.disk.Flags())
	}
	d.guest = startGuest(ctx, d.disk, d.model, d.seed, d.depth, d.rate, fail)
	d.say("The guest writes, zeroes, trims and reads, %d requests per second, %d at a time.", d.rate, d.depth)
	return d.pass(ctx, alone, shareAlone)
}

// pass lets time go by in a phase.
func (d *demo) pass(ctx context.Context, p phase, share float64) error {
	d.guest.latencies.enter(p)
	timer := time.NewTimer(time.Duration(share * float64(d.time)))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// mirror mirrors the disk under the guest, and switches the guest to the copy.
func (d *demo) mirror(ctx context.Context, _ func(error)) error {
	speed := max(int64(float64(d.data)/(shareCopying*d.time.Seconds())), 1<<20)
	no, id, granularity := false, jobID, uint32(granularity)
	err := d.monitor.Execute(ctx, "blockdev-mirror", &api.BlockdevMirrorArguments{JobID: &id, Device: sourceNode,
		Target: targetNode, Sync: api.MirrorSyncModeFull, CopyMode: api.MirrorCopyModeWriteBlocking, Speed: &speed,
		Granularity: &granularity, AutoDismiss: &no}, nil)
	if err != nil {
		return fmt.Errorf("blockdev-mirror: %w", err)
	}
	d.say("The mirror runs, at %s/s at most, with copy mode write-blocking and a granularity of %s:", bytesize.Format(speed),
		bytesize.Format(int64(granularity)))
	d.guest.latencies.enter(copying)

	display := progress.New(d.out)
	err = d.complete(ctx, display)
	if err := errors.Join(err, display.Close()); err != nil {
		return err
	}
	before, err := fingerprint(d.paths.source)
	if err != nil {
		return err
	}
	d.say("The guest is on the target now.")
	if err := d.pass(ctx, onTarget, shareOnTarget); err != nil {
		return err
	}
	d.guest.finish()
	if err := context.Cause(ctx); err != nil {
		return err
	}
	after, err := fingerprint(d.paths.source)
	if err != nil {
		return err
	}
	if before != after {
		return errors.New("the source has changed after the switch")
	}
	return nil
}

// complete waits until the copy is in step, and a moment longer, and switches
// the guest over.
func (d *demo) complete(ctx context.Context, display progress.Display) error {
	reach := func(goal follow.Goal, want follow.Result) error {
		outcome, err := follow.Job(ctx, d.monitor, jobID, follow.Options{Goal: goal}, display)
		if err == nil && outcome.Result != want {
			err = fmt.Errorf("the mirror is %s in place of %s: %s", outcome.Result, want, outcome.Error)
		}
		d.final = outcome.Last.Job
		return err
	}
	if err := reach(follow.UntilReady, follow.Ready); err != nil {
		return err
	}
	if err := d.pass(ctx, inStep, shareInStep); err != nil {
		return err
	}
	d.guest.latencies.enter(switching)
	if err := d.monitor.Execute(ctx, "job-complete", &api.JobCompleteArguments{ID: jobID}, nil); err != nil {
		return fmt.Errorf("job-complete: %w", err)
	}
	return reach(follow.UntilEnd, follow.Completed)
}

// shutDown ends the guest and the daemon in good order, so that everything is
// in the files.
func (d *demo) shutDown(ctx context.Context, _ func(error)) error {
	var exports []api.BlockExportInfo
	if err := d.monitor.Execute(ctx, "query-block-exports", nil, &exports); err != nil {
		return err
	}
	if len(exports) != 1 || exports[0].NodeName != targetNode {
		return fmt.Errorf("the target is not what is exported: %+v", exports)
	}
	if err := d.monitor.Execute(ctx, "job-dismiss", &api.JobDismissArguments{ID: jobID}, nil); err != nil {
		return fmt.Errorf("job-dismiss: %w", err)
	}
	if err := d.disk.Flush(ctx); err != nil {
		return err
	}
	if err := d.disk.Disconnect(ctx); err != nil {
		return err
	}
	if err := d.monitor.Execute(ctx, "quit", nil, nil); err != nil {
		return fmt.Errorf("quit: %w", err)
	}
	select {
	case <-d.daemon.exited:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if d.daemon.err != nil {
		return d.daemon.died()
	}
	return nil
}
