// SPDX-License-Identifier: Apache-2.0

package blocktest

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/rangelock"
)

// OverlayOptions describe an overlay.
type OverlayOptions struct {
	Size    int64 // 0 for that of the backing node
	Cluster int64 // bytes, a power of two; 0 for 64 KiB
}

// cluster says who decides what a cluster reads as.
type cluster uint8

const (
	below cluster = iota // the backing node; zeroes where there is none
	own                  // the layer itself
	zero                 // the layer itself, and it reads as zeroes
)

// Overlay is a copy-on-write disk: what was never written to it comes from a backing node. What was written lies in Own, on
// which a test can set hooks.
type Overlay struct {
	Own     *Mem
	cluster int64
	backing atomic.Pointer[block.Edge]
	lock    rangelock.Lock // on whole clusters: orders all that changes them
	mu      struct {
		sync.Mutex
		clusters []cluster
		name     string // of the backing file, as the image has it
		format   string
		refuse   error // of ChangeBackingFile
	}
}

// NewOverlay returns an overlay with nothing of its own over a node, or over nothing.
func NewOverlay(backing *block.Edge, o OverlayOptions) *Overlay {
	if o.Size == 0 {
		o.Size = backing.Size()
	}
	if o.Cluster == 0 {
		o.Cluster = 64 << 10
	}
	v := &Overlay{Own: NewMem(MemOptions{Size: o.Size}), cluster: o.Cluster}
	v.backing.Store(backing)
	v.mu.clusters = make([]cluster, (o.Size+o.Cluster-1)/o.Cluster)
	return v
}

// Size is the length of the disk.
func (v *Overlay) Size() int64 { return v.Own.Size() }

// Limits tell the cluster size.
func (v *Overlay) Limits() block.Limits { return block.Limits{Granularity: v.cluster} }

// CanZeroUnmap: zeroes never take space.
func (v *Overlay) CanZeroUnmap() bool { return true }

// FileName is a name that no file has.
func (v *Overlay) FileName() string { return "overlay:" }

// SetBacking has the disk fall back to another node.
func (v *Overlay) SetBacking(b *block.Edge) { v.backing.Store(b) }

// ChangeBackingFile keeps the name.
func (v *Overlay) ChangeBackingFile(_ context.Context, name, format string) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.mu.refuse == nil {
		v.mu.name, v.mu.format = name, format
	}
	return v.mu.refuse
}

// FailRename has ChangeBackingFile fail from now on.
func (v *Overlay) FailRename(err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.mu.refuse = err
}

// BackingFile is what ChangeBackingFile said last.
func (v *Overlay) BackingFile() (name, format string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.mu.name, v.mu.format
}

// ChildPermissions: the backing node is read only. It may change if the users of this disk do not mind that.
func (v *Overlay) ChildPermissions(_ string, need, share block.Perm) (childNeed, childShare block.Perm) {
	childShare = block.PermConsistentRead | block.PermWriteUnchanged
	if share&block.PermWrite != 0 {
		childShare |= block.PermWrite | block.PermResize
	}
	return need & block.PermConsistentRead, childShare
}

// run is who decides at an offset, and how many of n bytes they decide about.
func (v *Overlay) run(off, n int64) (cluster, int64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	at := off / v.cluster
	what := v.mu.clusters[at]
	end := at + 1
	for end*v.cluster < off+n && v.mu.clusters[end] == what {
		end++
	}
	return what, min(end*v.cluster-off, n)
}

// set makes clusters of a range, which begins and ends with one, of a kind.
func (v *Overlay) set(off, n int64, what cluster) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for at := off / v.cluster; at*v.cluster < off+n; at++ {
		v.mu.clusters[at] = what
	}
}

// Allocated is how many clusters the layer decides about.
func (v *Overlay) Allocated() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return len(slices.DeleteFunc(slices.Clone(v.mu.clusters), func(c cluster) bool { return c == below }))
}

// ReadAt reads from whoever decides.
func (v *Overlay) ReadAt(ctx context.Context, p []byte, off int64) error {
	for len(p) > 0 {
		what, n := v.run(off, int64(len(p)))
		var err error
		switch what {
		case own:
			err = v.Own.ReadAt(ctx, p[:n], off)
		case zero:
			clear(p[:n])
		default:
			err = v.readBelow(ctx, p[:n], off)
		}
		if err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

func (v *Overlay) readBelow(ctx context.Context, p []byte, off int64) error {
	b := v.backing.Load()
	n := 0
	if b != nil {
		n = int(min(max(b.Size()-off, 0), int64(len(p))))
	}
	clear(p[n:])
	if n == 0 {
		return nil
	}
	return b.ReadAt(ctx, p[:n], off)
}

// outward is the range of whole clusters around another one, cut off at the end of the disk.
func (v *Overlay) outward(off, n int64) (int64, int64) {
	from := off / v.cluster * v.cluster
	return from, min((off+n+v.cluster-1)/v.cluster*v.cluster, v.Size()) - from
}

// adopt makes the cluster of a range its own that will be written next. A reader sees the old content until it is written.
func (v *Overlay) adopt(ctx context.Context, off, n int64) error {
	at, size := v.outward(off, n)
	if what, _ := v.run(at, size); what == own {
		return nil
	}
	p := make([]byte, size)
	if err := v.ReadAt(ctx, p, at); err != nil {
		return err
	}
	if err := v.Own.WriteAt(ctx, p, at, 0); err != nil {
		return err
	}
	v.set(at, size, own)
	return nil
}

// WriteAt writes to the layer.
func (v *Overlay) WriteAt(ctx context.Context, p []byte, off int64, flags block.Flags) error {
	h := v.lock.Lock(v.outward(off, int64(len(p))))
	defer v.lock.Unlock(h)
	return v.eachCluster(off, int64(len(p)), func(at, size int64, whole bool) error {
		if !whole {
			if err := v.adopt(ctx, at, size); err != nil {
				return err
			}
		}
		if err := v.Own.WriteAt(ctx, p[at-off:at-off+size], at, flags); err != nil {
			return err
		}
		v.set(at/v.cluster*v.cluster, size, own)
		return nil
	})
}

// WriteZeroes makes whole clusters zero by a note, and writes the rest.
func (v *Overlay) WriteZeroes(ctx context.Context, off, n int64, flags block.Flags) error {
	h := v.lock.Lock(v.outward(off, n))
	defer v.lock.Unlock(h)
	return v.eachCluster(off, n, func(at, size int64, whole bool) error {
		what, _ := v.run(at, size)
		switch {
		case whole:
			v.set(at, size, zero)
			return nil
		case what == zero:
			return nil
		}
		if err := v.adopt(ctx, at, size); err != nil {
			return err
		}
		return v.Own.WriteZeroes(ctx, at, size, flags)
	})
}

// Discard frees whole clusters. They read as zeroes, over a backing node too.
func (v *Overlay) Discard(_ context.Context, off, n int64) error {
	h := v.lock.Lock(v.outward(off, n))
	defer v.lock.Unlock(h)
	return v.eachCluster(off, n, func(at, size int64, whole bool) error {
		switch {
		case !whole:
		case v.backing.Load() == nil:
			v.set(at, size, below)
		default:
			v.set(at, size, zero)
		}
		return nil
	})
}

// eachCluster cuts a range at the borders of clusters.
func (v *Overlay) eachCluster(off, n int64, do func(at, size int64, whole bool) error) error {
	for end := off + n; off < end; {
		from, size := v.outward(off, 1)
		part := min(from+size, end) - off
		if err := do(off, part, part == size); err != nil {
			return err
		}
		off += part
	}
	return nil
}

// BlockStatus tells what is data and zero in the whole chain, and what is allocated in this layer.
func (v *Overlay) BlockStatus(ctx context.Context, off, n int64) (block.Extent, error) {
	what, n := v.run(off, n)
	b := v.backing.Load()
	switch {
	case what == own:
		return v.Own.BlockStatus(ctx, off, n)
	case what == zero:
		return block.Extent{Len: n, Status: block.StatusZero | block.StatusAllocated}, nil
	case b == nil || off >= b.Size():
		return block.Extent{Len: n, Status: block.StatusZero}, nil
	}
	extent, err := b.BlockStatus(ctx, off, min(n, b.Size()-off))
	extent.Status &^= block.StatusAllocated
	return extent, err
}

// Flush makes what was written durable.
func (v *Overlay) Flush(ctx context.Context) error { return v.Own.Flush(ctx) }

// Resize changes the length. What is added reads as zeroes, whatever the backing node has there.
func (v *Overlay) Resize(ctx context.Context, size int64) error {
	if size < v.cluster*int64(len(v.mu.clusters)) && size%v.cluster != 0 && size < v.Size() {
		return errors.New("an overlay shrinks by whole clusters")
	}
	if old := v.Size(); old%v.cluster != 0 { // the rest of its last cluster is the layer's
		if err := v.adopt(ctx, old-1, 1); err != nil {
			return err
		}
	}
	if err := v.Own.Resize(ctx, size); err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	for int64(len(v.mu.clusters))*v.cluster < size {
		v.mu.clusters = append(v.mu.clusters, zero)
	}
	v.mu.clusters = v.mu.clusters[:(size+v.cluster-1)/v.cluster]
	return nil
}

// Close makes all later requests fail.
func (v *Overlay) Close() error { return v.Own.Close() }

var (
	_ block.Driver         = (*Overlay)(nil)
	_ block.ZeroWriter     = (*Overlay)(nil)
	_ block.ZeroUnmapper   = (*Overlay)(nil)
	_ block.Discarder      = (*Overlay)(nil)
	_ block.StatusReporter = (*Overlay)(nil)
	_ block.Resizer        = (*Overlay)(nil)
	_ block.Limiter        = (*Overlay)(nil)
	_ block.FileNamer      = (*Overlay)(nil)
	_ block.ChildPermitter = (*Overlay)(nil)
	_ block.BackingSetter  = (*Overlay)(nil)
	_ block.BackingChanger = (*Overlay)(nil)
)
