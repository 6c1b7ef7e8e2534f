// SPDX-License-Identifier: Apache-2.0

package mirror

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/blocktest"
)

// remote is a disk behind a network, or one that might be.
type remote struct{ *disk }

// network puts a disk behind a connection that can be lost, and whose server can go silent. A request that its caller gives up
// while the connection lives is carried out some time, and what overlaps it waits for that. Requests that the server has when that happens fail at once as
// suspects; the server drops each, or carries it out (or what is left of it) at some later time, over whatever was written
// since: but before the range is read while guests are drained, which is the last look that anybody takes at it. Requests
// that the server has not got yet wait for the next session. This is what block/driver/nbd does.
type network struct {
	disk  *disk
	delay time.Duration // how long requests wait for the next session; 0 for not at all
	final func() bool   // whether guests are drained
	told  *tally

	keeper sync.Mutex // held by whoever makes a session; never waited for under another lock
	mu     struct {
		sync.Mutex
		random           *rand.Rand
		up               bool          // there is a session
		epoch            int           // changes when a session begins, and before anything is lost
		dead             bool          // there will be none any more
		failing          bool          // delay is over
		changed          chan struct{} // closed and replaced when one of these changes
		mute             chan struct{} // not nil: the server says nothing until this is closed
		watchers         map[int]func(unflushed bool)
		last             int
		active           []*exchange // of this session
		flushErr         error       // of a flush that was given up; the next one tells it
		suspects         []span      // where changes were under way when a session died
		left             []*exchange // given up, and still with the server
		late             []*exchange // those of them that may still be carried out
		written, durable int         // requests answered, and made durable
	}
}

var (
	errLost    = errors.New("the connection died")
	errDropped = errors.New("the server has dropped the request")
)

// exchange is a request that the server has.
type exchange struct {
	call     blocktest.Call
	changes  bool
	deserted bool          // its caller gave it up while the session lives
	finished bool          // answered; else given up, once over is closed
	drop     bool          // given up, and not to be carried out
	err      error         // the answer
	over     chan struct{} // closed when it is answered or given up
	left     chan struct{} // closed when it is given up
	hurry    chan struct{} // closed when the server is to go on with what was given up
	hurried  sync.Once
	ended    chan struct{} // closed when the server is done with it
}

func newNetwork(d *disk, seed uint64, delay time.Duration, told *tally) *network {
	n := &network{disk: d, delay: delay, told: told, final: func() bool { return false }}
	n.mu.random = rand.New(rand.NewPCG(seed, 0x2e7))
	n.mu.up, n.mu.changed, n.mu.watchers = true, make(chan struct{}), map[int]func(bool){}
	return n
}

// Suspects lists where changes were under way when a session died.
func (d remote) Suspects(f func(off, n int64)) {
	if d.net == nil {
		return
	}
	d.net.mu.Lock()
	defer d.net.mu.Unlock()
	for _, s := range d.net.mu.suspects {
		f(s.off, s.end-s.off)
	}
}

// OnReconnect registers f, if there is anything to lose.
func (d remote) OnReconnect(f func(unflushed bool)) (cancel func()) {
	n := d.net
	if n == nil {
		return func() {}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.mu.last++
	id := n.mu.last
	n.mu.watchers[id] = f
	return func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		delete(n.mu.watchers, id)
	}
}

// Waiting is nil unless requests would wait now.
func (d remote) Waiting() <-chan struct{} {
	n := d.net
	if n == nil {
		return nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.mu.up || n.mu.failing {
		return nil
	}
	return n.mu.changed
}

func (n *network) announceLocked() {
	close(n.mu.changed)
	n.mu.changed = make(chan struct{})
}

// current waits for a session, if that may take a while.
func (n *network) current(ctx context.Context) error {
	for {
		n.mu.Lock()
		up, failing, changed := n.mu.up, n.mu.failing, n.mu.changed
		n.mu.Unlock()
		switch {
		case up:
			return nil
		case failing:
			return errLost
		case !block.MayWait(ctx):
			return block.ErrDisconnected
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// carryOut is the way of every request.
func (n *network) carryOut(ctx context.Context, c blocktest.Call, p []byte, serve func(x *exchange, p []byte) error) error {
	changes := c.Op == block.OpWrite || c.Op == block.OpZero || c.Op == block.OpTrim
	repeatable := !changes && c.Op != block.OpFlush
	n.mu.Lock()
	answered := n.mu.written
	n.mu.Unlock()
	var until time.Time
	suspect := false
	fail := func(err error) error {
		if suspect {
			return block.Suspect(err)
		}
		return err
	}
	for {
		if err := n.current(ctx); err != nil {
			return fail(err)
		}
		x, err := n.submit(ctx, c, p, changes, serve)
		switch {
		case err != nil && ctx.Err() != nil:
			return fail(err)
		case err == nil && x.finished:
			if c.Op == block.OpFlush && x.err == nil {
				n.mu.Lock()
				x.err, n.mu.flushErr = n.mu.flushErr, nil
				if x.err == nil {
					n.mu.durable = max(n.mu.durable, answered)
				}
				n.mu.Unlock()
			}
			return x.err
		case err == nil:
			suspect = suspect || changes
			if ctx.Err() != nil {
				return fail(context.Cause(ctx))
			}
		}
		if until.IsZero() {
			until = time.Now().Add(n.delay)
		}
		n.mu.Lock()
		watched := len(n.mu.watchers) > 0
		n.mu.Unlock()
		if !time.Now().Before(until) || x != nil && !repeatable && watched {
			err := errLost
			if n.delay > 0 {
				err = fmt.Errorf("%w: %w", block.ErrDisconnected, err)
			}
			return fail(err)
		}
	}
}

// submit hands a request to the server and waits for its outcome. There is no exchange if it did not get there.
func (n *network) submit(ctx context.Context, c blocktest.Call, p []byte, changes bool,
	serve func(x *exchange, p []byte) error) (*exchange, error) {
	n.mu.Lock()
	epoch, wait := n.mu.epoch, time.Duration(0)
	if n.disk.slow > 0 && n.mu.random.IntN(4) == 0 {
		wait = time.Duration(n.mu.random.Int64N(int64(n.disk.slow)))
	}
	n.mu.Unlock()
	time.Sleep(wait)
	if err := n.clear(ctx, c); err != nil {
		return nil, err
	}
	x := &exchange{call: c, changes: changes, over: make(chan struct{}), left: make(chan struct{}), hurry: make(chan struct{}),
		ended: make(chan struct{})}
	n.mu.Lock()
	if !n.mu.up || n.mu.epoch != epoch {
		n.mu.Unlock()
		return nil, errLost
	}
	n.mu.active = append(n.mu.active, x)
	n.mu.Unlock()
	own := bytes.Clone(p) // it may outlive the caller's
	go n.serve(x, own, serve)
	select {
	case <-x.over:
		if x.finished && !changes {
			copy(p, own)
		}
		return x, nil
	case <-ctx.Done():
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	select {
	case <-x.over:
		return &exchange{}, nil // lost, or answered too late
	default:
	}
	x.deserted = true
	n.told.deserted.Add(1)
	return &exchange{}, nil
}

// clear waits until no request that was given up is in the way of one, and says why it should not be sent.
func (n *network) clear(ctx context.Context, c blocktest.Call) error {
	for ctx.Err() == nil {
		n.mu.Lock()
		i := slices.IndexFunc(n.mu.active, func(x *exchange) bool {
			if c.Op == block.OpFlush || x.call.Op == block.OpFlush {
				return x.deserted && c.Op == x.call.Op
			}
			return x.deserted && x.changes && x.call.Off < c.Off+c.Len && c.Off < x.call.Off+x.call.Len
		})
		if i < 0 {
			n.mu.Unlock()
			return nil
		}
		over := n.mu.active[i].over
		n.mu.Unlock()
		select {
		case <-over:
		case <-ctx.Done():
		}
	}
	return context.Cause(ctx)
}

// giveUpLocked ends a request for its caller. What becomes of it is up to the server.
func (n *network) giveUpLocked(x *exchange) {
	select {
	case <-x.left:
		return
	default:
	}
	if i := slices.Index(n.mu.active, x); i >= 0 {
		n.mu.active = slices.Delete(n.mu.active, i, i+1)
	}
	if x.changes {
		n.mu.suspects = append(n.mu.suspects, span{x.call.Off, x.call.Off + x.call.Len})
	}
	x.drop = !x.changes || len(n.mu.watchers) == 0 && !x.deserted || n.mu.random.IntN(3) == 0
	if !x.drop {
		n.mu.late = append(n.mu.late, x)
		after := time.Duration(n.mu.random.Int64N(int64(one(n.mu.random, time.Millisecond, 50*time.Millisecond, 3*time.Second, time.Hour))))
		time.AfterFunc(after, x.goOn)
	}
	n.mu.left = append(n.mu.left, x)
	close(x.left)
	close(x.over)
}

func (x *exchange) goOn() { x.hurried.Do(func() { close(x.hurry) }) }

// alive waits, for a request that was given up, until its time has come, and says whether it will be carried out.
func (x *exchange) alive() bool {
	select {
	case <-x.left:
	default:
		return true
	}
	if x.drop {
		return false
	}
	<-x.hurry
	return true
}

// sleep passes time, but not for a request that is late enough.
func (x *exchange) sleep(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-x.hurry:
	}
}

// serve is the server.
func (n *network) serve(x *exchange, p []byte, serve func(x *exchange, p []byte) error) {
	defer close(x.ended)
	n.hush(x)
	n.mu.Lock()
	wait := time.Duration(0)
	if x.deserted { // servers take what they have in any order
		wait = time.Duration(n.mu.random.Int64N(int64(3 * time.Second)))
	}
	n.mu.Unlock()
	x.sleep(wait)
	err := errDropped
	if x.alive() {
		if x.call.Op == block.OpRead && n.final() {
			n.settle(x.call.Off, x.call.Off+x.call.Len)
		}
		err = serve(x, p)
		n.hush(x)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if i := slices.Index(n.mu.late, x); i >= 0 {
		n.mu.late = slices.Delete(n.mu.late, i, i+1)
		n.told.late.Add(1)
	}
	select {
	case <-x.left:
		n.mu.left = slices.DeleteFunc(n.mu.left, func(other *exchange) bool { return other == x })
		return
	default:
	}
	n.mu.active = slices.DeleteFunc(n.mu.active, func(other *exchange) bool { return other == x })
	if err == nil && x.changes && x.call.Flags&block.FUA == 0 {
		n.mu.written++
	}
	if x.deserted && x.call.Op == block.OpFlush && err != nil {
		n.mu.flushErr = err
	}
	x.err, x.finished = err, true
	close(x.over)
}

// hush holds a request while the server says nothing.
func (n *network) hush(x *exchange) {
	for {
		n.mu.Lock()
		mute := n.mu.mute
		n.mu.Unlock()
		if mute == nil {
			return
		}
		select {
		case <-mute:
		case <-x.left:
			return
		}
	}
}

// stall silences the server until unstall.
func (n *network) stall() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.mu.mute == nil {
		n.mu.mute = make(chan struct{})
	}
}

func (n *network) unstall() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.mu.mute != nil {
		close(n.mu.mute)
		n.mu.mute = nil
	}
}

// disconnect ends the session; for good if dead is set.
func (n *network) disconnect(dead bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.mu.dead = n.mu.dead || dead
	if !n.mu.up {
		return
	}
	n.mu.up, n.mu.failing = false, n.delay == 0
	for len(n.mu.active) > 0 {
		n.giveUpLocked(n.mu.active[0])
	}
	n.announceLocked()
	epoch := n.mu.epoch
	if n.delay > 0 {
		time.AfterFunc(n.delay, func() {
			n.mu.Lock()
			defer n.mu.Unlock()
			if !n.mu.up && n.mu.epoch == epoch {
				n.mu.failing = true
				n.announceLocked()
			}
		})
	}
}

// reconnect makes a session, unless there is one or will be none any more. A server that restarted has lost what was not
// flushed.
func (n *network) reconnect(restarted bool) {
	n.keeper.Lock()
	defer n.keeper.Unlock()
	n.mu.Lock()
	if n.mu.up || n.mu.dead {
		n.mu.Unlock()
		return
	}
	n.mu.epoch++
	unflushed := n.mu.written > n.mu.durable
	var watchers []func(bool)
	for _, f := range n.mu.watchers {
		watchers = append(watchers, f)
	}
	n.mu.Unlock()
	if restarted {
		n.disk.lose()
	}
	for _, f := range watchers {
		f(unflushed)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.mu.up, n.mu.failing = true, false
	n.mu.epoch++
	n.announceLocked()
}

// mend brings the server back, and ends what it still has of requests that were given up: of this session, or all.
func (n *network) mend(all bool) {
	n.unstall()
	n.mu.Lock()
	n.mu.dead = false
	active := slices.Clone(n.mu.active)
	n.mu.Unlock()
	n.reconnect(false)
	for _, x := range active {
		if x.deserted {
			<-x.over
		}
	}
	if !all {
		return
	}
	n.settle(0, n.disk.Size())
	n.mu.Lock()
	left := slices.Clone(n.mu.left)
	n.mu.Unlock()
	for _, x := range left {
		<-x.ended
	}
}

// settle carries out what was given up of a range, now. No time passes.
func (n *network) settle(off, end int64) {
	for _, x := range n.pending() {
		if x.call.Off < end && off < x.call.Off+x.call.Len {
			x.goOn()
			<-x.ended
		}
	}
}

// pending lists requests that may still be carried out.
func (n *network) pending() []*exchange {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.mu.late)
}

// state says whether there is a session, whether one may come, and which one it is.
func (n *network) state() (up, dead bool, epoch int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.mu.up, n.mu.dead, n.mu.epoch
}

// networked counts what happened to connections.
type networked struct{ disconnects, late, restarts, stalls, gone, deserted atomic.Int64 }

func (c *networked) String() string {
	return fmt.Sprintf("%d disconnects (%d restarts, %d for good), %d late writes, %d stalls, %d requests given up", c.disconnects.Load(), c.restarts.Load(),
		c.gone.Load(), c.late.Load(), c.stalls.Load(), c.deserted.Load())
}
