// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"errors"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/driver/nbd"
	"github.com/blkmirror/blkmirror/qmp/api"
)

// Reader reads a node. It has to be closed before the engine.
type Reader struct {
	*nbd.Disk
	engine *Engine
	export string
}

// Reader opens a node for reading.
func (e *Engine) Reader(ctx context.Context, node string) (*Reader, error) {
	socket, err := e.socket(ctx)
	if err != nil {
		return nil, err
	}
	r := &Reader{engine: e, export: "read-" + node}
	o := &api.BlockExportOptions{Type: api.BlockExportTypeNBD, ID: r.export, NodeName: node, NBD: &api.BlockExportOptionsNbd{Name: &r.export}}
	if err := e.Execute(ctx, "block-export-add", o, nil); err != nil {
		return nil, err
	}
	r.Disk, err = nbd.Open(ctx, nbd.Options{Server: nbd.UnixPath(socket), Export: r.export, ReadOnly: true})
	if err != nil {
		return nil, errors.Join(err, r.remove(ctx))
	}
	return r, nil
}

func (r *Reader) remove(ctx context.Context) error {
	return r.engine.Execute(ctx, "block-export-del", &api.BlockExportDelArguments{ID: r.export, Mode: api.BlockExportRemoveModeHard}, nil)
}

// Close gives the node up.
func (r *Reader) Close(ctx context.Context) error {
	return errors.Join(r.Disk.Close(), r.remove(ctx))
}

// data returns the extent at off that has one status: whether it may be other than zero, and its length.
func (r *Reader) data(ctx context.Context, off, n int64) (data bool, length int64, err error) {
	e, err := r.BlockStatus(ctx, off, n)
	if err != nil {
		return false, 0, err
	}
	return e.Status&block.StatusZero == 0, min(e.Len, n), nil
}
