// SPDX-License-Identifier: Apache-2.0

package blocktest

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/blkmirror/blkmirror/block"
)

// Call is one request that reached a [Mem], or with NonAtomic, in the hooks, one piece of it.
type Call struct {
	Op       block.Op
	Off, Len int64
	Flags    block.Flags

	request uint64 // which request a piece is of
}

func (c Call) String() string {
	text := fmt.Sprintf("%s %d+%d", c.Op, c.Off, c.Len)
	for _, f := range []struct {
		flag block.Flags
		name string
	}{{block.FUA, " fua"}, {block.MayUnmap, " unmap"}, {block.NoFallback, " fast"}} {
		if c.Flags&f.flag != 0 {
			text += f.name
		}
	}
	return text
}

// Hook is called without locks held, so it may wait for other requests, or sleep. An error ends the request.
type Hook func(ctx context.Context, c Call) error

type hooks struct {
	before, after atomic.Pointer[Hook]
	permissions   atomic.Pointer[func(need, share block.Perm) error]
}

func callHook(ctx context.Context, which *atomic.Pointer[Hook], c Call) error {
	if hook := which.Load(); hook != nil && *hook != nil {
		return (*hook)(ctx, c)
	}
	return nil
}

// SetHook has f called before each request, which is not carried out if f fails. nil takes the hook away.
func (m *Mem) SetHook(f Hook) { m.hooks.before.Store(&f) }

// SetAfterHook has f called after each request was carried out and before it returns.
func (m *Mem) SetAfterHook(f Hook) { m.hooks.after.Store(&f) }

// SetPermissionHook has f called before each change of permissions, which is refused if f fails.
func (m *Mem) SetPermissionHook(f func(need, share block.Perm) error) {
	if f == nil {
		m.hooks.permissions.Store(nil)
		return
	}
	m.hooks.permissions.Store(&f)
}

// Calls lists the requests since the disk was made or ResetCalls, in the order of their arrival.
func (m *Mem) Calls() []Call {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.mu.calls)
}

// ResetCalls empties the list of requests.
func (m *Mem) ResetCalls() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mu.calls = nil
}

// Count is how many requests of a kind are in the list, and their bytes.
func (m *Mem) Count(op block.Op) (requests int, bytes int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range m.mu.calls {
		if c.Op == op {
			requests, bytes = requests+1, bytes+c.Len
		}
	}
	return requests, bytes
}
