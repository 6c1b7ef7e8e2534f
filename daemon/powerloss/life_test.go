// SPDX-License-Identifier: Apache-2.0

package powerloss

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"testing/synctest"
	"time"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/daemon/handlers"
	"github.com/blkmirror/blkmirror/daemon/state"
	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
)

// life is a daemon from its start to the end of its host, or of itself.
type life struct {
	*world
	handlers *handlers.Handlers
	graph    *block.Graph
	dir      *state.Dir
	listener *silent
	stop     chan struct{}
	guests   sync.WaitGroup
	backends []*block.Backend
}

// silent is a listener to which nobody connects.
type silent struct {
	net.Listener
	once   sync.Once
	closed chan struct{}
}

func (s *silent) Accept() (net.Conn, error) {
	<-s.closed
	return nil, net.ErrClosed
}

func (s *silent) Close() error {
	s.once.Do(func() { close(s.closed) })
	return nil
}

// emit takes events of the daemon.
func (w *world) emit(e qmp.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.frozen || w.stopping {
		return // a stop ends jobs that come back
	}
	switch e := e.(type) {
	case *api.BlockJobCompletedEvent:
		if e.Error != nil {
			w.wrong("the mirror failed: %s", *e.Error)
		}
		w.overLocked()
	case *api.BlockJobCancelledEvent:
		if w.ending != nil {
			w.ending = (*model).ended
		}
		w.overLocked()
	case *api.BlockJobErrorEvent:
		w.wrong("error of the mirror: %+v", *e)
	}
}

// overLocked takes in that the operator was told of the end of the mirror.
func (w *world) overLocked() {
	if w.ending == nil {
		w.wrong("the mirror has ended, and nobody asked for it")
		return
	}
	w.known = w.known.with(w.ending)
	w.ending, w.asked, w.ahead = nil, false, nil
	close(w.over)
}

// possible is what may be there after the end of a host: a command that was not answered was carried out or not, and a mirror that
// was asked to end did or did not.
func (w *world) possible() []*model {
	list := []*model{w.known}
	for _, change := range []func(*model){w.change, w.ahead, w.ending} {
		if change != nil {
			for _, m := range slices.Clone(list) {
				list = append(list, m.with(change))
			}
		}
	}
	return list
}

// begin starts a daemon on the host.
func (w *world) begin() (*life, error) {
	l := &life{world: w, graph: block.NewGraph(), stop: make(chan struct{})}
	l.handlers = handlers.New(handlers.Config{Emit: w.emit, Graph: l.graph,
		Host: handlers.Host{OpenFile: w.host.OpenFile, Identify: w.host.Identify, BootID: w.host.BootID},
		Hold: func(real net.Listener) net.Listener {
			_ = real.Close()
			l.listener = &silent{Listener: real, closed: make(chan struct{})}
			return l.listener
		}})
	l.dir = state.In("/state", folder{w.host})
	old, err := l.dir.Load()
	if err != nil {
		return l, err
	}
	trouble := func(err error) { w.note("trouble: %v", err) }
	trusted := w.trusted // a paused job tells late
	resumed := func(job string, left int64, reason string) {
		w.counts.resumed++
		w.note("%s goes on with %d bytes left: %s", job, left, reason)
		if trusted && reason != "" && reason != "it was not known yet what had to be copied" {
			w.wrong("the intent file was in order, and yet: %s", reason)
		}
	}
	failed, err := l.handlers.Restore(context.Background(), handlers.Record{Dir: l.dir, Trouble: trouble, Durability: w.durability,
		Region: w.region, Hot: w.hot, Resumed: resumed}, nil, old, true)
	return l, errors.Join(append(failed, err)...)
}

// do executes a command that makes a change to what there is.
func (l *life) do(change func(*model), command, arguments string, values ...any) error {
	w := l.world
	w.mu.Lock()
	if !w.frozen {
		w.change = change
	}
	w.mu.Unlock()
	text := fmt.Sprintf(arguments, values...)
	_, err := l.dispatch(command, text)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.frozen {
		return errCut
	}
	w.noteLocked("%s %s: %v", command, text, err)
	if err == nil && change != nil {
		w.known = w.known.with(change)
	}
	w.change = nil
	return err
}

// must is a command that cannot fail but for the end of the host.
func (l *life) must(change func(*model), command, arguments string, values ...any) bool {
	err := l.do(change, command, arguments, values...)
	if err != nil && !errors.Is(err, errCut) {
		l.wrong("%s: %v", command, err)
	}
	return err == nil
}

var errCut = errors.New("the host has ended")

// verify compares what there is with what an operator and guests know.
func (l *life) verify() {
	time.Sleep(time.Second) // a job that comes back pauses when it begins to work
	w := l.world
	var is *model
	for range 20 { // the job may be about to end
		var err error
		if is, err = l.look(); err != nil {
			w.wrong("%v", err)
			return
		}
		if w.layers.count == 0 || w.believes(is) {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	w.mu.Lock()
	if w.frozen {
		w.mu.Unlock()
		return
	}
	found := false
	for _, m := range w.possible() {
		if m.matches(is) {
			w.known, found = m, true
			break
		}
	}
	if !found {
		w.wrong("there is\n  %s\nand should be one of", is)
		for _, m := range w.possible() {
			w.wrong("  %s", m)
		}
	}
	w.change = nil
	if w.known.job == nil {
		w.ending, w.asked, w.ahead = nil, false, nil
	}
	w.mu.Unlock()
	if node := is.exports["e"]; node != "" {
		b := l.attach(node, block.PermConsistentRead)
		if b == nil {
			return
		}
		l.read(b, w.lost)
		l.detach(b)
		l.checkBitmaps()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.frozen {
		w.lost, w.trusted, w.stopped = nothing, true, false
	}
}

// read compares the disk that guests have with the journal.
func (l *life) read(b *block.Backend, lost loss) {
	p := make([]byte, l.size)
	if err := b.ReadAt(context.Background(), p, 0); err != nil {
		l.wrong("%v", err)
	} else if err := l.journal.read(p, 0, lost); err != nil {
		l.wrong("disk of guests: %v", err)
	}
}

// checkBitmaps looks for writes that bitmaps missed.
func (l *life) checkBitmaps() {
	l.mu.Lock()
	known := l.known
	l.mu.Unlock()
	for a, b := range known.bitmaps {
		if a.node != known.exports["e"] || !b.recording {
			continue
		}
		n, err := l.graph.Node(a.node)
		if err != nil {
			l.wrong("%v", err)
			return
		}
		if found, err := n.FindBitmap(a.name); err != nil {
			l.wrong("%v", err)
		} else if err := l.journal.unseen(b.since, found.Snapshot()); err != nil {
			l.wrong("bitmap %s: %v", a.name, err)
		}
	}
}

// attach is nil where the host has ended.
func (l *life) attach(node string, need block.Perm) (b *block.Backend) {
	err := l.graph.Change(context.Background(), func(tx *block.Tx) error {
		n, err := l.find(node)
		if err != nil {
			return err
		}
		b, err = tx.Attach(l.graph.Top(n), "guest", need, block.PermAll)
		return err
	})
	if err != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.frozen {
			return nil // the disk may be another one since, of which nobody was told
		}
		panic(err) // there is nothing to go on with
	}
	return b
}

func (l *life) detach(b *block.Backend) {
	err := l.graph.Change(context.Background(), func(tx *block.Tx) error {
		tx.Detach(b)
		return nil
	})
	if err != nil {
		l.wrong("%v", err)
	}
}

// rest stops guests, for good.
func (l *life) rest() {
	select {
	case <-l.stop:
		return
	default:
	}
	close(l.stop)
	l.guests.Wait()
	for _, b := range l.backends {
		l.detach(b)
	}
	l.backends = nil
}

// restart lets guests go on that were stopped.
func (l *life) restart() {
	l.stop = make(chan struct{})
	l.drive(l.known.exports["e"])
}

// close ends the daemon in good order.
func (l *life) close() error {
	l.rest()
	err := errors.Join(l.handlers.Close(context.Background(), 0), l.dir.Close())
	synctest.Wait()
	return err
}

// alike compares the two disks of a mirror that has just ended, when nobody has written since.
func (l *life) alike(source, target string) {
	var disks [2][]byte
	for i, node := range []string{source, target} {
		b := l.attach(node, block.PermConsistentRead)
		if b == nil {
			return
		}
		disks[i] = make([]byte, l.size)
		if err := b.ReadAt(context.Background(), disks[i], 0); err != nil {
			l.wrong("%v", err)
		}
		l.detach(b)
	}
	for at := 0; at < len(disks[0]); at += sector {
		if !bytes.Equal(disks[0][at:at+sector], disks[1][at:at+sector]) {
			l.wrong("sector %d of '%s' is not that of '%s': %x and %x", at/sector, target, source, disks[1][at:at+8], disks[0][at:at+8])
			return
		}
	}
}

var address = fmt.Sprintf(`{"addr": {"type": "unix", "data": {"path": "blkmirror-powerloss-%d", "abstract": true}}}`, os.Getpid())
