// SPDX-License-Identifier: Apache-2.0

package block

import (
	"context"
	"errors"
	"slices"
)

// suspectError marks the failure of a request that may still be carried out.
type suspectError struct{ error }

func (e *suspectError) Unwrap() error { return e.error }

// Suspect marks err as the failure of a request that changes the disk and that somebody beyond reach may still carry out,
// long after it failed here.
func Suspect(err error) error { return &suspectError{err} }

// IsSuspect says whether a request that failed with err may still change the disk, at any time: it was under way when the
// connection to its server died, or when its caller gave it up. Until that server is known to have ended the old
// connection, its range may turn into what the request had, even over what was written there since.
func IsSuspect(err error) bool {
	var suspect *suspectError
	return errors.As(err, &suspect)
}

// OnReconnect has f called after each new session of the node's driver or of those below it; see [Reconnector]. Where
// nothing can reconnect it does nothing. The nodes below must stay as they are until cancel.
func (n *Node) OnReconnect(f func(unflushed bool)) (cancel func()) {
	var cancels []func()
	if r, ok := n.Driver().(Reconnector); ok {
		cancels = append(cancels, r.OnReconnect(f))
	}
	for _, e := range n.edges() {
		cancels = append(cancels, e.Node().OnReconnect(f))
	}
	return func() {
		for _, cancel := range cancels {
			cancel()
		}
	}
}

// Reconnects says whether requests may go to a server that can be lost, or say nothing: whether the node's driver or one
// below it is a [Reconnector].
func (n *Node) Reconnects() bool {
	if _, ok := n.Driver().(Reconnector); ok {
		return true
	}
	return slices.ContainsFunc(n.edges(), func(e *Edge) bool { return e.Node().Reconnects() })
}

// Withholds says whether a part of what is written is in the memory of the process until a flush: whether the node's driver or one
// below it is a [Withholder].
func (n *Node) Withholds() bool {
	if _, ok := n.Driver().(Withholder); ok {
		return true
	}
	return slices.ContainsFunc(n.edges(), func(e *Edge) bool { return e.Node().Withholds() })
}

// Suspects calls f with the ranges of the disk that the node's driver suspects, or that of the node whose requests it passes on;
// see [SuspectReporter]. What becomes of suspects in the file of a format is not known here.
func (n *Node) Suspects(f func(off, length int64)) {
	switch d := n.Unfiltered().Driver().(type) {
	case SuspectReporter:
		d.Suspects(f)
	case RangeMapper:
		child, at := d.Mapped(0)
		child.Node().Suspects(func(off, length int64) {
			start, end := max(off-at, 0), min(off-at+length, n.Size())
			if start < end {
				f(start, end-start)
			}
		})
	}
}

// Waiting is nil unless requests would wait for a server that the node's driver or one below it has lost; it is closed when
// that may have changed. See [ServerWaiter].
func (n *Node) Waiting() <-chan struct{} {
	if w, ok := n.Driver().(ServerWaiter); ok {
		if back := w.Waiting(); back != nil {
			return back
		}
	}
	for _, e := range n.edges() {
		if back := e.Node().Waiting(); back != nil {
			return back
		}
	}
	return nil
}

// ErrDisconnected is in errors of requests that failed because the connection to a server is lost and may come back soon: a
// request that waits may succeed.
var ErrDisconnected = errors.New("the connection to the server is lost for now")

// unwaiting marks a context of requests that do not wait for a new session.
type unwaiting struct{}

// WithoutWaiting makes a context for requests that fail at once, with ErrDisconnected, where others would wait for a driver
// to reconnect.
func WithoutWaiting(ctx context.Context) context.Context {
	return context.WithValue(ctx, unwaiting{}, true)
}

// MayWait says whether requests with a context may wait for a driver to reconnect.
func MayWait(ctx context.Context) bool { return ctx.Value(unwaiting{}) == nil }
