// SPDX-License-Identifier: Apache-2.0

package block

import (
	"sync/atomic"

	"github.com/blkmirror/blkmirror/block/rangelock"
)

// DetectZeroes says what a node does with writes of data that turn out to be all zeroes.
type DetectZeroes uint8

// The values of detect-zeroes.
const (
	DetectZeroesOff   DetectZeroes = iota
	DetectZeroesOn                 // write zeroes
	DetectZeroesUnmap              // write zeroes that may become a hole
)

func (d DetectZeroes) String() string { return [...]string{"off", "on", "unmap"}[d] }

// Options are those that every node has.
type Options struct {
	ReadOnly     bool
	Discard      bool // pass discards on, and keep MayUnmap on writes of zeroes (discard=unmap)
	DetectZeroes DetectZeroes
	Direct       bool // bypass the host's page cache (cache.direct)
	NoFlush      bool // drop flushes (cache.no-flush)
	ForceShare   bool // leave every permission to others
}

// Node is one disk image or one stage on the way to it: a driver with a name, options, children and users.
type Node struct {
	name       string
	driverName string
	implicit   bool   // named by the graph, not by the operator
	owner      string // how errors call whoever put the node there; "" for the operator
	filter     bool   // shows the disk of its first child
	monitor    bool   // added by the operator, who alone removes it
	state      atomic.Pointer[opened]
	size       atomic.Int64
	children   atomic.Pointer[[]*Edge] // changed inside Graph.Change only
	rmw        rangelock.Lock          // orders writes on nodes with a request alignment

	stats     Stats
	bitmaps   atomic.Pointer[[]*DirtyBitmap] // nil if there is none; changed inside Graph.Change only
	threshold atomic.Pointer[writeThreshold]

	// Guarded by Graph.mu; changed inside Graph.Change only.
	parents  []*Edge
	blockers []*Blocker
	held     heldPerms
	inUse    bool // the driver was told that the dirty bitmaps of its image are in use
}

// opened is a driver with the options that it was opened with, and what it can do beyond Driver, asked for once. It does
// not change; a node that is reopened gets another one while it is drained, so that a request sees one only.
type opened struct {
	driver  Driver
	options Options
	limits  Limits

	zeroer   ZeroWriter
	unmapper ZeroUnmapper
	trimmer  Discarder
	reporter StatusReporter
	resizer  Resizer
	permit   ChildPermitter
	holder   PermissionHolder
	settler  Settler
	keeper   BitmapKeeper
	delayer  Delayer
	listener EventListener
}

func (n *Node) now() *opened { return n.state.Load() }

// Stats counts the requests of a node since it was opened.
type Stats struct {
	Reads, Writes, Zeroes, Trims, Flushes       atomic.Int64 // requests
	ReadBytes, WriteBytes, ZeroBytes, TrimBytes atomic.Int64
	FailedReads, FailedWrites                   atomic.Int64 // those of zeroes count as writes
	FailedTrims, FailedFlushes                  atomic.Int64
	WriteHighest                                atomic.Int64 // end of the highest write, bytes

	// How long requests took that reached the driver.
	ReadTime, WriteTime, ZeroTime, TrimTime, FlushTime Latency
}

func newOpened(d Driver, options Options) *opened {
	o := &opened{driver: d, options: options}
	if l, ok := d.(Limiter); ok {
		o.limits = l.Limits()
	}
	o.limits.RequestAlign = max(o.limits.RequestAlign, 1)
	o.limits.MemoryAlign = max(o.limits.MemoryAlign, 1)
	o.zeroer, _ = d.(ZeroWriter)
	o.unmapper, _ = d.(ZeroUnmapper)
	o.trimmer, _ = d.(Discarder)
	o.reporter, _ = d.(StatusReporter)
	o.resizer, _ = d.(Resizer)
	o.permit, _ = d.(ChildPermitter)
	o.holder, _ = d.(PermissionHolder)
	o.settler, _ = d.(Settler)
	o.keeper, _ = d.(BitmapKeeper)
	o.delayer, _ = d.(Delayer)
	o.listener, _ = d.(EventListener)
	return o
}

// Name is the node name, unique in its graph.
func (n *Node) Name() string { return n.name }

// DriverName is the name of the driver in QMP.
func (n *Node) DriverName() string { return n.driverName }

// Implicit says whether the node's name was made by the graph.
func (n *Node) Implicit() bool { return n.implicit }

// Options are the node's options.
func (n *Node) Options() Options { return n.now().options }

// Driver is the node's driver, for what only its kind of driver can tell.
func (n *Node) Driver() Driver { return n.now().driver }

// Limits are the constraints of the driver; the node itself takes requests of any alignment.
func (n *Node) Limits() Limits { return n.now().limits }

// Size is the length of the disk in bytes, a multiple of 512.
func (n *Node) Size() int64 { return n.size.Load() }

// Stats are the node's counters.
func (n *Node) Stats() *Stats { return &n.stats }

// CanZeroUnmap says whether writes of zeroes with MayUnmap free space here.
func (n *Node) CanZeroUnmap() bool {
	o := n.now()
	return o.options.Discard && o.unmapper != nil && o.unmapper.CanZeroUnmap()
}

// Discards says whether discards are passed on to the driver.
func (n *Node) Discards() bool {
	o := n.now()
	return o.options.Discard && o.trimmer != nil
}

// FileName tells the node's image: that of its driver or of the node below.
func (n *Node) FileName() string {
	if f, ok := n.now().driver.(FileNamer); ok {
		return f.FileName()
	}
	if len(n.edges()) > 0 {
		return n.edges()[0].Node().FileName()
	}
	return ""
}

// AllocatedBytes is what the images of the node and those below it, but for its backing chain, take on the host; false if
// nobody knows.
func (n *Node) AllocatedBytes() (int64, bool) {
	if a, ok := n.now().driver.(AllocationReporter); ok {
		bytes, err := a.AllocatedBytes()
		return bytes, err == nil
	}
	var sum int64
	known := false
	for _, e := range n.edges() {
		if !e.hidden && (n.filter || e.name != childBacking) {
			if bytes, ok := e.Node().AllocatedBytes(); ok {
				sum, known = sum+bytes, true
			}
		}
	}
	return sum, known
}

// Children are the edges to the nodes below, without those that are nobody else's business.
func (n *Node) Children() []*Edge {
	var shown []*Edge
	for _, e := range n.edges() {
		if !e.hidden {
			shown = append(shown, e)
		}
	}
	return shown
}
