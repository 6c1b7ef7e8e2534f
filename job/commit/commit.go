// SPDX-License-Identifier: Apache-2.0

package commit

import (
	"context"
	"fmt"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/job"
	"github.com/blkmirror/blkmirror/job/chain"
	"github.com/blkmirror/blkmirror/job/mirror"
)

// Options are the arguments of a commit.
type Options struct {
	JobID        string
	Device       *block.Node // the top of the chain
	Top          *block.Node // whose data, and that of the nodes below it, goes down; nil for Device
	Base         *block.Node // where it goes; nil for the lowest node of the chain
	BackingFile  *string     // what the image over Top calls its backing file afterwards; nil for the name of Base's image
	MaskProtocol bool        // call the format of Base raw there if it has none
	Speed        int64       // bytes per second, 0 for no limit
	OnError      job.Policy
	FilterName   string // node name of the filter over Top, "" for an implicit one
	AutoFinalize bool
	AutoDismiss  bool
	Reopen       chain.Reopen // makes Base writable, and the image whose backing file changes
	Wanted       job.Wanted   // of a job that goes on where another one was
	// Prepare may add to the options of the mirror that does the work, before it starts. It may be nil.
	Prepare func(o *mirror.Options) error
}

// Start starts the job.
func Start(ctx context.Context, graph *block.Graph, jobs *job.Registry, o Options, after job.After) (*mirror.Mirror, error) {
	if err := jobs.CheckID(o.JobID); err != nil {
		return nil, err
	}
	nodes := chain.Nodes(o.Device)
	top, base, err := o.place(nodes)
	if err != nil {
		return nil, err
	}
	m := mirror.Options{JobID: o.JobID, Source: nodes[top], Target: nodes[base], Commit: mirror.CommitActive, Speed: o.Speed,
		OnSourceError: o.OnError, OnTargetError: o.OnError, FilterName: o.FilterName,
		AutoFinalize: o.AutoFinalize, AutoDismiss: o.AutoDismiss, Wanted: o.Wanted}
	writable := &chain.Writable{Reopen: o.Reopen}
	m.OnEnd = func(pivoted bool) error {
		var keep *block.Node
		if pivoted && top == 0 {
			keep = m.Target // guests write to it from now on
		}
		return writable.Close(context.Background(), keep)
	}
	if top > 0 {
		overlay := nodes[top-1]
		m.Commit = mirror.CommitLower
		m.OnPivot = func(ctx context.Context, _ *block.Tx) error {
			// The operator may have closed the overlay by now, or have given it another backing node.
			if n, err := graph.Node(overlay.Name()); err != nil || n != overlay || chain.Index(chain.Nodes(overlay), m.Source) != 1 {
				return nil
			}
			return chain.Rename(ctx, overlay, m.Target, o.BackingFile, o.MaskProtocol)
		}
		err = writable.Open(ctx, overlay)
	}
	if err == nil {
		err = writable.Open(ctx, m.Target)
	}
	if err == nil && o.Prepare != nil {
		err = o.Prepare(&m)
	}
	var started *mirror.Mirror
	if err == nil {
		started, err = mirror.Start(ctx, graph, jobs, m, after)
	}
	if err != nil {
		_ = writable.Close(context.WithoutCancel(ctx), nil) // the first error says more
		return nil, err
	}
	return started, nil
}

// place finds out what is to be committed into what, as places in the chain.
func (o *Options) place(nodes []*block.Node) (top, base int, err error) {
	base = len(nodes) - 1
	if o.Top != nil {
		if top = chain.Index(nodes, o.Top); top < 0 {
			return 0, 0, invalid("'%s' is not in the backing chain of '%s'", o.Top.Name(), o.Device.Name())
		}
	}
	if o.Base != nil {
		if base = chain.Index(nodes, o.Base); base < 0 {
			return 0, 0, invalid("'%s' is not in the backing chain of '%s'", o.Base.Name(), o.Device.Name())
		}
	}
	switch above, below := nodes[top], nodes[base]; {
	case top == base && (o.Base != nil || len(nodes) > 1):
		return 0, 0, invalid("Cannot commit '%s' into itself", above.Name())
	case base <= top:
		return 0, 0, invalid("'%s' is not a backing node of '%s'", below.Name(), above.Name())
	case top == 0 && o.BackingFile != nil:
		return 0, 0, invalid("'backing-file' specified, but 'top' is the active layer")
	case below.Size() > above.Size():
		// What base has there would come to light.
		return 0, 0, invalid("'%s' with %d bytes is longer than '%s' with %d bytes: users would see more of it afterwards; resize "+
			"one of them first", below.Name(), below.Size(), above.Name(), above.Size())
	case top > 0 && !chain.CanRename(nodes[top-1]):
		return 0, 0, &block.Error{Kind: block.KindNotSupported, Op: block.OpGraph, Node: nodes[top-1].Name(),
			Err: fmt.Errorf("The backing file of node '%s' (driver %s) cannot be changed", nodes[top-1].Name(), nodes[top-1].DriverName())}
	}
	return top, base, nil
}

func invalid(format string, args ...any) error {
	return &block.Error{Kind: block.KindInvalid, Op: block.OpGraph, Err: fmt.Errorf(format, args...)}
}
