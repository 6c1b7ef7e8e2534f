// SPDX-License-Identifier: Apache-2.0

package budget

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/blkmirror/blkmirror/block/invariants"
)

// Budget is a number of bytes that accounts share. A nil Budget has no bound; so have its accounts, which are nil, too.
// All methods may be called by any goroutine.
type Budget struct {
	waiting atomic.Int64 // how many wait; changed under mu

	mu struct {
		sync.Mutex
		limit  int64
		own    int64 // bytes of all accounts' own parts
		shared int64 // bytes beyond their own parts that accounts hold
		queue  []*waiter
		open   map[*Account]struct{}
	}
}

// waiter is somebody who waits for bytes.
type waiter struct {
	account *Account
	n       int64
	granted chan struct{} // closed when the bytes are the account's
}

// New returns a budget of limit bytes.
func New(limit int64) *Budget {
	b := &Budget{}
	b.mu.limit, b.mu.open = limit, map[*Account]struct{}{}
	return b
}

// Part is an own part with which so many accounts take half of the budget, within bounds.
func (b *Budget) Part(accounts int, least, most int64) int64 {
	if b == nil {
		return 0
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return min(max(b.mu.limit/2/int64(max(accounts, 1)), least), most)
}

// Account is one user's. It holds nothing when it is closed.
type Account struct {
	budget *Budget
	own    int64
	held   atomic.Int64
}

// Open makes an account with so many bytes of its own. They are its own even where all accounts' own parts are more than
// the budget; whoever opens accounts bounds their number.
func (b *Budget) Open(own int64) *Account {
	if b == nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.mu.own += own
	a := &Account{budget: b, own: own}
	b.mu.open[a] = struct{}{}
	return a
}

// Close ends an account, to which everything was given back already.
func (a *Account) Close() {
	if a == nil {
		return
	}
	b := a.budget
	if held := a.held.Load(); held != 0 {
		if invariants.On {
			panic(fmt.Sprintf("budget: an account is closed that holds %d bytes", held))
		}
		a.Give(held)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.mu.own -= a.own
	delete(b.mu.open, a)
	b.grantLocked()
}

// Use is what a budget is used for at one moment, in bytes but for the last two.
type Use struct {
	Limit, Held       int64
	Accounts, Waiting int
}

// Use is a snapshot. A budget without a bound tells nothing.
func (b *Budget) Use() (u Use) {
	if b == nil {
		return u
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for a := range b.mu.open {
		u.Held += a.held.Load()
	}
	u.Limit, u.Accounts, u.Waiting = b.mu.limit, len(b.mu.open), len(b.mu.queue)
	return u
}

// Used is how many bytes accounts hold beyond their own parts, and how many of those there may be. The second is
// negative where all accounts' own parts are more than the budget.
func (b *Budget) Used() (shared, most int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.mu.shared, b.mu.limit - b.mu.own
}

// TryTake takes n bytes if they are there. It allocates nothing, and locks nothing while the account's own part is enough.
func (a *Account) TryTake(n int64) bool {
	if a == nil {
		return true
	}
	held := a.held.Add(n)
	beyond := a.beyond(held) - a.beyond(held-n)
	if beyond == 0 {
		return true
	}
	b := a.budget
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.mu.queue) == 0 && b.fitsLocked(a, held-n, beyond) {
		b.mu.shared += beyond
		return true
	}
	b.undoLocked(a, n, beyond)
	b.grantLocked() // who waits may have been held up by this try
	return false
}

// Take takes n bytes, and waits for them as long as ctx lasts. n may be more than the budget has: then they are
// granted as soon as nobody else holds anything that is shared.
func (a *Account) Take(ctx context.Context, n int64) error {
	if a.TryTake(n) {
		return nil
	}
	b := a.budget
	w := &waiter{account: a, n: n, granted: make(chan struct{})}
	b.mu.Lock()
	b.mu.queue = append(b.mu.queue, w)
	b.waiting.Add(1)
	b.grantLocked()
	b.mu.Unlock()
	select {
	case <-w.granted:
		return nil
	case <-ctx.Done():
	}
	b.mu.Lock()
	for i, other := range b.mu.queue {
		if other == w {
			b.mu.queue = append(b.mu.queue[:i], b.mu.queue[i+1:]...)
			b.waiting.Add(-1)
			b.grantLocked()
			b.mu.Unlock()
			return context.Cause(ctx)
		}
	}
	b.mu.Unlock()
	a.Give(n) // it was granted at the last moment
	return context.Cause(ctx)
}

// Give gives n bytes back.
func (a *Account) Give(n int64) {
	if a == nil || n == 0 {
		return
	}
	held := a.held.Add(-n)
	beyond := a.beyond(held+n) - a.beyond(held)
	b := a.budget
	// Whoever begins to wait looks at held after it is in waiting, so that one of the two sees the other.
	if beyond == 0 && b.waiting.Load() == 0 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.mu.shared -= beyond
	b.grantLocked()
}

// beyond is how much of held is not the account's own part.
func (a *Account) beyond(held int64) int64 { return max(0, held-a.own) }

// freeLocked is what nobody holds of what is shared.
func (b *Budget) freeLocked() int64 { return b.mu.limit - b.mu.own - b.mu.shared }

// fitsLocked says whether an account that holds so much may have so much more of what is shared.
func (b *Budget) fitsLocked(a *Account, held, more int64) bool {
	free := b.freeLocked()
	if held == 0 {
		return more <= free || b.mu.shared == 0
	}
	return a.beyond(held)+more <= free-more
}

// grantLocked serves those who wait, in their order. One that holds too much already waits for itself, and holds nobody up.
func (b *Budget) grantLocked() {
	for i := 0; i < len(b.mu.queue); {
		w := b.mu.queue[i]
		held := w.account.held.Add(w.n)
		more := w.account.beyond(held) - w.account.beyond(held-w.n)
		if more == 0 || b.fitsLocked(w.account, held-w.n, more) {
			b.mu.shared += more
			b.mu.queue = append(b.mu.queue[:i], b.mu.queue[i+1:]...)
			b.waiting.Add(-1)
			close(w.granted)
			continue
		}
		b.undoLocked(w.account, w.n, more)
		if held == w.n || more > b.freeLocked() {
			return
		}
		i++
	}
}

// undoLocked takes back what was added to what an account holds, of which so much had been beyond its own part. Bytes that
// the account gave back in between were counted as if these had been taken.
func (b *Budget) undoLocked(a *Account, n, beyond int64) {
	held := a.held.Add(-n)
	b.mu.shared += beyond - (a.beyond(held+n) - a.beyond(held))
}
