// SPDX-License-Identifier: Apache-2.0

package job

import (
	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/budget"
)

// LeastBuffer is the smallest buffer, in bytes, with which copies go on where memory is scarce: with less, requests cost more
// than what they carry.
const LeastBuffer = 256 << 10

// ShareMemory has all jobs take what they copy through from one budget; nil is no bound. It is called before there are jobs.
func (r *Registry) ShareMemory(b *budget.Budget) { r.memory = b }

// Memory is one job's part of the budget for copies. A job that has nothing in flight always gets some, whatever others do, so
// that nobody has to wait for anybody here: a job that gets none tries again when something of its own has ended.
type Memory struct {
	account *budget.Account
	least   int64
}

// OpenMemory opens a job's part: it never lacks room for least bytes.
func (r *Registry) OpenMemory(least int64) *Memory {
	least = block.BufferBytes(least)
	return &Memory{r.memory.Open(least), least}
}

// Take takes room for a buffer of n bytes, or for a smaller one that is not smaller than least, and says how large; 0 for none,
// which cannot be while nothing is taken. It does not wait. Give follows.
func (m *Memory) Take(n int64) int64 {
	for n = max(block.BufferBytes(n), m.least); ; n = max(n/2, m.least) {
		if m.account.TryTake(n) {
			return n
		}
		if n == m.least {
			return 0
		}
	}
}

// Keep keeps of what Take took as much as a buffer of n bytes needs, if that is less, gives back the rest, and says how much is
// left.
func (m *Memory) Keep(taken, n int64) int64 {
	keep := min(taken, block.BufferBytes(n))
	m.Give(taken - keep)
	return keep
}

// Give gives back what Take took. Any goroutine may call it.
func (m *Memory) Give(n int64) { m.account.Give(n) }

// Close ends the job's part, to which everything was given back.
func (m *Memory) Close() { m.account.Close() }
