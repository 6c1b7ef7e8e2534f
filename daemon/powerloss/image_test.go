// SPDX-License-Identifier: Apache-2.0

package powerloss

import (
	"context"
	"io/fs"
	"runtime"
	"time"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/blocktest"
	"github.com/blkmirror/blkmirror/block/driver/file"
	"github.com/blkmirror/blkmirror/job/mirror/intent"
)

// image is one of a host. All nodes on its path share it.
type image struct {
	*blocktest.Mem
	host     *host
	path     string
	number   uint64
	modified time.Time
	synced   time.Time // what modified was at the last flush
	slow     time.Duration
}

func (h *host) addImage(path string, mem *blocktest.Mem, slow time.Duration) {
	h.inodes++
	h.images[path] = &image{Mem: mem, host: h, path: path, number: h.inodes, slow: slow}
}

func (i *image) left(h *host, power bool) *image {
	after := *i
	after.host = h
	if !power {
		after.Mem = i.Copy()
		return &after
	}
	after.Mem = i.Crash(h.random.Uint64())
	if h.random.IntN(2) == 0 {
		after.modified = i.synced // file systems need not keep the time of a write, not even if it was flushed
	}
	return &after
}

// OpenFile opens an image.
func (h *host) OpenFile(o file.Options) (block.Driver, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if i := h.images[o.Filename]; i != nil {
		return i, nil
	}
	return nil, &fs.PathError{Op: "open", Path: o.Filename, Err: fs.ErrNotExist}
}

// Identify says which image has a path.
func (h *host) Identify(name string, size int64) (intent.Identity, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if i := h.images[name]; i != nil {
		return intent.Identity{Device: 1, Inode: i.number, Size: size, Modified: i.modified}, nil
	}
	return intent.Identity{}, &fs.PathError{Op: "stat", Path: name, Err: fs.ErrNotExist}
}

// BootID tells one life of the host from others.
func (h *host) BootID() ([16]byte, error) { return h.boot, nil }

// wait is what a request takes before or after it is carried out.
func (i *image) wait() {
	if i.slow == 0 {
		runtime.Gosched()
		return
	}
	i.host.mu.Lock()
	d := time.Duration(i.host.random.Int64N(int64(i.slow)))
	i.host.mu.Unlock()
	if d > i.slow/4 {
		time.Sleep(d)
	}
}

func (i *image) write(do func() error) error {
	i.wait()
	defer i.wait()
	return i.host.step(stepImage, func() error {
		i.modified = time.Now()
		return do()
	})
}

func (i *image) ReadAt(ctx context.Context, p []byte, off int64) error {
	i.wait()
	defer i.wait()
	return i.Mem.ReadAt(ctx, p, off)
}

func (i *image) WriteAt(ctx context.Context, p []byte, off int64, flags block.Flags) error {
	return i.write(func() error { return i.Mem.WriteAt(ctx, p, off, flags) })
}

func (i *image) WriteZeroes(ctx context.Context, off, n int64, flags block.Flags) error {
	return i.write(func() error { return i.Mem.WriteZeroes(ctx, off, n, flags) })
}

func (i *image) Discard(ctx context.Context, off, n int64) error {
	return i.write(func() error { return i.Mem.Discard(ctx, off, n) })
}

func (i *image) Resize(ctx context.Context, size int64) error {
	return i.write(func() error { return i.Mem.Resize(ctx, size) })
}

// CopyRange copies without the daemon.
func (i *image) CopyRange(ctx context.Context, from block.Driver, fromOff, off, n int64, atomic bool) (copied int64,
	how block.Offload, err error) {
	source, ok := from.(*image)
	if !ok {
		return 0, 0, block.NotSupported
	}
	err = i.write(func() error {
		copied, how, err = i.Mem.CopyRange(ctx, source.Mem, fromOff, off, n, atomic)
		return err
	})
	return copied, how, err
}

// Flush makes durable what was written when it is carried out.
func (i *image) Flush(ctx context.Context) error {
	i.wait()
	defer i.wait()
	return i.host.step(stepImageFlush, func() error {
		i.synced = i.modified
		return i.Mem.Flush(ctx)
	})
}

func (i *image) FileName() string { return i.path }

// Close leaves it to others.
func (i *image) Close() error { return nil }
