// SPDX-License-Identifier: Apache-2.0

package job

import "sync"

// Progress counts work. What is done only grows; what is left is an estimate that is set anew from time to time.
type Progress struct {
	mu struct {
		sync.Mutex
		current, remaining int64
	}
}

// Read returns what is done, and that plus what is known to be left.
func (p *Progress) Read() (current, total int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.mu.current, p.mu.current + p.mu.remaining
}

// SetRemaining sets what is left.
func (p *Progress) SetRemaining(n int64) {
	p.mu.Lock()
	p.mu.remaining = n
	p.mu.Unlock()
}

// AddRemaining adds to what is left.
func (p *Progress) AddRemaining(n int64) {
	p.mu.Lock()
	p.mu.remaining += n
	p.mu.Unlock()
}

// Done moves n from what is left to what is done.
func (p *Progress) Done(n int64) {
	p.mu.Lock()
	p.mu.current += n
	p.mu.remaining = max(p.mu.remaining-n, 0)
	p.mu.Unlock()
}
