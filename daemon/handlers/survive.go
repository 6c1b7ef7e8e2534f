// SPDX-License-Identifier: Apache-2.0

package handlers

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/bitmap"
	"github.com/blkmirror/blkmirror/daemon/state"
	"github.com/blkmirror/blkmirror/job"
	"github.com/blkmirror/blkmirror/job/mirror"
	"github.com/blkmirror/blkmirror/job/mirror/intent"
	"github.com/blkmirror/blkmirror/job/verify"
	"github.com/blkmirror/blkmirror/qmp/api"
)

// The commands that make jobs which a restart brings back; the state calls a mirror's "".
const (
	commandCommit = "block-commit"
	commandStream = "block-stream"
	commandVerify = "blockdev-verify"
)

// keptJob is a job that a restart brings back. What follows job belongs to who holds the graph, or to the command that starts it.
type keptJob struct {
	id string
	// describe says how the job would be made now. The graph is held.
	describe func(p *picture) (state.Job, error)

	job    *job.Job
	gone   bool // it was cancelled, or is at its end: it does not come back
	mute   bool // it was told that the job cannot come back
	still  *state.Job
	undone error // why a state could not be brought back when the job could not start
	size   int64 // of the disks

	// Of comparisons.
	verify  *verify.Verify
	disks   [2]string       // what they are in
	digest  bool            // it always starts from the beginning
	reached *state.Compared // when that was last recorded
	ill     bool            // it could not be when that was last tried; belongs to the job

	// Of mirrors and commits.
	mirror *mirror.Mirror
	log    *intent.Log
	flight *intent.Log // nil for a target that is here
	file   string      // the name of log's file
	second string      // that of flight's
}

// now is how a job is to come back.
func (k *keptJob) now(p *picture) (state.Job, error) {
	if k.still != nil {
		return *k.still, nil
	}
	j, err := k.describe(p)
	if err != nil {
		return j, err
	}
	w := k.job.Wanted()
	j.Paused, j.Finalize, j.Intent, j.Flight = w.Paused, w.Finalize, k.file, k.second
	switch {
	case w.Softly:
		j.Complete = state.CompleteSoft
	case w.Complete:
		j.Complete = state.CompleteFull
	}
	return j, nil
}

// addJobs adds the jobs that are to come back.
func (p *picture) addJobs(jobs []*keptJob) {
	for _, k := range jobs {
		if k.gone {
			continue
		}
		j, err := k.now(p)
		if err == nil {
			p.Jobs = append(p.Jobs, j)
		} else if !k.mute {
			k.mute = true
			p.trouble(fmt.Errorf("job '%s' will not come back after a restart: %w", k.id, err))
		}
	}
}

// keeps says whether jobs come back.
func (h *Handlers) keeps() bool { return h.kept.Dir != nil }

// startKept has start start a job. If that fails nothing is left of what is kept of it.
func (h *Handlers) startKept(k *keptJob, start func() error) error {
	err := start()
	if err != nil && h.keeps() {
		err = errors.Join(err, k.undone, k.close(), h.dropFiles(k))
	}
	return err
}

// inserted records a job before it holds.
func (h *Handlers) inserted(k *keptJob, tx *block.Tx) (err error) {
	if !h.keeps() {
		return nil
	}
	if k.job, err = h.jobs.Find(k.id); err != nil {
		return err
	}
	was := h.kept.known
	h.kept.known = h.knowledge() // the job may have made nodes writable
	h.kept.jobs = append(h.kept.jobs, k)
	tx.OnRollBack(func() {
		h.kept.known = was
		h.dropKept(k)
	})
	if !h.kept.on {
		return nil
	}
	return h.record(tx, nil, &k.undone)
}

func (h *Handlers) dropKept(k *keptJob) {
	h.kept.jobs = slices.DeleteFunc(h.kept.jobs, func(other *keptJob) bool { return other == k })
}

// finishing records that a job has done its work, before guests go on; v is what becomes of the graph then, nil if that is so
// already.
func (h *Handlers) finishing(k *keptJob, tx *block.Tx, v *pivot) error {
	k.gone = true
	tx.OnRollBack(func() { k.gone = false })
	if !h.kept.on {
		return nil
	}
	var undone error
	tx.OnRollBack(func() {
		if undone != nil {
			h.kept.Trouble(undone) // the job tells why it failed; this is worse
		}
	})
	return h.record(tx, v, &undone)
}

// endKept forgets a job that has ended, unless only the daemon has.
func (h *Handlers) endKept(k *keptJob) error {
	if !h.keeps() {
		return nil
	}
	var undone error
	recorded, stays := false, false
	err := h.graph.Change(context.Background(), func(tx *block.Tx) error {
		if stays = k.still != nil && !k.gone && (k.log == nil || k.log.Phase() < intent.Pivoted); stays {
			return nil
		}
		h.dropKept(k)
		if recorded = h.kept.on; !recorded {
			return nil
		}
		return h.record(tx, nil, &undone)
	})
	if stays {
		return nil
	}
	err = errors.Join(err, undone, k.close())
	switch {
	case err != nil:
		h.kept.Trouble(fmt.Errorf("job '%s' has ended: %w", k.id, err))
	case recorded: // else the state may name the files, which say that the job has ended
		return h.dropFiles(k)
	}
	return nil
}

// ---- Mirrors and commits: intent files

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

// ---- Verbs

// keptOf finds what is kept of a job, nil if nothing is. The graph is held.
func (h *Handlers) keptOf(j *job.Job) *keptJob {
	for _, k := range h.kept.jobs {
		if k.job == j {
			return k
		}
	}
	return nil
}

// noteJob records what a verb changed of a job; undo takes it back if that is not possible.
func (h *Handlers) noteJob(ctx context.Context, j *job.Job, undo func()) error {
	if !j.Info().BlockJob {
		return nil // jobs of other types do not come back
	}
	return h.note(ctx, undo)
}

// cancelWait is how long a cancel waits for the graph, which the job itself may hold for as long as it is not cancelled.
const cancelWait = time.Second

// ask runs a verb that asks a job to end in some way, and records that before the answer. If it cannot be recorded the job does
// nothing. forced says whether the job was cancelled, so that it does not come back.
func (h *Handlers) ask(ctx context.Context, j *job.Job, verb func(job.After) error, forced func() bool) error {
	was, refused := j.Wanted(), false
	err := verb(func(f func()) {
		after(ctx)(func() {
			if !refused {
				f()
			}
		})
	})
	if err != nil || !h.kept.on || !j.Info().BlockJob {
		return err
	}
	gone, begun := forced(), false
	if gone {
		var stop context.CancelFunc
		ctx, stop = context.WithTimeout(ctx, cancelWait)
		defer stop()
	}
	err = h.change(ctx, func(tx *block.Tx) error {
		begun = true
		if k := h.keptOf(j); k != nil && gone && !k.gone {
			k.gone = true
			tx.OnRollBack(func() { k.gone = false })
		}
		return nil
	})
	if err == nil || gone && !begun {
		return nil // it is recorded, or will be when the job has ended
	}
	refused = true
	j.TakeBack(was)
	return err
}

// ---- The end of the daemon

// keepJobs has the jobs come back that run now. Guests end before: their writes would pass by when mirrors end.
func (h *Handlers) keepJobs(ctx context.Context) error {
	if !h.keeps() {
		return nil
	}
	running := 0
	if err := h.eachKept(ctx, func(*picture, *keptJob) { running++ }); err != nil || running == 0 {
		return err
	}
	var err error
	if h.nbd.Running() {
		err = h.nbd.Stop(ctx)
	}
	unknown := h.eachKept(ctx, func(p *picture, k *keptJob) {
		still, cannot := k.now(p)
		if cannot != nil {
			return // that was told
		}
		k.still = &still
		if k.log == nil {
			return
		}
		k.log.Keep()
		if err != nil { // guests may still write
			err = errors.Join(err, k.log.Invalidate(err))
		}
	})
	return errors.Join(err, unknown)
}

func (h *Handlers) eachKept(ctx context.Context, f func(*picture, *keptJob)) error {
	return h.graph.Change(ctx, func(*block.Tx) error {
		p := &picture{State: &state.State{}, knowledge: h.knowledge(), graph: h.graph, trouble: h.kept.Trouble}
		for _, k := range h.kept.jobs {
			if !k.gone {
				f(p, k)
			}
		}
		return nil
	})
}

// restJobs records what the disks are when nobody has them open any more.
func (h *Handlers) restJobs(last *state.State) error {
	var errs []error
	for _, k := range h.kept.jobs {
		switch {
		case k.still == nil:
		case k.verify != nil && last != nil:
			for i := range last.Jobs {
				if string(last.Jobs[i].Definition) == string(k.still.Definition) {
					var err error
					last.Jobs[i].Compared, err = h.compared(k)
					errs = append(errs, err)
				}
			}
		case k.log != nil:
			e, err := h.identify(k.still.Source, k.still.Target, k.size, k.size)
			if err == nil {
				err = k.log.Rest(e.Source, e.Target)
			}
			errs = append(errs, err, k.close())
		}
	}
	if h.kept.jobs = nil; last != nil {
		errs = append(errs, h.kept.Dir.Save(last))
	}
	return errors.Join(errs...)
}

// ---- Places of nodes

// place is how a node is found after a restart: by its name if that is the operator's, else by the way to it from a node with such a
// name: "top/backing/file".
func (p *picture) place(n *block.Node) (string, error) {
	if !strings.HasPrefix(n.Name(), "#") {
		return n.Name(), nil
	}
	for _, above := range p.graph.Nodes() {
		if _, ok := p.opened[above]; !ok {
			continue
		}
		for _, e := range above.Children() {
			if p.below(e.Node()) != n {
				continue
			}
			if way, err := p.place(above); err == nil {
				return way + "/" + e.Name(), nil
			}
		}
	}
	return "", fmt.Errorf("neither node '%s' with '%s' nor any node above it has a name that the operator gave it", n.Name(), n.FileName())
}

// at is the node at a place.
func (h *Handlers) at(place string) (*block.Node, error) {
	name, way, more := strings.Cut(place, "/")
	n, err := h.graph.Node(name)
	for err == nil && more {
		var role string
		role, way, more = strings.Cut(way, "/")
		edges := n.Unfiltered().Children()
		i := slices.IndexFunc(edges, func(e *block.Edge) bool { return e.Name() == role })
		if i < 0 {
			return nil, fmt.Errorf("there is no node at '%s': node '%s' has no child '%s'", place, n.Name(), role)
		}
		n = edges[i].Node().Unfiltered()
	}
	return n, err
}

// diskName is the file or the URI that a node's disk is in, wherever the daemon works from.
func (p *picture) diskName(n *block.Node) string {
	name := n.FileName()
	if strings.Contains(name, "://") {
		return name
	}
	return absolute(name, p.opened[n.Unfiltered()].folder)
}
