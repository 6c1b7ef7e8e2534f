// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"sync"
)

// call is the context of a command while it runs.
type call struct {
	context.Context
	server *Server
	mu     struct {
		sync.Mutex
		done  bool // the reply is queued
		after []func()
	}
}

type callKey struct{}

// Value finds the call from any context that is made of it.
func (c *call) Value(key any) any {
	if key == (callKey{}) {
		return c
	}
	return c.Context.Value(key)
}

// AfterReply has f run right after the reply of the command that ctx belongs
// to was queued, and before the next command starts: what f emits comes after
// the reply. Without a command, or after its reply, f runs at once.
func AfterReply(ctx context.Context, f func()) {
	if c, ok := ctx.Value(callKey{}).(*call); ok {
		c.mu.Lock()
		if !c.mu.done {
			c.mu.after = append(c.mu.after, f)
			c.mu.Unlock()
			return
		}
		c.mu.Unlock()
	}
	f()
}

// Aside has f run while other commands may run: for what waits for somebody else, such as another host. It returns when f has,
// and it is the command's turn again. The context of f ends when no further command is to be executed; then, whatever f
// returned, the error is ErrClosed, and the command must not do what it was about to. Without a command f just runs.
func Aside(ctx context.Context, f func(ctx context.Context) error) error {
	c, ok := ctx.Value(callKey{}).(*call)
	if !ok {
		return f(ctx)
	}
	s := c.server
	limited, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(s.open, func() { cancel(ErrClosed) })()
	<-s.turn
	err := f(limited)
	s.turn <- struct{}{}
	if s.open.Err() != nil {
		return ErrClosed
	}
	return err
}

// replied notes that the reply is queued, and tells whether something is to
// be run now.
func (c *call) replied() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.done = true
	return len(c.mu.after) > 0
}

// runAfter runs what was registered.
func (c *call) runAfter() {
	for _, f := range c.mu.after { // nobody adds to it after replied
		f()
	}
}
