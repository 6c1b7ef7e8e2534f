// SPDX-License-Identifier: Apache-2.0

package handlers

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/driver/file"
	"github.com/blkmirror/blkmirror/block/driver/qcow2"
	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
)

// BlockdevSnapshot puts an overlay on a disk in use.
func (h *Handlers) BlockdevSnapshot(ctx context.Context, a *api.BlockdevSnapshot) error {
	return h.change(ctx, func(tx *block.Tx) error { return h.snapshot(ctx, tx, a) })
}

// BlockdevSnapshotSync makes an overlay and puts it on a disk in use.
func (h *Handlers) BlockdevSnapshotSync(ctx context.Context, a *api.BlockdevSnapshotSync) error {
	return h.connecting(ctx, func() error {
		return h.change(ctx, func(tx *block.Tx) error { return h.snapshotSync(ctx, tx, a) })
	})
}

func (h *Handlers) snapshot(ctx context.Context, tx *block.Tx, a *api.BlockdevSnapshot) error {
	n, err := h.graph.Node(a.Node)
	if err != nil {
		return err
	}
	overlay, err := h.graph.Node(a.Overlay)
	if err != nil {
		return err
	}
	return h.overlay(ctx, tx, n, overlay)
}

// overlay gives the users of n an overlay in its place, whose backing node n becomes. What they wrote to n is durable then, so
// that the overlay never refers to data that a crash takes away.
func (h *Handlers) overlay(ctx context.Context, tx *block.Tx, n, overlay *block.Node) error {
	awaited := h.awaitsBacking(overlay)
	for _, busy := range []*block.Node{n, overlay} {
		if err := busy.Busy(); err != nil && !(awaited && busy == overlay) {
			return err
		}
	}
	if above := h.graph.Overlay(n); above != nil {
		return qmp.Errorf("Node '%s' is busy: it is the backing node of '%s'", n.Name(), above.Name())
	}
	users := h.graph.Users(overlay)
	switch _, can := overlay.Driver().(block.BackingSetter); {
	case n == overlay:
		return qmp.Errorf("Node '%s' cannot be an overlay of itself", n.Name())
	case len(users) > 0 && !awaited:
		return qmp.Errorf("The overlay is already in use by %s", users[0])
	case overlay.Backing() != nil:
		return qmp.Errorf("The overlay already has a backing image")
	case !can:
		return qmp.Errorf("The overlay does not support backing images")
	case overlay.Size() != n.Size() && len(h.graph.Users(n)) > 0:
		return qmp.Errorf("The overlay has %d bytes, but node '%s' has %d, and %s uses it", overlay.Size(), n.Name(), n.Size(),
			h.graph.Users(n)[0])
	}
	if err := tx.Drain(ctx, nil, n, overlay); err != nil {
		return err
	}
	if !n.Options().ReadOnly {
		if err := n.Flush(ctx); err != nil {
			return err
		}
	}
	tx.Replace(n, overlay)
	if err := tx.SetChild(overlay, "backing", n); err != nil {
		return err
	}
	h.setBackingOption(tx, overlay, n)
	return nil
}

// setBackingOption makes what a node was opened with say which backing node it has by now.
func (h *Handlers) setBackingOption(tx *block.Tx, n, backing *block.Node) {
	was := h.opened[n]
	if was == nil || was.options.Qcow2 == nil {
		return
	}
	options, format, name := *was.options, *was.options.Qcow2, backing.Name()
	format.Backing = &api.BlockdevRefOrNull{Reference: &name}
	options.Qcow2 = &format
	becomes := *was
	becomes.options = &options
	h.opened[n] = &becomes
	tx.OnRollBack(func() { h.opened[n] = was })
}

func (h *Handlers) snapshotSync(ctx context.Context, tx *block.Tx, a *api.BlockdevSnapshotSync) error {
	device, name := qmp.Or(a.Device, ""), qmp.Or(a.NodeName, "")
	n, err := h.graph.Node(name)
	switch {
	case err != nil || device != "":
		return qmp.Errorf("Cannot find device='%s' nor node-name='%s'", device, name)
	case a.SnapshotNodeName == nil:
		return qmp.Errorf("New overlay node-name missing")
	case qmp.Or(a.Format, "qcow2") != "qcow2":
		return qmp.Errorf("Format '%s' does not support backing images", *a.Format)
	}
	image, err := definitionOf(a.SnapshotFile)
	if err != nil {
		return err
	}
	if a.Mode != api.NewImageModeExisting {
		if err := h.makeOverlay(ctx, tx, n, image); err != nil {
			return err
		}
	}
	o := n.Options()
	options := &api.BlockdevOptions{Driver: api.BlockdevDriverQcow2, NodeName: a.SnapshotNodeName, ReadOnly: &o.ReadOnly,
		Cache: &api.BlockdevCacheOptions{Direct: &o.Direct, NoFlush: &o.NoFlush},
		Qcow2: &api.BlockdevOptionsQcow2{
			BlockdevOptionsGenericCOWFormat: api.BlockdevOptionsGenericCOWFormat{
				BlockdevOptionsGenericFormat: api.BlockdevOptionsGenericFormat{File: api.BlockdevRef{Definition: image}},
				Backing:                      &api.BlockdevRefOrNull{Null: &qmp.Null{}}}}}
	if o.Discard {
		options.Discard = api.BlockdevDiscardOptionsUnmap
	}
	overlay, err := h.open(ctx, tx, options, site{})
	if err != nil {
		return err
	}
	return h.overlay(ctx, tx, n, overlay)
}

// makeOverlay makes the image of an overlay of n, which names n by its full path. It goes again if the change fails and it was not
// there before.
func (h *Handlers) makeOverlay(ctx context.Context, tx *block.Tx, n *block.Node, image *api.BlockdevOptions) error {
	if image.File == nil {
		return qmp.Errorf("An overlay can only be made in a regular file, not with driver '%s': make it with blockdev-create, and give "+
			"mode 'existing'", image.Driver)
	}
	name, format, err := backingName(n)
	if err != nil {
		return err
	}
	path := image.File.Filename
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		tx.OnRollBack(func() { _ = os.Remove(path) })
	}
	if err := file.Create(ctx, file.CreateOptions{Filename: path}); err != nil {
		return err
	}
	child, err := h.open(ctx, tx, image, site{parent: &nodeOptions{}, role: "file"})
	if err != nil {
		return err
	}
	b, err := tx.Attach(child, "the creation of image '"+path+"'", block.PermConsistentRead|block.PermWrite|block.PermResize,
		block.PermConsistentRead)
	if err != nil {
		return err
	}
	if err := tx.ApplyPermissions(ctx); err != nil {
		return err
	}
	if err := createQcow2(ctx, qcow2.CreateOptions{Size: n.Size(), BackingFile: name, BackingFormat: format}, b, nil); err != nil {
		return err
	}
	tx.Detach(b)
	return tx.RemoveNode(child)
}

// backingName is how an image names n as its backing file, with its format.
func backingName(n *block.Node) (name, format string, err error) {
	name = n.FileName()
	for format = n.DriverName(); format == "throttle" || format == "blkdebug"; {
		n = n.Children()[0].Node()
		format = n.DriverName()
	}
	switch format {
	case "qcow2", "raw":
	case "file", "host_device", "nbd":
		format = "raw"
	default:
		return "", "", qmp.Errorf("Node '%s' has no file that an image could name as its backing file", n.Name())
	}
	if definition, err := definitionOf(name); err == nil && (definition.File != nil || definition.HostDevice != nil) {
		name, err = filepath.Abs(name)
		return name, format, err
	}
	return name, format, nil
}

// ChangeBackingFile changes the name of the backing file that an image in a chain has in its header.
func (h *Handlers) ChangeBackingFile(ctx context.Context, a *api.ChangeBackingFileArguments) error {
	return h.change(ctx, func(tx *block.Tx) error {
		top, err := h.graph.Node(a.Device)
		if err != nil {
			return err
		}
		n, err := h.graph.Node(a.ImageNodeName)
		if err != nil {
			return err
		}
		changer, ok := n.Driver().(block.BackingChanger)
		switch {
		case !inChain(top, n):
			return qmp.Errorf("'%s' and image file are not in the same chain", a.Device)
		case !ok:
			return qmp.Errorf("Node '%s' (driver %s) names no backing file", n.Name(), n.DriverName())
		case n.Backing() == nil && a.BackingFile != "":
			return qmp.Errorf("Node '%s' has no backing node", n.Name())
		case len(a.BackingFile) > 1023:
			return qmp.Errorf("The name of a backing file has at most 1023 bytes, not %d", len(a.BackingFile))
		}
		if err := n.Busy(); err != nil {
			return err
		}
		format := ""
		if a.BackingFile != "" {
			if _, format, err = backingName(n.Backing()); err != nil {
				return err
			}
		}
		return h.writable(ctx, tx, n, func() error {
			if again, ok := n.Driver().(block.BackingChanger); ok {
				changer = again
			}
			return changer.ChangeBackingFile(ctx, a.BackingFile, format)
		})
	})
}

// inChain says whether n is top or one of the layers below it.
func inChain(top, n *block.Node) bool {
	for at := top.Unfiltered(); at != nil; at = at.Backing() {
		if at = at.Unfiltered(); at == n {
			return true
		}
	}
	return false
}
