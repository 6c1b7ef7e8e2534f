// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/job"
)

// Options are the arguments of a comparison.
type Options struct {
	JobID          string
	Device, Target *block.Node
	Speed          int64 // bytes of one side per second, 0 for no limit
	Digest         bool  // of both disks
	OnSourceError  job.Policy
	OnTargetError  job.Policy
	AutoFinalize   bool
	AutoDismiss    bool
	OnEnd          func(State) // told when the whole disk was compared, from the job's goroutine; may be nil
	Wanted         job.Wanted  // of a job that goes on where another one was
	// From is how far that one came. A digest is of all of the disks, so that with one nothing but zero is of use.
	From Position
	// OnInsert is called when everything about the job but its start is done, and can still refuse it. It may be nil.
	OnInsert func(v *Verify, tx *block.Tx) error
	// OnPosition is called every few seconds from the job's goroutine when the job has come further, and before it waits to be
	// finalized. It may wait for the graph as long as its context lets it. It may be nil.
	OnPosition func(ctx context.Context)
	// OnClosed is called when the job has given up both disks. It may be nil.
	OnClosed func() error
}

// Position is how far two disks were compared, and what was found up to there.
type Position struct {
	End       int64 // of what was compared from the start on without a gap, in bytes
	Differing int64 // as in State
	First     int64
}

// State is what was found so far.
type State struct {
	Verified  int64 // bytes that are equal
	Left      int64 // bytes that are to be compared still
	Differing int64 // bytes of the sectors of 512 bytes that differ
	First     int64 // offset of the first of them, if Differing is not 0
	// Digests are those of the device and of the target in hexadecimal digits, when all was compared and they were wanted; else "".
	Digests [2]string
}

// Verify is the body of the job.
type Verify struct {
	opts           Options
	graph          *block.Graph
	job            *job.Job
	memory         *job.Memory // for pieces of both disks
	device, target *block.Backend

	mu struct {
		sync.Mutex
		state    State
		position Position
		unsure   bool // the disks may read as something else after a crash
	}
}

// Start starts a comparison.
func Start(ctx context.Context, graph *block.Graph, jobs *job.Registry, o Options, after job.After) (*Verify, error) {
	if o.Device.Unfiltered() == o.Target.Unfiltered() {
		return nil, invalid("Node '%s' cannot be compared with itself", o.Device.Name())
	}
	if a, b := o.Device.Size(), o.Target.Size(); a != b {
		return nil, invalid("Node '%s' has %d bytes and node '%s' %d: they cannot be equal", o.Device.Name(), a, o.Target.Name(), b)
	}
	from, size := o.From, o.Device.Size()
	if from.End < 0 || from.End > size || from.Differing < 0 || from.Differing > from.End || from.First < 0 || from.First > from.End {
		return nil, invalid("The disks of %d bytes cannot have been compared up to %d, with %d bytes that differ from %d on", size, from.End,
			from.Differing, from.First)
	}
	v := &Verify{opts: o, graph: graph}
	v.mu.position = from
	v.mu.state = State{Verified: from.End - from.Differing, Left: size - from.End, Differing: from.Differing, First: from.First}
	var err error
	v.job, err = jobs.Add(job.Config{ID: o.JobID, Type: "verify", BlockJob: true, Speed: o.Speed,
		AutoFinalize: o.AutoFinalize, AutoDismiss: o.AutoDismiss, Wanted: o.Wanted, Body: v})
	if err != nil {
		return nil, err
	}
	v.memory = jobs.OpenMemory(2 * pieceSize)
	if err := graph.Change(ctx, v.attach); err != nil {
		v.job.Abandon()
		v.memory.Close()
		return nil, err
	}
	v.job.Start(after)
	return v, nil
}

// attach takes both disks for reading, and keeps writers away.
func (v *Verify) attach(tx *block.Tx) (err error) {
	const share = block.PermConsistentRead | block.PermWriteUnchanged
	user := "block job '" + v.opts.JobID + "'"
	for _, n := range []*block.Node{v.opts.Device, v.opts.Target} {
		if err := n.Busy(); err != nil {
			return err
		}
	}
	if v.device, err = tx.Attach(v.opts.Device, user, block.PermConsistentRead, share); err != nil {
		return err
	}
	v.target, err = tx.Attach(v.opts.Target, user, block.PermConsistentRead, share)
	if err == nil && v.opts.OnInsert != nil {
		err = v.opts.OnInsert(v, tx)
	}
	return err
}

// Clean gives the disks up.
func (v *Verify) Clean(error) error {
	err := v.graph.Change(context.Background(), func(tx *block.Tx) error {
		tx.Detach(v.device)
		tx.Detach(v.target)
		return nil
	})
	v.memory.Close()
	if v.opts.OnClosed != nil {
		err = errors.Join(err, v.opts.OnClosed())
	}
	return err
}

// Position is how far the job has come, zero if that is of no use to another one.
func (v *Verify) Position() Position {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.mu.unsure {
		return Position{}
	}
	return v.mu.position
}

// State is a snapshot.
func (v *Verify) State() State {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.mu.state
}

// enter passes the gates of both disks. Whoever waits for one holds not the other, since they may be drained together.
func (v *Verify) enter(ctx context.Context) error {
	a, b := v.device.Gate(), v.target.Gate()
	for {
		if err := v.job.Enter(ctx, a); err != nil {
			return err
		}
		if b.TryEnter() {
			return nil
		}
		a.Leave()
		if err := v.job.Enter(ctx, b); err != nil {
			return err
		}
		b.Leave()
	}
}

func (v *Verify) leave() {
	v.target.Gate().Leave()
	v.device.Gate().Leave()
}

func invalid(format string, args ...any) error {
	return &block.Error{Kind: block.KindInvalid, Op: block.OpGraph, Err: fmt.Errorf(format, args...)}
}
