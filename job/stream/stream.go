// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"context"
	"errors"
	"fmt"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/job"
	"github.com/blkmirror/blkmirror/job/chain"
)

// Options are the arguments of a stream.
type Options struct {
	JobID        string
	Device       *block.Node // the image that gets the data
	Base         *block.Node // stays below it; nil for nothing
	BackingFile  *string     // what the image of Device calls its backing file afterwards; nil for the name of Base's image
	MaskProtocol bool        // call the format of Base raw there if it has none
	Speed        int64       // bytes per second, 0 for no limit
	OnError      job.Policy
	FilterName   string // node name of the filter over Device, "" for an implicit one
	AutoFinalize bool
	AutoDismiss  bool
	Wanted       job.Wanted   // of a job that goes on where another one was
	Reopen       chain.Reopen // makes Device writable
	// OnInsert is called when everything about the job but its start is done, and can still refuse it. It may be nil.
	OnInsert func(s *Stream, tx *block.Tx) error
	// OnFinish is called when the images are as they are to be, before guests go on; if it fails the job does. It may be nil.
	OnFinish func(tx *block.Tx) error
	// OnEnd is called when the job has given up all nodes. It may be nil.
	OnEnd func() error
}

const blockReason = "block device is in use by block job: stream"

// Stream is the body of the job.
type Stream struct {
	opts     Options
	graph    *block.Graph
	job      *job.Job
	memory   *job.Memory // for copies
	bottom   *block.Node // the lowest of the nodes that leave the chain; nil if none does
	filter   *filter
	node     *block.Node // the filter's
	backend  *block.Backend
	blockers []func(*block.Tx)
	writable chain.Writable
	gone     bool // the filter is out of the graph
}

// Start puts the filter into the graph and starts the job.
func Start(ctx context.Context, graph *block.Graph, jobs *job.Registry, o Options, after job.After) (*Stream, error) {
	if err := jobs.CheckID(o.JobID); err != nil {
		return nil, err
	}
	s := &Stream{opts: o, graph: graph, writable: chain.Writable{Reopen: o.Reopen}}
	nodes := chain.Nodes(o.Device)
	base := len(nodes)
	if o.Base != nil {
		if base = chain.Index(nodes, o.Base); base < 0 {
			return nil, invalid("'%s' is not in the backing chain of '%s'", o.Base.Name(), o.Device.Name())
		}
	}
	switch {
	case base == 0:
		return nil, invalid("Cannot stream '%s' into itself", o.Device.Name())
	case base > 1:
		s.bottom = nodes[base-1]
		if !chain.CanRename(o.Device) {
			return nil, &block.Error{Kind: block.KindNotSupported, Op: block.OpGraph, Node: o.Device.Name(),
				Err: fmt.Errorf("The backing file of node '%s' (driver %s) cannot be changed", o.Device.Name(), o.Device.DriverName())}
		}
	}
	if err := job.CheckSpeed(o.Speed); err != nil {
		return nil, err
	}
	var err error
	s.job, err = jobs.Add(job.Config{ID: o.JobID, Type: "stream", BlockJob: true, Speed: o.Speed,
		AutoFinalize: o.AutoFinalize, AutoDismiss: o.AutoDismiss, Wanted: o.Wanted, Body: s})
	if err != nil {
		return nil, err
	}
	s.memory = jobs.OpenMemory(job.LeastBuffer)
	if s.bottom != nil {
		err = s.writable.Open(ctx, o.Device)
	}
	if err == nil {
		err = graph.Change(ctx, func(tx *block.Tx) error { return s.insert(ctx, tx, nodes[:base]) })
	}
	if err != nil {
		s.job.Abandon()
		s.memory.Close()
		_ = s.writable.Close(context.WithoutCancel(ctx), nil) // the first error says more
		return nil, err
	}
	s.job.Start(after)
	return s, nil
}

// insert puts the filter above the device, under every user it has.
func (s *Stream) insert(ctx context.Context, tx *block.Tx, used []*block.Node) error {
	device := s.opts.Device
	for _, n := range used {
		if err := n.Busy(); err != nil {
			return err
		}
	}
	if err := tx.Drain(ctx, nil, device); err != nil {
		return err
	}
	user := "block job '" + s.opts.JobID + "'"
	var err error
	s.node, err = tx.AddNode(block.NodeConfig{
		Name: s.opts.FilterName, DriverName: "copy-on-read", Options: block.Options{Discard: true, ReadOnly: device.Options().ReadOnly},
		Filter: true, Implicit: s.opts.FilterName == "", Owner: user, Children: []block.Child{{Name: "file", Node: device}},
		Open: func(edges []*block.Edge) (block.Driver, error) {
			s.filter = &filter{device: edges[0]}
			return s.filter, nil
		}})
	if err != nil {
		return err
	}
	tx.Replace(device, s.node)
	if s.backend, err = tx.Attach(s.node, user, 0, block.PermAll); err != nil {
		return err
	}
	for _, n := range append(used, s.node) {
		b := tx.Block(n, blockReason)
		s.blockers = append(s.blockers, func(tx *block.Tx) { tx.Unblock(n, b) })
	}
	if s.opts.OnInsert != nil {
		return s.opts.OnInsert(s, tx)
	}
	return nil
}

// Nodes are the device and what is to be below it at the end, nil for nothing. The caller holds the graph.
func (s *Stream) Nodes() (device, base *block.Node) { return s.opts.Device, s.base() }

// base is the node that stays below the device; nil if none does. Another job may have put it in the place of another one.
func (s *Stream) base() *block.Node {
	if s.bottom == nil {
		return s.opts.Device.Backing()
	}
	return s.bottom.Backing()
}

// finish gives the device its new backing node, and takes the filter out of the graph.
func (s *Stream) finish(ctx context.Context) error {
	return s.graph.Change(ctx, func(tx *block.Tx) error {
		if err := tx.Drain(ctx, s.backend.Gate(), s.node); err != nil {
			return err
		}
		if err := s.job.Commit(); err != nil {
			return err
		}
		if s.bottom != nil {
			// What was copied is durable before the image says that it needs no other.
			if err := s.filter.device.Flush(ctx); err != nil {
				return err
			}
			base := s.base()
			if err := chain.Rename(ctx, s.opts.Device, base, s.opts.BackingFile, s.opts.MaskProtocol); err != nil {
				return err
			}
			if err := tx.SetChild(s.opts.Device.Unfiltered(), "backing", base); err != nil {
				return err
			}
		}
		if err := s.extract(tx); err != nil || s.opts.OnFinish == nil {
			return err
		}
		return s.opts.OnFinish(tx)
	})
}

// extract takes the filter out of the graph. Its users are drained.
func (s *Stream) extract(tx *block.Tx) error {
	for _, unblock := range s.blockers {
		unblock(tx)
	}
	tx.Detach(s.backend)
	tx.Replace(s.node, s.opts.Device)
	tx.OnCommit(func() error {
		s.gone = true
		return nil
	})
	return tx.RemoveNode(s.node)
}

// Clean takes the filter out of the graph if the end of the job did not.
func (s *Stream) Clean(error) error {
	ctx := context.Background()
	var errs []error
	if !s.gone {
		// Giving permissions up makes no conflict, so this should not fail. If it does, the filter stays and passes requests on.
		errs = append(errs, s.graph.Change(ctx, func(tx *block.Tx) error {
			if err := tx.Drain(ctx, s.backend.Gate(), s.node); err != nil {
				return err
			}
			return s.extract(tx)
		}))
	}
	s.memory.Close()
	errs = append(errs, s.writable.Close(ctx, nil))
	if s.opts.OnEnd != nil {
		errs = append(errs, s.opts.OnEnd())
	}
	return errors.Join(errs...)
}

func invalid(format string, args ...any) error {
	return &block.Error{Kind: block.KindInvalid, Op: block.OpGraph, Err: fmt.Errorf(format, args...)}
}
