// SPDX-License-Identifier: Apache-2.0

package qcow2

import "sync"

// epochs tell when no request is left that may still use a cluster which has been freed: a request looks up where a cluster
// lies and reads or writes there without a lock, so the place must not be given to another cluster in the meantime.
//
// Every request belongs to the epoch in which it began. What is freed in one epoch is safe when all requests of it and of those
// before have ended.
type epochs struct {
	mu struct {
		sync.Mutex
		current int    // 0 or 1
		running [2]int // requests of the current epoch and of the one before
	}
}

func (e *epochs) enter() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.mu.running[e.mu.current]++
	return e.mu.current
}

func (e *epochs) leave(epoch int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.mu.running[epoch]--
}

// past says whether no request of the epoch before the current is left.
func (e *epochs) past() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.mu.running[1-e.mu.current] == 0
}

// turn begins a new epoch if no request of the one before the current is left.
func (e *epochs) turn() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	before := 1 - e.mu.current
	if e.mu.running[before] > 0 {
		return false
	}
	e.mu.current = before
	return true
}
