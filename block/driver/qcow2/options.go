// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"math"
	"time"

	"github.com/blkmirror/blkmirror/block"
)

// Options are those of an open image. A nil pointer stands for the default.
type Options struct {
	ReadOnly            bool
	LazyRefcounts       *bool // default: what the image says
	PassDiscardRequest  *bool // a guest's discards reach the file; default: Unmap
	PassDiscardSnapshot *bool // default: true
	PassDiscardOther    *bool // clusters that are free for another reason; default: false
	DiscardNoUnref      bool  // a guest's discards leave clusters allocated
	L2CacheSize         *int64
	RefcountCacheSize   *int64
	CacheSize           *int64  // both together
	L2CacheEntrySize    *int64  // bytes read at once of an L2 table
	CacheCleanInterval  *uint64 // seconds after which unused tables leave the caches; 0 for never, default 600
	Unmap               bool    // the node was opened with discard=unmap
	OnCorrupt           func(Corruption)
}

// Corruption tells what is wrong in an image that was in order as far as was known.
type Corruption struct {
	Message  string
	Off, Len int64 // in the file; Len is 0 if no place is concerned
	Fatal    bool  // the image was marked corrupt and is not written to any more
}

const (
	defaultL2Cache   = 32 << 20
	defaultEntrySize = 64 << 10 // or a cluster, if that is smaller
	// defaultCleanInterval is in seconds.
	defaultCleanInterval = 600
	minL2Slices          = 2
	minRefBlocks         = 4
)

// resolved are options without defaults left open.
type resolved struct {
	readOnly, lazy                                bool
	discardRequest, discardSnapshot, discardOther bool
	keepOnDiscard                                 bool
	sliceSize                                     int64 // bytes of an L2 table that are cached as one
	maxSlices                                     int
	maxBlocks                                     int // refcount blocks in the cache
	cleanInterval                                 time.Duration
	onCorrupt                                     func(Corruption)
}

func or[T any](p *T, otherwise T) T {
	if p != nil {
		return *p
	}
	return otherwise
}

func (o *Options) resolve(h *header) (resolved, error) {
	r := resolved{readOnly: o.ReadOnly, keepOnDiscard: o.DiscardNoUnref, onCorrupt: o.OnCorrupt,
		lazy:            or(o.LazyRefcounts, h.compatible&compatLazyRefcounts != 0),
		discardRequest:  or(o.PassDiscardRequest, o.Unmap),
		discardSnapshot: or(o.PassDiscardSnapshot, true),
		discardOther:    or(o.PassDiscardOther, false)}
	if r.lazy && h.version < 3 {
		return r, invalid("Lazy refcounts require a qcow2 image with at least qemu 1.1 compatibility level")
	}
	if r.keepOnDiscard && h.version < 3 {
		return r, invalid("discard-no-unref is only supported since qcow2 version 3")
	}
	seconds := or(o.CacheCleanInterval, defaultCleanInterval)
	if seconds > math.MaxUint32 {
		return r, invalid("Cache clean interval too big")
	}
	r.cleanInterval = time.Duration(seconds) * time.Second
	cluster := h.clusterSize()
	r.sliceSize = or(o.L2CacheEntrySize, min(cluster, defaultEntrySize))
	if r.sliceSize < 512 || r.sliceSize > cluster || r.sliceSize&(r.sliceSize-1) != 0 {
		return r, invalid("L2 cache entry size must be a power of two between 512 and the cluster size (%d)", cluster)
	}
	l2, ref, err := o.cacheSizes(h)
	if err != nil {
		return r, err
	}
	r.maxSlices = int(max(l2/r.sliceSize, minL2Slices))
	r.maxBlocks = int(max(ref/cluster, minRefBlocks))
	return r, nil
}

// cacheSizes shares out the memory of the caches: what a disk needs of L2 tables comes first.
func (o *Options) cacheSizes(h *header) (l2, ref int64, err error) {
	for name, size := range map[string]*int64{"l2-cache-size": o.L2CacheSize, "refcount-cache-size": o.RefcountCacheSize, "cache-size": o.CacheSize} {
		if size != nil && *size < 0 {
			return 0, 0, invalid("Parameter '%s' expects a non-negative number", name)
		}
	}
	cluster := h.clusterSize()
	needed := int64(h.size>>h.clusterBits+1) << h.entryBits()
	minRef := minRefBlocks * cluster
	switch {
	case o.CacheSize == nil:
		return min(or(o.L2CacheSize, defaultL2Cache), max(needed, cluster)), or(o.RefcountCacheSize, minRef), nil
	case o.L2CacheSize != nil && o.RefcountCacheSize != nil:
		return 0, 0, invalid("cache-size, l2-cache-size and refcount-cache-size may not be set at the same time")
	case o.L2CacheSize != nil && *o.L2CacheSize > *o.CacheSize:
		return 0, 0, invalid("l2-cache-size may not exceed cache-size")
	case o.RefcountCacheSize != nil && *o.RefcountCacheSize > *o.CacheSize:
		return 0, 0, invalid("refcount-cache-size may not exceed cache-size")
	case o.L2CacheSize != nil:
		l2, ref = *o.L2CacheSize, *o.CacheSize-*o.L2CacheSize
	case o.RefcountCacheSize != nil:
		l2, ref = *o.CacheSize-*o.RefcountCacheSize, *o.RefcountCacheSize
	default:
		l2 = min(needed, max(*o.CacheSize-minRef, 0))
		ref = *o.CacheSize - l2
	}
	return min(l2, max(needed, cluster)), ref, nil
}

// Children are the edges to the nodes below.
type Children struct {
	File    *block.Edge // the image
	Backing *block.Edge // nil if there is none
	Data    *block.Edge // the external data file; nil if the image has none
}
