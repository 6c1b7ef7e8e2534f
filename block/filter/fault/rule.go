// SPDX-License-Identifier: Apache-2.0

package fault

import (
	"context"
	"slices"
	"sync"
	"syscall"
	"time"
)

// IOType is a kind of request.
type IOType uint8

// The kinds of requests, to be combined.
const (
	Read IOType = 1 << iota
	Write
	WriteZeroes
	Discard
	Flush
	BlockStatus

	// DefaultTypes are those that a rule without a kind is for.
	DefaultTypes = Read | Write | WriteZeroes | Discard | Flush
)

// EventNone is the event that is there all the time.
const EventNone = "none"

// Rule makes requests fail or wait.
type Rule struct {
	Event  string        // EventNone for a rule that is always active
	State  int           // the node's state that it is for; 0 for any
	Types  IOType        // the requests that it is for
	Sector int64         // 512-byte sector that a request must touch; -1 for any. A flush touches none
	Errno  syscall.Errno // 0 for none
	Delay  time.Duration
	Once   bool // gone after the first request that met it
}

// SetState changes the state of the node when an event happens.
type SetState struct {
	Event    string
	State    int // the state in which the event counts; 0 for any
	NewState int
}

// rules are the rules of a node and its state.
type rules struct {
	mu struct {
		sync.Mutex
		state  int
		rules  []Rule
		active []Rule // those whose event has happened
		states []SetState
	}
}

func newRules(list []Rule, states []SetState) *rules {
	r := &rules{}
	r.mu.state = 1
	r.mu.rules = slices.Clone(list)
	r.mu.states = slices.Clone(states)
	return r
}

// event takes note of an event. The rules for it are the active ones from then on, until an event that has rules, too.
func (r *rules) event(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	next := r.mu.state
	for _, s := range r.mu.states {
		if s.Event == name && (s.State == 0 || s.State == r.mu.state) {
			next = s.NewState
		}
	}
	var active []Rule
	for _, rule := range r.mu.rules {
		if rule.Event == name && (rule.State == 0 || rule.State == r.mu.state) {
			active = append(active, rule)
		}
	}
	if active != nil {
		r.mu.active = active
	}
	r.mu.state = next
}

// meet finds the rule for a request and does what it says.
func (r *rules) meet(ctx context.Context, t IOType, off, n int64) error {
	rule, found := r.find(t, off, n)
	if !found {
		return nil
	}
	if rule.Delay > 0 {
		timer := time.NewTimer(rule.Delay)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if rule.Errno != 0 {
		return rule.Errno
	}
	return nil
}

func (r *rules) find(t IOType, off, n int64) (Rule, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, list := range []*[]Rule{&r.mu.active, &r.mu.rules} {
		for i, rule := range *list {
			if list == &r.mu.rules && rule.Event != EventNone {
				continue
			}
			if !rule.matches(t, off, n) || rule.State != 0 && rule.State != r.mu.state {
				continue
			}
			if rule.Once {
				*list = slices.Delete(slices.Clone(*list), i, i+1)
				if rule.Event != EventNone {
					r.mu.rules = slices.DeleteFunc(r.mu.rules, func(other Rule) bool { return other == rule })
				}
			}
			return rule, true
		}
	}
	return Rule{}, false
}

func (rule *Rule) matches(t IOType, off, n int64) bool {
	if rule.Types&t == 0 {
		return false
	}
	if rule.Sector < 0 {
		return true
	}
	at := rule.Sector * 512
	return t != Flush && off <= at && at < off+n
}
