// SPDX-License-Identifier: Apache-2.0

package mirror

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/job"
	"github.com/blkmirror/blkmirror/job/mirror/intent"
)

// Sync says what of the source is copied besides the guests' writes.
type Sync uint8

// The sync modes.
const (
	SyncFull   Sync = iota // everything that the guest can read
	SyncTop                // what the source itself has allocated, not what comes from its backing file
	SyncNone               // nothing
	SyncBitmap             // what a dirty bitmap of the source says
)

// Commit says whether the target lies below the source, in its backing chain, and gets what the layers above it have.
type Commit uint8

// The kinds of commit.
const (
	CommitNot    Commit = iota // a mirror: source and target have nothing to do with each other
	CommitActive               // guests write to the source; the job gets ready, and is completed as a mirror is
	CommitLower                // nobody writes to the source; the job ends by itself
)

// Options are the arguments of a mirror.
type Options struct {
	JobID          string
	Source, Target *block.Node
	Replaces       *block.Node // takes the target's place at completion; nil for the source
	Commit         Commit      // if it is one, Sync means nothing
	Sync           Sync
	Bitmap         *block.DirtyBitmap // of the source, for SyncBitmap: cleared when the job ends well
	Mode           Mode
	Speed          int64 // bytes per second, 0 for no limit
	Granularity    int64 // bytes, 0 for the default
	BufSize        int64 // bytes in flight between source and target at most, 0 for the default
	OnSourceError  job.Policy
	OnTargetError  job.Policy
	FilterName     string // node name of the filter, "" for an implicit one
	TargetIsZero   bool
	Offload        Offload
	Auto           bool             // begin with Mode, and change it as the job sees fit
	OnModeChange   func(ModeChange) // told of changes by an Auto job; called from the job's goroutine; may be nil
	// Verify has the job compare source and target when it is ready, and complete when they were found equal. With Digest it knows
	// then what the digest of both is. The three are called from the job's goroutine, and may be nil: OnDifference is told where they
	// differed, OnVerified, whenever all was compared, how many bytes did, and OnDigest, when the job has completed, the digest or why
	// there is none.
	Verify       bool
	Digest       bool
	OnDifference func(Difference)
	OnVerified   func(differing int64)
	OnDigest     func(Digest)
	// OnPivot is called just before the users of the source are given the target, with all of them drained and the target
	// flushed. It may be nil.
	OnPivot func(ctx context.Context, tx *block.Tx) error
	// OnEnd is called when the job has given up all nodes; pivoted says whether the users of the source were given the target. It
	// may be nil.
	OnEnd func(pivoted bool) error
	// Intent is where the mirror keeps what it has to know after a crash; nil if it is not to survive one. It is the mirror's to use
	// until OnEnd, and the caller's to close.
	Intent *intent.Log
	// Flight is where a mirror with a target behind a connection keeps what may be on its way there; nil for any other, and without
	// Intent. What is on its way when the daemon dies may be carried out later, over what is copied after that.
	Flight *intent.Log
	// Resume has the mirror go on where another one was; nil for one that begins.
	Resume *Resume
	Wanted job.Wanted // what operators asked of that one
	// OnInsert is called when everything about the mirror but its start is done, and can still refuse it. It may be nil.
	OnInsert func(ctx context.Context, m *Mirror, tx *block.Tx) error
	// MaxGuestLatency is what guests' requests may take on the source before the copy gives way; 0 for any time.
	MaxGuestLatency time.Duration
	// OnTrouble is told when the intent file cannot be written, once until it can be again. Guests' writes may wait for that. It
	// may be nil.
	OnTrouble    func(error)
	AutoFinalize bool
	AutoDismiss  bool
}

const (
	childSource = "backing"
	childTarget = "target"

	minGranularity = 512
	maxGranularity = 64 << 20
	defaultBufSize = 16 << 20
	pieceSize      = 1 << 20   // the most data that is copied in one go
	zeroPiece      = 128 << 20 // the most zeroes that are written in one go
	blockReason    = "block device is in use by block job: "
)

// Mirror is a running mirror: the body of its job.
type Mirror struct {
	opts      Options
	graph     *block.Graph
	job       *job.Job
	progress  *job.Progress
	filter    *filter
	node      *block.Node // the filter's
	backend   *block.Backend
	blockers  []func(*block.Tx)
	detect    block.DetectZeroes // what the target does about data that is zero
	piece     int64              // most bytes of data in one copy
	workers   int                // most copies in flight
	memory    *job.Memory        // for copies
	latency   latency            // of guests' requests
	targetCtx context.Context    // of all requests to the target: they do not wait for a lost one, and end with a forced cancel
	giveUp    context.CancelFunc
	watch     *watch        // nil for a target that cannot go silent
	keeper    *keeper       // nil without an intent file
	flushing  chan struct{} // holds one token: the right to flush the target
	results   chan result   // of copies that ended
	forget    func()        // ends the news of the target's reconnections
	gone      bool          // the filter is out of the graph
	pivoted   bool          // users of the source were given the target

	mu      sync.Mutex // the planner's, and all that follows; nothing is waited for under it
	planner *planner
	failed  *failure // the first failure that the loop has not dealt with yet
	hint    span     // an extent of the source that read as zero when it was last looked at
	kernel  offloading
	proof   proof
	bytes   Bytes
	auto    bool // the copy mode is the job's to choose
	flow    flow
	braked  int64 // bytes per second that the copy is held to for guests' sake; 0 for no limit
	rates   rates // at sampled
	sampled time.Time
	delay   time.Duration // what the mirror adds to a guest's write: a moving mean
}

// Bytes counts what became of the bytes that were looked at.
type Bytes struct {
	Copied  int64 // read from the source and written to the target
	Zeroed  int64 // zeroes written to the target
	Skipped int64 // zeroes that the target had already
	// Offloaded were copied by the kernel or the storage itself.
	Offloaded int64
}

// failure is a failed request on its way to the loop.
type failure struct {
	read     bool
	off, len int64
	err      error
}

// Start puts a mirror's filter into the graph and starts its job.
func Start(ctx context.Context, graph *block.Graph, jobs *job.Registry, opts Options, after job.After) (*Mirror, error) {
	if err := jobs.CheckID(opts.JobID); err != nil {
		return nil, err
	}
	if err := opts.check(graph); err != nil {
		return nil, err
	}
	m := &Mirror{opts: opts, graph: graph, detect: opts.Target.Options().DetectZeroes,
		flushing: make(chan struct{}, 1), auto: opts.Auto}
	m.targetCtx, m.giveUp = context.WithCancel(block.WithoutWaiting(context.Background()))
	if opts.Target.Reconnects() {
		m.watch = newWatch(m)
	}
	var err error
	if cluster := opts.wholeClusters(); cluster > 0 {
		m.planner, err = newWholePlanner(opts.Source.Size(), opts.Granularity, cluster, opts.Mode)
	} else {
		m.planner, err = newPlanner(opts.Source.Size(), opts.Granularity, opts.Mode)
	}
	if err != nil {
		return nil, &block.Error{Kind: block.KindNoMemory, Op: block.OpGraph, Err: err}
	}
	if opts.comparable() {
		m.planner.verify = &verification{digests: opts.Digest}
	}
	m.piece = min(pieceSize, opts.BufSize+opts.Granularity-1)
	if chunk := m.planner.d.Granularity(); m.planner.whole != nil {
		m.piece = (m.piece + chunk - 1) &^ (chunk - 1)
	} else {
		m.piece &^= min(pieceSize, opts.Granularity) - 1
	}
	m.kernel.off = opts.Offload == OffloadOff || m.detect != block.DetectZeroesOff || opts.Commit != CommitNot
	m.workers = int(min(max(opts.BufSize/m.piece, 1), job.MaxCrew))
	m.results = make(chan result, m.workers)
	m.keeper = newKeeper(m)
	if opts.TargetIsZero && opts.Sync == SyncFull && opts.Resume == nil {
		if err := checkReadsZero(ctx, opts.Target); err != nil {
			return nil, err
		}
	}
	m.job, err = jobs.Add(job.Config{ID: opts.JobID, Type: opts.kind(), BlockJob: true, Speed: opts.Speed,
		AutoFinalize: opts.AutoFinalize, AutoDismiss: opts.AutoDismiss, Wanted: opts.Wanted, Body: m})
	if err != nil {
		return nil, err
	}
	m.progress = &m.job.Progress
	m.latency.most.Store(int64(opts.MaxGuestLatency))
	m.memory = jobs.OpenMemory(m.leastMemory())
	if err := graph.Change(ctx, func(tx *block.Tx) error { return m.insert(ctx, tx) }); err != nil {
		m.job.Abandon()
		m.memory.Close()
		m.giveUp()
		return nil, err
	}
	m.forget = opts.Target.OnReconnect(func(unflushed bool) {
		if unflushed {
			m.mu.Lock()
			m.keeper.lostLocked()
			m.planner.lost()
			m.mu.Unlock()
		}
		m.job.Poke()
	})
	m.suspectTarget()
	m.job.Start(after)
	return m, nil
}

// bufferBytes is how much memory a copy or a comparison takes at most, and leastMemory how much one must have.
func (m *Mirror) bufferBytes() int64 {
	if m.planner.verify != nil && m.job.IsReady() {
		return 2 * m.piece
	}
	return m.piece
}

func (m *Mirror) leastMemory() int64 {
	least := m.piece
	if m.planner.whole == nil {
		least = min(least, job.LeastBuffer) // any part of a claim can be copied by itself
	}
	if m.planner.verify != nil {
		least *= 2
	}
	return least
}

// check refuses what cannot work, before anything is changed, and fills in defaults.
func (o *Options) check(graph *block.Graph) error {
	if o.Granularity == 0 {
		o.Granularity = defaultGranularity(o.Target)
	}
	switch g := o.Granularity; {
	case g < minGranularity || g > maxGranularity:
		return invalid("Parameter 'granularity' expects a value in range [512B, 64MB]")
	case g&(g-1) != 0:
		return invalid("Parameter 'granularity' expects a power of 2")
	case o.BufSize < 0:
		return invalid("Invalid parameter 'buf-size'")
	case o.MaxGuestLatency < 0:
		return invalid("Parameter 'max-guest-latency' expects a non-negative value")
	}
	if o.BufSize == 0 {
		o.BufSize = defaultBufSize
	}
	if err := job.CheckSpeed(o.Speed); err != nil {
		return err
	}
	if o.Commit != CommitLower && graph.HasNodeAbove(o.Source) {
		return invalid("Need a root block node: '%s' is used by %s", o.Source.Name(), graph.Users(o.Source)[0])
	}
	if o.Commit == CommitNot && o.Target.Unfiltered() == o.Source.Unfiltered() {
		return invalid("Can't mirror node into itself")
	}
	if o.Replaces != nil && o.Replaces != o.Source {
		return invalid("Cannot replace '%s' by a node mirrored from '%s', because it cannot be guaranteed that doing so "+
			"would not lead to an abrupt change of visible data", o.Replaces.Name(), o.Source.Name())
	}
	if o.Verify && !o.comparable() {
		return invalid("Parameter 'x-verify' needs sync mode 'full': the target is not meant to be equal to the source otherwise")
	}
	if o.Digest {
		if err := o.checkDigest(); err != nil {
			return err
		}
	}
	if (o.Bitmap != nil) != (o.Sync == SyncBitmap) {
		return invalid("Parameter 'bitmap' and the sync modes 'bitmap' and 'incremental' need each other")
	}
	for _, b := range o.Source.Bitmaps() {
		if o.Commit == CommitLower {
			break // they stay
		}
		if _, err := o.Target.FindBitmap(b.Name()); err == nil {
			return invalid("Node '%s' has a bitmap '%s' already, which that of node '%s' could not follow it to", o.Target.Name(),
				b.Name(), o.Source.Name())
		}
	}
	if o.Target.Options().ReadOnly {
		return &block.Error{Kind: block.KindReadOnly, Op: block.OpGraph, Node: o.Target.Name(),
			Err: errors.New("Block node is read-only")}
	}
	return nil
}

// comparable says whether the target is meant to be equal to the source.
func (o *Options) comparable() bool { return o.Sync == SyncFull && o.Commit == CommitNot }

// kind is the type of the job.
func (o *Options) kind() string {
	if o.Commit == CommitNot {
		return "mirror"
	}
	return "commit"
}

// wholeClusters is the cluster size of the target if it must be given whole ones: when it gets a part of the disk and has no
// backing node for the rest. It will be given one later, and a cluster that was written in part has zeroes in the rest.
func (o *Options) wholeClusters() int64 {
	if o.Commit != CommitNot || o.Sync == SyncFull || o.Target.Backing() != nil {
		return 0
	}
	return o.Target.Unfiltered().Limits().Granularity
}

// defaultGranularity is that of the target where it has one, within bounds.
func defaultGranularity(target *block.Node) int64 {
	g := target.Unfiltered().Limits().Granularity
	if g == 0 {
		return 64 << 10
	}
	return min(max(g, 4<<10), 64<<10)
}

// insert puts the filter above the source, under every user it has.
func (m *Mirror) insert(ctx context.Context, tx *block.Tx) error {
	source, target := m.opts.Source, m.opts.Target
	used := m.opts.used()
	for _, n := range used {
		if err := n.Busy(); err != nil {
			return err
		}
	}
	if err := tx.Drain(ctx, nil, source); err != nil {
		return err
	}
	driver := "mirror_top"
	if m.opts.Commit == CommitLower {
		driver = "commit_top"
	}
	if m.opts.Commit != CommitNot && target.Size() < source.Size() {
		if err := tx.Resize(ctx, target, source.Size()); err != nil {
			return err
		}
	}
	options := block.Options{Discard: true, ReadOnly: source.Options().ReadOnly}
	node, err := tx.AddNode(block.NodeConfig{
		Name: m.opts.FilterName, DriverName: driver, Options: options, Filter: true, Implicit: m.opts.FilterName == "",
		Owner:    m.user(),
		Children: []block.Child{{Name: childSource, Node: source}, {Name: childTarget, Node: target, Hidden: true}},
		Open: func(edges []*block.Edge) (block.Driver, error) {
			m.filter = &filter{m: m, source: edges[0], target: targetEdge{edges[1], m.watch}}
			return m.filter, nil
		}})
	if err != nil {
		return err
	}
	m.node = node
	tx.Replace(source, node)
	if m.backend, err = tx.Attach(node, m.user(), 0, block.PermAll); err != nil {
		return err
	}
	if b := m.opts.Bitmap; b != nil {
		if err := b.SetBusy(true); err != nil {
			return err
		}
		tx.OnRollBack(func() { _ = b.SetBusy(false) })
		if m.opts.Resume == nil {
			m.take(b.Snapshot()) // no write is under way
		}
	}
	for _, n := range append(used, node) {
		b := tx.Block(n, blockReason+m.opts.kind())
		m.blockers = append(m.blockers, func(tx *block.Tx) { tx.Unblock(n, b) })
	}
	if m.opts.OnInsert != nil {
		return m.opts.OnInsert(ctx, m, tx)
	}
	return nil
}

// Nodes are what the job's filter stands on.
func (m *Mirror) Nodes() (source, target *block.Node) {
	return m.filter.source.Node(), m.filter.target.Node()
}

// used are the nodes that nobody may disturb: the source, the target and what lies between them.
func (o *Options) used() []*block.Node {
	nodes := []*block.Node{o.Source, o.Target}
	if o.Commit != CommitNot {
		for n := o.Source.Backing(); n != nil && n != o.Target; n = n.Backing() {
			nodes = append(nodes, n)
		}
	}
	return nodes
}

// user is how errors call the job.
func (m *Mirror) user() string { return "block job '" + m.opts.JobID + "'" }

// extract takes the filter out of the graph; its users are given successor. They are drained.
func (m *Mirror) extract(tx *block.Tx, successor *block.Node) error {
	for _, unblock := range m.blockers {
		unblock(tx)
	}
	tx.Detach(m.backend)
	tx.Replace(m.node, successor)
	tx.OnCommit(func() error {
		m.gone, m.pivoted = true, successor != m.opts.Source
		if m.opts.Bitmap != nil {
			return m.opts.Bitmap.SetBusy(false)
		}
		return nil
	})
	return tx.RemoveNode(m.node)
}

// remove takes the filter out of the graph and leaves everything as it was before the mirror.
func (m *Mirror) remove(ctx context.Context) error {
	return m.graph.Change(ctx, func(tx *block.Tx) error {
		if err := tx.Drain(ctx, m.backend.Gate(), m.node); err != nil {
			return err
		}
		return m.extract(tx, m.opts.Source)
	})
}

// ChangeMode changes what guests' writes do from now on; with auto that is left to the job.
func (m *Mirror) ChangeMode(mode Mode, auto bool) {
	m.mu.Lock()
	m.auto = auto
	if !auto {
		m.planner.mode = mode
	}
	m.mu.Unlock()
	m.job.Poke()
}

func (m *Mirror) setMode(mode Mode) {
	m.mu.Lock()
	m.planner.mode = mode
	m.mu.Unlock()
}

// Uses says whether n is the source or the target of a mirror that is not over.
func (m *Mirror) Uses(n *block.Node) bool {
	select {
	case <-m.job.Done():
		return false
	default:
		n = n.Unfiltered()
		return n == m.opts.Source.Unfiltered() || n == m.opts.Target.Unfiltered()
	}
}

// AwaitsBacking says whether n is the target and has been copied to so that it can be given a backing node at any time.
func (m *Mirror) AwaitsBacking(n *block.Node) bool {
	select {
	case <-m.job.Done():
		return false
	default:
		return m.planner.whole != nil && m.opts.Target.Unfiltered() == n
	}
}

// State is what can be seen of a mirror besides its job.
type State struct {
	Source      string // names of the nodes
	Target      string
	Mode        Mode
	Auto        bool
	Synced      bool // the target is what the guest sees
	Dirty       int64
	Bytes       Bytes
	Rate        int64         // bytes per second that were copied of late
	SecondsLeft int64         // until nothing is dirty, if all goes on as it does; -1 if that is never
	GuestDelay  time.Duration // what the mirror adds to a guest's write
	Proof       Proof

	MaxGuestLatency time.Duration // as it was asked for
	GuestLatency    time.Duration // what guests' requests take on the source of late, in the worse cases; 0 if that is not measured
	Braked          int64         // bytes per second that the copy is held to for that; 0 for no limit
}

// State is a snapshot.
func (m *Mirror) State() State {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := State{Source: m.opts.Source.Name(), Target: m.opts.Target.Name(), Mode: m.planner.mode, Auto: m.auto, Synced: m.planner.synced(), Dirty: m.planner.d.SetBytes(), Bytes: m.bytes,
		GuestDelay: m.delay, Proof: m.proofLocked(), Braked: m.braked}
	if s.MaxGuestLatency = time.Duration(m.latency.most.Load()); s.MaxGuestLatency > 0 {
		s.GuestLatency = m.latency.estimate()
	}
	r := m.rates
	if time.Since(m.sampled) > 4*sampleEvery {
		r = rates{} // nothing has happened since
	}
	s.Rate = int64(r.copied)
	switch gain := r.copied - r.dirtied; {
	case s.Dirty == 0:
	case gain < 1:
		s.SecondsLeft = -1
	default:
		s.SecondsLeft = int64(float64(s.Dirty)/gain + 1)
	}
	return s
}

func invalid(format string, args ...any) error {
	return &block.Error{Kind: block.KindInvalid, Op: block.OpGraph, Err: fmt.Errorf(format, args...)}
}
