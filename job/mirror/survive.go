// SPDX-License-Identifier: Apache-2.0

package mirror

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/bitmap"
	"github.com/blkmirror/blkmirror/block/invariants"
	"github.com/blkmirror/blkmirror/job/mirror/intent"
)

// A mirror with an intent file goes on after a crash. The file is a superset of what is dirty, claimed or being written: a guest's
// write is marked there before the source sees it, and until it has ended and what it left dirty is known. What is dirty was marked
// when it became so; copies take only what is dirty. Marks are taken back in the background.

// Resume is what a mirror begins with that goes on where another one was.
type Resume struct {
	Dirty  *bitmap.Bitmap // what may differ; nil for everything
	Flight *bitmap.Bitmap // what was on its way to a target behind a connection; nil for everything
	Pass   *intent.Pass   // the comparison that was begun last; nil if there was none
	// OnResumed is told how many bytes are left, once that is known. It may be nil.
	OnResumed func(left int64)
}

const (
	// How long a guest's write waits that could not be marked, and the job whose end could not be recorded.
	markAgain = 200 * time.Millisecond
	// How long the keeper waits when something did not work out.
	keepAgain = time.Second
)

// keeper keeps the intent file of a mirror. Its methods do nothing on nil.
type keeper struct {
	m      *Mirror
	log    *intent.Log
	due    chan struct{} // has a token when there may be something to do
	work   chan struct{} // holds one token: the right to work
	known  atomic.Bool   // the start is over: all is scanned
	ill    atomic.Bool   // the file could not be written when that was last tried
	passed atomic.Bool   // the comparison has come further than the file says
	losses atomic.Uint64 // how often more was made dirty than is marked, see lost
	marked atomic.Uint64 // losses when all of it was marked last
}

func newKeeper(m *Mirror) *keeper {
	if m.opts.Intent == nil {
		return nil
	}
	return &keeper{m: m, log: m.opts.Intent, due: make(chan struct{}, 1), work: make(chan struct{}, 1)}
}

func (k *keeper) poke() {
	select {
	case k.due <- struct{}{}:
	default:
	}
}

// tell tells of trouble, once until it is over.
func (k *keeper) tell(err error) {
	if k == nil {
		return
	}
	if err == nil {
		k.ill.Store(false)
		return
	}
	if !k.ill.Swap(true) && k.m.opts.OnTrouble != nil {
		k.m.opts.OnTrouble(err)
	}
}

// ---- Guests and copies

// begin marks a guest's write. If that is not possible the write waits.
func (k *keeper) begin(ctx context.Context, off, n int64) error {
	if k == nil {
		return nil
	}
	for !k.log.Begin(off, n) {
		if err := k.mark(off, n); err != nil {
			select {
			case <-ctx.Done():
				return fmt.Errorf("%w: %w", context.Cause(ctx), err)
			case <-time.After(markAgain):
			}
		}
	}
	return nil
}

func (k *keeper) mark(off, n int64) error {
	err := k.log.Mark(off, n)
	trouble := err
	if err == nil {
		if trouble = k.log.Trouble(); trouble != nil {
			k.poke() // everything is marked now; perhaps that can be mended
		}
	}
	k.tell(trouble)
	return err
}

// done ends a guest's write.
func (k *keeper) done(off, n int64) {
	if k == nil {
		return
	}
	if k.log.Done(off, n) {
		k.poke()
	}
	if invariants.On {
		k.check()
	}
}

// copying marks a claim of the copy, which has been marked since it became dirty but for what a lost target made so.
func (k *keeper) copying(off, n int64) error {
	if k == nil {
		return nil
	}
	for !k.log.BeginCopy(off, n) {
		if err := k.mark(off, n); err != nil {
			return err
		}
	}
	return nil
}

// copied ends a copy whose claim was given up.
func (k *keeper) copied(off, n int64) {
	if k != nil && k.log.DoneCopy(off, n) {
		k.poke()
	}
}

// lostLocked notes that what was written to the target may be gone, or is suspect, which makes more dirty than is marked.
func (k *keeper) lostLocked() {
	if k != nil {
		k.losses.Add(1)
		k.poke()
	}
}

// ---- The job

// phase records a phase of the job.
func (k *keeper) phase(p intent.Phase) error {
	if k == nil {
		return nil
	}
	return k.log.SetPhase(p)
}

// passes has it recorded how far the comparison is.
func (k *keeper) passes() {
	if k != nil {
		k.passed.Store(true)
		k.poke()
	}
}

// pass records how far the comparison is.
func (k *keeper) pass() error {
	if k == nil {
		return nil
	}
	p, begun := k.m.pass()
	if !begun {
		return nil
	}
	return k.log.SetPass(p)
}

// end records that the job is over, before guests' writes pass by. As long as that is not recorded they must not.
func (k *keeper) end() {
	if k == nil {
		return
	}
	for {
		err := k.log.End()
		k.tell(err)
		if err == nil {
			return
		}
		time.Sleep(markAgain)
	}
}

// hold keeps the keeper from its work until release.
func (k *keeper) hold() (release func()) {
	if k == nil {
		return func() {}
	}
	k.work <- struct{}{}
	return func() { <-k.work }
}

// start begins the keeper's work; stop ends it.
func (k *keeper) start() (stop func()) {
	if k == nil {
		return func() {}
	}
	k.known.Store(true)
	k.poke()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		k.run(ctx)
	}()
	return func() {
		cancel()
		<-ended
		if k.log.Kept() && (!k.log.Unflushed() || k.flush(context.Background())) { // nobody writes any more
			k.tell(errors.Join(k.pass(), k.log.Retire(k.clean, true)))
		}
	}
}

func (k *keeper) run(ctx context.Context) {
	var again <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-k.due:
		case <-again:
		}
		again = nil
		release := k.hold()
		ok := ctx.Err() != nil || k.tidy(ctx)
		release()
		if !ok {
			again = time.After(keepAgain)
		}
	}
}

// tidy marks what is not and has to be, and takes back marks that are not needed. It is not ok if that did not work out.
func (k *keeper) tidy(ctx context.Context) (ok bool) {
	if trouble := k.log.Trouble(); trouble != nil {
		k.tell(trouble)
	}
	if losses := k.losses.Load(); losses != k.marked.Load() {
		if k.markDirty() != nil {
			return false
		}
		k.marked.Store(losses)
	}
	if k.passed.Swap(false) {
		if err := k.pass(); err != nil {
			k.passed.Store(true)
			k.tell(err)
			return false
		}
	}
	var err error
	scanning := k.log.Phase() == intent.Scanning
	switch {
	case !scanning && !k.log.Full():
		return true
	case k.log.Unflushed() && !k.flush(ctx):
		return false
	case scanning:
		if err = k.log.Known(k.clean); err == nil {
			err = k.log.Trouble()
		}
	default:
		err = k.log.Retire(k.clean, false)
	}
	k.tell(err)
	return err == nil && !k.log.Full()
}

// clean says whether a region needs no mark: there is nothing in it to do, and nobody at work. Guests' writes hold their marks
// themselves.
func (k *keeper) clean(off, n int64) bool {
	m := k.m
	m.mu.Lock()
	defer m.mu.Unlock()
	return !m.planner.needs(off, n)
}

// needs says whether a range has to survive a crash.
func (p *planner) needs(off, n int64) bool {
	chunks := p.d.Outward(off, n)
	return off+n > p.scanned || p.d.AnySet(chunks) || p.suspects != nil && p.suspects.AnySet(chunks) || p.written(off, off+n)
}

// markDirty marks everything that is needed and not marked.
func (k *keeper) markDirty() error {
	for {
		off, n, found := k.log.Missing(func(off, n int64) bool { return !k.clean(off, n) })
		if !found {
			return nil
		}
		if err := k.mark(off, n); err != nil {
			return err
		}
	}
}

// flush makes durable what may not be on the disks yet.
func (k *keeper) flush(ctx context.Context) (ok bool) {
	m := k.m
	gate := m.backend.Gate()
	if !gate.TryEnter() {
		return false // somebody holds everybody still; later, then
	}
	defer gate.Leave()
	tick := k.log.BeginFlush()
	if (k.log.Durability() == intent.Host || m.opts.Source.Withholds()) && m.filter.source.Flush(ctx) != nil {
		return false // the guest's next flush fails, too, or this was the job's end
	}
	if ok = m.flushTarget(m.reach()); ok {
		k.log.Flushed(tick)
	}
	return ok
}

// check compares the file with what it has to have.
func (k *keeper) check() {
	losses := k.losses.Load()
	if losses != k.marked.Load() || !k.known.Load() {
		return
	}
	if off, n, found := k.log.Missing(func(off, n int64) bool { return !k.clean(off, n) }); found && k.losses.Load() == losses {
		panic(fmt.Sprintf("mirror: the intent file does not have %d bytes at %d", n, off))
	}
}

// ---- What is on its way to a target behind a connection

// send marks a range that is about to be written to the target. What comes of that has to be told to sent.
func (w *watch) send(off, n int64) (from, length int64, err error) {
	log := w.m.opts.Flight
	if log == nil {
		return 0, 0, nil
	}
	mask := max(w.m.opts.Target.Limits().RequestAlign, 1) - 1 // the request may be padded
	from = off &^ mask
	length = min((off+n+mask)&^mask, w.m.planner.d.Size()) - from
	for !log.Begin(from, length) {
		if err := log.Mark(from, length); err != nil {
			return 0, 0, err
		}
	}
	return from, length, nil
}

// sent takes the result of a request. One that failed may be carried out later, so that its mark stays.
func (w *watch) sent(from, length int64, err error) {
	log := w.m.opts.Flight
	if err != nil || length == 0 || !log.Done(from, length) {
		return
	}
	m := w.m
	log.Flushed(log.BeginFlush()) // what was answered is on its way no more, durable or not
	m.keeper.tell(log.Retire(func(off, n int64) bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.planner.suspects == nil || !m.planner.suspects.AnySet(m.planner.suspects.Outward(off, n))
	}, false))
}

// ---- The start of a mirror that goes on

// resume makes dirty what may differ. Nothing that was found out before the crash is known any more; nothing is scanned yet, so
// guests' writes leave the target alone until this is done.
func (l *loop) resume(ctx context.Context) error {
	m, r := l.m, l.m.opts.Resume
	m.mu.Lock()
	m.planner.touch(0, m.planner.d.Size()) // who wrote it before did not flush it
	m.mu.Unlock()
	if err := l.resumeScope(ctx); err != nil {
		return err
	}
	m.mu.Lock()
	switch {
	case m.watch == nil:
	case r.Flight == nil:
		m.planner.suspect(0, m.planner.d.Size())
	default:
		m.planner.eachSet(r.Flight, func(c bitmap.Chunks) { m.planner.suspect(m.planner.d.Bytes(c)) })
	}
	left := m.planner.left()
	m.mu.Unlock()
	l.refresh()
	if r.OnResumed != nil {
		r.OnResumed(left)
	}
	return nil
}

func (l *loop) resumeScope(ctx context.Context) error {
	m, r := l.m, l.m.opts.Resume
	if m.opts.Sync == SyncTop || m.opts.Commit != CommitNot {
		return l.scan(ctx) // what is not allocated is still out of scope
	}
	if m.watch == nil && r.Dirty != nil {
		if err := l.findZeroes(ctx); err != nil {
			return err
		}
	}
	if r.Dirty == nil {
		m.inSlices(func(int64) (int64, bool) { return 0, m.planner.markSlice() })
		return nil
	}
	m.take(r.Dirty)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.planner.skipScan()
	return nil
}

// findZeroes notes where the target reads as zero of what may differ.
func (l *loop) findZeroes(ctx context.Context) error {
	m, dirty := l.m, l.m.opts.Resume.Dirty
	for at := int64(0); at < dirty.Size(); {
		n, set := m.resumeRun(at, dirty.Size()-at)
		if !set {
			at += n
			continue
		}
		var extent block.Extent
		err := l.inside(ctx, func() (err error) {
			extent, err = m.filter.target.BlockStatus(m.reach(), at, n)
			return err
		})
		if err != nil {
			return err
		}
		if extent.Status&block.StatusZero != 0 {
			m.mu.Lock()
			m.planner.z.Set(m.planner.z.Inward(at, extent.Len))
			m.mu.Unlock()
		}
		at += extent.Len
		if err := context.Cause(ctx); err != nil { // no pause: what is left is to be known first
			return err
		}
	}
	return nil
}

// resumeRun is how far the disk is alike from at on, for at most n bytes, in whether it may differ after a crash.
func (m *Mirror) resumeRun(at, n int64) (length int64, dirty bool) {
	b := m.opts.Resume.Dirty
	if b == nil {
		return n, true
	}
	chunks := b.Outward(at, n)
	off, end := b.Bytes(bitmap.Chunks{First: chunks.First, End: b.RunEnd(chunks.First, chunks.End)})
	return min(off+end-at, n), b.Test(chunks.First)
}
