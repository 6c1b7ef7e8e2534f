// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"time"
)

// counts are what happened in all rounds.
type counts struct {
	mu struct {
		sync.Mutex
		faults map[fault]int64 // those that were really done
		others map[string]int64
		times  map[string]time.Duration
	}
}

func newCounts() *counts {
	c := &counts{}
	c.mu.faults, c.mu.others, c.mu.times = map[fault]int64{}, map[string]int64{}, map[string]time.Duration{}
	return c
}

func (c *counts) fault(what fault, n int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.faults[what] += n
}

func (c *counts) add(what string, n int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.others[what] += n
}

func (c *counts) longest(what string, d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.times[what] = max(c.mu.times[what], d)
}

func (c *counts) print(out io.Writer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.mu.faults) > 0 {
		fmt.Fprintln(out, "faults:")
	}
	for _, f := range slices.Sorted(maps.Keys(c.mu.faults)) {
		fmt.Fprintf(out, "  %8d  %s\n", c.mu.faults[f], f)
	}
	fmt.Fprintln(out, "and:")
	for _, what := range slices.Sorted(maps.Keys(c.mu.others)) {
		fmt.Fprintf(out, "  %8d  %s\n", c.mu.others[what], what)
	}
	for _, what := range slices.Sorted(maps.Keys(c.mu.times)) {
		fmt.Fprintf(out, "  %8s  %s\n", c.mu.times[what].Round(time.Millisecond), what)
	}
}
