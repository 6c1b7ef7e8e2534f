// SPDX-License-Identifier: Apache-2.0

package handlers

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/driver/qcow2"
	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
)

// imageTeller is a driver that knows what a qcow2 image says of itself at present.
type imageTeller interface{ Info() *qcow2.Info }

// qcow2Options turns the options of a qcow2 node into those of its driver.
func qcow2Options(o *api.BlockdevOptionsQcow2, n *nodeOptions) qcow2.Options {
	return qcow2.Options{ReadOnly: n.ReadOnly, LazyRefcounts: o.LazyRefcounts, PassDiscardRequest: o.PassDiscardRequest,
		PassDiscardSnapshot: o.PassDiscardSnapshot, PassDiscardOther: o.PassDiscardOther,
		DiscardNoUnref: qmp.Or(o.DiscardNoUnref, false), L2CacheSize: o.L2CacheSize, RefcountCacheSize: o.RefcountCacheSize,
		CacheSize: o.CacheSize, L2CacheEntrySize: o.L2CacheEntrySize, CacheCleanInterval: o.CacheCleanInterval, Unmap: n.Discard}
}

func (h *Handlers) openQcow2(ctx context.Context, o qcow2.Options, edges []*block.Edge) (block.Driver, error) {
	var c qcow2.Children
	for _, e := range edges {
		switch e.Name() {
		case "file":
			c.File = e
		case "backing":
			c.Backing = e
		case "data-file":
			c.Data = e
		}
	}
	var disk atomic.Pointer[qcow2.Disk]
	var once sync.Once
	o.OnCorrupt = func(c qcow2.Corruption) { once.Do(func() { h.tellOfCorruption(disk.Load(), c) }) }
	d, err := qcow2.Open(ctx, o, c)
	if err != nil {
		return nil, err
	}
	disk.Store(d)
	return d, nil
}

// tellOfCorruption tells monitors what is wrong with an image.
func (h *Handlers) tellOfCorruption(d *qcow2.Disk, c qcow2.Corruption) {
	event := &api.BlockImageCorruptedEvent{Msg: c.Message, Fatal: c.Fatal}
	for _, n := range h.graph.Nodes() {
		if n.Driver() == block.Driver(d) {
			event.NodeName = nonEmpty(n.Name())
		}
	}
	if c.Len > 0 {
		event.Offset, event.Size = &c.Off, &c.Len
	}
	h.config.Emit(event)
}

// createQcow2 makes an image on nodes that nobody else writes to. data is nil for an image that keeps its data itself. Who
// drains one of the nodes waits until the image is made.
func createQcow2(ctx context.Context, o qcow2.CreateOptions, file, data *block.Backend) error {
	var edge *block.Edge
	for _, b := range []*block.Backend{file, data} {
		if b == nil {
			continue
		}
		if err := b.Gate().Enter(ctx); err != nil {
			return err
		}
		defer b.Gate().Leave()
	}
	if data != nil {
		edge = &data.Edge
	}
	return qcow2.Create(ctx, o, &file.Edge, edge)
}

// createImage makes the body of a job that makes an image. It opens and holds the nodes that the image goes to; what is wrong
// with them is the job's to tell.
func (h *Handlers) createImage(ctx context.Context, jobID string, a *api.BlockdevCreateOptionsQcow2) creation {
	o, err := createOptions(a)
	var file, data *block.Backend
	if err == nil {
		err = h.connecting(ctx, func() error {
			return h.graph.Change(ctx, func(tx *block.Tx) (err error) {
				if file, err = h.hold(ctx, tx, &a.File, "file", jobID); err != nil || a.DataFile == nil {
					return err
				}
				if data, err = h.hold(ctx, tx, a.DataFile, "data-file", jobID); err != nil {
					return err
				}
				o.DataFileName = data.Node().FileName()
				return nil
			})
		})
	}
	if err != nil {
		return creation{run: func(context.Context) error { return err }}
	}
	return creation{
		run: func(ctx context.Context) error { return createQcow2(ctx, o, file, data) },
		clean: func(ctx context.Context) error {
			return h.graph.Change(ctx, func(tx *block.Tx) error {
				for _, b := range []*block.Backend{file, data} {
					if b == nil {
						continue
					}
					n := b.Node()
					tx.Detach(b)
					if !h.graph.Monitored(n) && len(h.graph.Users(n)) == 0 {
						if err := tx.RemoveNode(n); err != nil {
							return err
						}
					}
				}
				return nil
			})
		}}
}

// hold opens or finds a node and keeps others from writing to it.
func (h *Handlers) hold(ctx context.Context, tx *block.Tx, ref *api.BlockdevRef, role, jobID string) (*block.Backend, error) {
	c, err := h.child(ctx, tx, ref, site{parent: &nodeOptions{}, role: role})
	if err != nil {
		return nil, err
	}
	return tx.Attach(c.Node, "job '"+jobID+"'", block.PermConsistentRead|block.PermWrite|block.PermResize, block.PermConsistentRead)
}

func createOptions(a *api.BlockdevCreateOptionsQcow2) (qcow2.CreateOptions, error) {
	o := qcow2.CreateOptions{Size: int64(a.Size), Version: 3, ClusterSize: int64(qmp.Or(a.ClusterSize, 64<<10)),
		RefcountBits: int(qmp.Or(a.RefcountBits, 16)), ExtendedL2: qmp.Or(a.ExtendedL2, false),
		LazyRefcounts: qmp.Or(a.LazyRefcounts, false), Compression: either(string(a.CompressionType), "zlib"),
		BackingFile: qmp.Or(a.BackingFile, ""), BackingFormat: string(a.BackingFmt), DataFileRaw: qmp.Or(a.DataFileRaw, false)}
	if a.Version == api.BlockdevQcow2VersionV2 {
		o.Version = 2
	}
	switch {
	case o.Size < 0:
		return o, qmp.Errorf("Parameter 'options.size' is too large: %d", a.Size)
	case o.ClusterSize < 0:
		return o, qmp.Errorf("Parameter 'options.cluster-size' is too large: %d", *a.ClusterSize)
	case a.Encrypt != nil:
		return o, qmp.Errorf("Parameter 'encrypt' is not supported: images cannot be encrypted here")
	case o.BackingFormat != "" && o.BackingFile == "":
		return o, qmp.Errorf("Backing format cannot be used without backing file")
	case o.DataFileRaw && a.DataFile == nil:
		return o, qmp.Errorf("data-file-raw requires data-file")
	case o.DataFileRaw && o.BackingFile != "":
		return o, qmp.Errorf("Backing file and data-file-raw cannot be used at the same time")
	}
	switch a.Preallocation {
	case api.PreallocModeMetadata:
		o.Preallocation = qcow2.PreallocationMetadata
	case api.PreallocModeFalloc:
		o.Preallocation = qcow2.PreallocationFalloc
	case api.PreallocModeFull:
		o.Preallocation = qcow2.PreallocationFull
	}
	return o, nil
}
