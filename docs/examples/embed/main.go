// SPDX-License-Identifier: Apache-2.0

// Embed mirrors a raw image to another one in its own process, while it writes to the disk as a guest would:
//
//	embed SOURCE TARGET
//
// docs/embedding.md explains it.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/driver/file"
	"github.com/blkmirror/blkmirror/job"
	"github.com/blkmirror/blkmirror/job/mirror"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: embed SOURCE TARGET")
		os.Exit(2)
	}
	if err := run(context.Background(), os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "embed:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, source, target string) (err error) {
	graph := block.NewGraph()
	events := &watcher{ready: make(chan struct{})}
	jobs := job.NewRegistry(events)
	var guest *block.Backend
	var from, to *block.Node
	// The shape of the graph changes inside Change only; what fails is taken back as a whole.
	err = graph.Change(ctx, func(tx *block.Tx) error {
		if from, err = open(tx, "source", source); err != nil {
			return err
		}
		if to, err = open(tx, "target", target); err != nil {
			return err
		}
		// The guest reads and writes, and minds nobody else's doing.
		guest, err = tx.Attach(from, "guest", block.PermConsistentRead|block.PermWrite, block.PermAll)
		return err
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeAll(context.WithoutCancel(ctx), graph, jobs, guest)) }()

	m, err := mirror.Start(ctx, graph, jobs, mirror.Options{JobID: "move", Source: from, Target: to,
		Sync: mirror.SyncFull, Mode: mirror.WriteBlocking,
		AutoFinalize: true, AutoDismiss: true}, nil) // nil: there is no client who must have a reply first
	if err != nil {
		return err
	}
	j, err := jobs.Find("move")
	if err != nil {
		return err
	}
	if err := guest.WriteAt(ctx, bytes.Repeat([]byte("written beside the mirror"), 100), 4096, 0); err != nil {
		return err
	}
	select {
	case <-events.ready:
	case <-j.Done(): // it failed
		return j.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
	state := m.State()
	fmt.Printf("ready: %d bytes copied, %d left\n", state.Bytes.Copied+state.Bytes.Offloaded, state.Dirty)
	if err := j.Complete(nil); err != nil {
		return err
	}
	<-j.Done()
	if err := j.Err(); err != nil {
		return err
	}
	// The guest's backend is the one that it was, and leads to the target now.
	fmt.Println("the guest is on:", guest.Node().Name())
	return guest.Flush(ctx)
}

// open makes a node of an image.
func open(tx *block.Tx, name, path string) (*block.Node, error) {
	return tx.AddNode(block.NodeConfig{Name: name, DriverName: "file", Options: block.Options{Discard: true}, Monitor: true,
		Open: func([]*block.Edge) (block.Driver, error) { return file.Open(file.Options{Filename: path}) }})
}

// closeAll ends jobs first, then the guest's use of its node, then the nodes.
func closeAll(ctx context.Context, graph *block.Graph, jobs *job.Registry, guest *block.Backend) error {
	err := jobs.CancelAll(ctx)
	return errors.Join(err, graph.Change(ctx, func(tx *block.Tx) error {
		tx.Detach(guest)
		for _, n := range graph.Nodes() {
			if err := tx.RemoveNode(n); err != nil {
				return err
			}
		}
		return nil
	}))
}

// watcher is told what happens to jobs, under a lock of theirs: it must not block.
type watcher struct{ ready chan struct{} }

func (w *watcher) StatusChanged(id string, s job.Status) { fmt.Println(id, "is", s) }
func (w *watcher) BecameReady(job.Info)                  { close(w.ready) }
func (w *watcher) BecamePending(job.Info)                {}
func (w *watcher) Completed(job.Info)                    {}
func (w *watcher) Cancelled(job.Info)                    {}
func (w *watcher) Failed(id string, f job.Failure)       { fmt.Println(id, "had an error:", f) }
