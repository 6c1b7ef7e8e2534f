// SPDX-License-Identifier: Apache-2.0

package handlers

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/bitmap"
	"github.com/blkmirror/blkmirror/job/mirror"
	"github.com/blkmirror/blkmirror/job/mirror/intent"
	"github.com/blkmirror/blkmirror/qmp/api"
)

// keepMirror has a mirror or a commit keep an intent file: one that begins, or, with what was found in its last one, one that goes on.
func (h *Handlers) keepMirror(k *keptJob, o *mirror.Options, found *intent.Found) (err error) {
	pivoted, ended := o.OnPivot, o.OnEnd
	o.OnPivot = func(ctx context.Context, tx *block.Tx) error {
		if pivoted != nil {
			if err := pivoted(ctx, tx); err != nil {
				return err
			}
		}
		if o.Commit == mirror.CommitActive {
			h.leaveWritable(tx, o.Target)
		}
		return h.finishing(k, tx, &pivot{from: o.Source, to: o.Target})
	}
	o.OnEnd = func(pivoted bool) error {
		var err error
		if ended != nil {
			err = ended(pivoted)
		}
		return errors.Join(err, h.endKept(k))
	}
	o.OnInsert = func(_ context.Context, m *mirror.Mirror, tx *block.Tx) error {
		k.mirror = m
		return h.inserted(k, tx)
	}
	if !h.keeps() {
		return nil
	}
	o.OnTrouble = func(err error) { h.intentTrouble(o.JobID, err) }
	k.size = o.Source.Size()
	now := &picture{knowledge: h.knowledge()}
	expect, err := h.identify(now.diskName(o.Source), now.diskName(o.Target), k.size, targetSize(o))
	if err != nil {
		return err
	}
	unflushed := o.Target.Reconnects() || o.Target.Withholds() || o.Source.Withholds()
	c := intent.Config{Size: k.size, Granularity: 512, Durability: h.kept.Durability, Boot: expect.Boot, Source: expect.Source,
		Target: expect.Target, Unflushed: unflushed, Region: h.kept.Region, Hot: h.kept.Hot}
	var dirty *bitmap.Bitmap
	if found != nil {
		dirty = found.Dirty
	}
	if k.file, k.log, err = h.newIntent(c, dirty); err != nil {
		return err
	}
	if found != nil && found.Pass != nil {
		if err := k.log.SetPass(*found.Pass); err != nil {
			return err
		}
	}
	if o.Target.Reconnects() {
		flight, err := bitmap.New(k.size, 512<<10) // nothing
		if err != nil {
			return err
		}
		if o.Resume != nil {
			flight = o.Resume.Flight
		}
		c.Hot = flightHot
		if k.second, k.flight, err = h.newIntent(c, flight); err != nil {
			return err
		}
	}
	o.Intent, o.Flight = k.log, k.flight
	return nil
}

// targetSize is how long the target is when the job runs: a base that is shorter grows.
func targetSize(o *mirror.Options) int64 {
	if o.Commit != mirror.CommitNot {
		return o.Source.Size()
	}
	return o.Target.Size()
}

// flightHot bounds what has to be compared at completion after a crash, in regions.
const flightHot = 32

// newIntent makes an intent file; with nothing known to be dirty, everything is.
func (h *Handlers) newIntent(c intent.Config, dirty *bitmap.Bitmap) (name string, log *intent.Log, err error) {
	dir := h.kept.Dir
	if name, err = dir.NewIntent(); err != nil {
		return "", nil, err
	}
	path, err := dir.IntentPath(name)
	if err != nil {
		return "", nil, err
	}
	phase := intent.Copying
	if dirty == nil {
		phase = intent.Scanning
	}
	f, err := dir.MakeIntent(name)
	if err != nil {
		return "", nil, fmt.Errorf("intent file: %w", err)
	}
	if log, err = intent.Create(path, f, c, phase, dirty); err != nil {
		return "", nil, errors.Join(err, f.Close(), dir.DropIntent(name))
	}
	return name, log, dir.Sync()
}

// loadIntent reads an intent file.
func (h *Handlers) loadIntent(name string, expect intent.Expect) (*intent.Found, error) {
	path, err := h.kept.Dir.IntentPath(name)
	if err != nil {
		return nil, err
	}
	f, err := h.kept.Dir.OpenIntent(name)
	if err != nil {
		return intent.Lost(path, err), nil
	}
	defer f.Close()
	return intent.Load(path, f, expect), nil
}

func (k *keptJob) close() error {
	var errs []error
	for _, l := range []*intent.Log{k.log, k.flight} {
		if l != nil {
			errs = append(errs, l.Close())
		}
	}
	return errors.Join(errs...)
}

// dropFiles removes the files of a job that no state names.
func (h *Handlers) dropFiles(k *keptJob) error {
	var errs []error
	for _, name := range []string{k.file, k.second} {
		if name != "" {
			if err := h.kept.Dir.DropIntent(name); !errors.Is(err, fs.ErrNotExist) { // the start may have found it unused
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

// identify says who the disks are and when this is.
func (h *Handlers) identify(source, target string, sourceSize, targetSize int64) (e intent.Expect, err error) {
	host := &h.config.Host
	if e.Boot, err = host.BootID(); err != nil {
		return e, err
	}
	if e.Source, err = host.Identify(source, sourceSize); err != nil {
		return e, err
	}
	e.Target, err = host.Identify(target, targetSize)
	return e, err
}

// intentTrouble tells that an intent file could not be written.
func (h *Handlers) intentTrouble(id string, err error) {
	h.kept.Trouble(fmt.Errorf("job '%s': %w", id, err))
	text := err.Error()
	h.config.Emit(&api.BlockJobErrorEvent{Device: id, Operation: api.IoOperationTypeWrite, Action: api.BlockErrorActionIgnore,
		Errno: &text})
}
