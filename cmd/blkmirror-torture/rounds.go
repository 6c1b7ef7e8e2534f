// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// maxFailures is how many rounds may fail before no more begin.
const maxFailures = 20

// runRounds runs rounds until there were as many as asked for, or there is no more time.
func runRounds(ctx context.Context, s *settings) error {
	can, missing := find(s)
	for _, m := range missing {
		fmt.Fprintf(s.out, "not here: %s\n", m)
	}
	if s.onlyPlan {
		for i := range s.count {
			fmt.Fprintln(s.out, newPlan(s.firstSeed+uint64(i), can))
		}
		return nil
	}
	var printing sync.Mutex
	say := func(format string, args ...any) {
		printing.Lock()
		defer printing.Unlock()
		fmt.Fprintf(s.out, format+"\n", args...)
	}
	chat := func(string, ...any) {}
	if s.verbose {
		chat = say
	}
	began, c := time.Now(), newCounts()
	fmt.Fprintf(s.out, "%d rounds from seed %d on, %d at once, in %s\n", s.count, s.firstSeed, s.jobs, s.folder)
	var state struct {
		sync.Mutex
		next, done int
		failed     []uint64
	}
	var workers sync.WaitGroup
	for range s.jobs {
		workers.Go(func() {
			for {
				state.Lock()
				i := state.next
				state.next++
				stop := i >= s.count || time.Since(began) > s.time || len(state.failed) >= maxFailures || ctx.Err() != nil
				state.Unlock()
				if stop {
					return
				}
				p := newPlan(s.firstSeed+uint64(i), can)
				chat("%v", p)
				err := runRound(ctx, s, p, c, chat)
				if err != nil && ctx.Err() != nil {
					return // it was interrupted
				}
				state.Lock()
				state.done++
				if err != nil {
					state.failed = append(state.failed, p.seed)
					say("FAILED: seed %d, kept in %s/torture-%d: %v\n  %v", p.seed, s.folder, p.seed, err, newPlan(p.seed, can))
				}
				if n := state.done; n%50 == 0 {
					say("%d rounds, %d failed, %v", n, len(state.failed), time.Since(began).Round(time.Second))
				}
				state.Unlock()
			}
		})
	}
	workers.Wait()
	fmt.Fprintf(s.out, "%d rounds in %v, %d failed\n", state.done, time.Since(began).Round(time.Second/10), len(state.failed))
	c.print(s.out)
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case len(state.failed) > 0:
		return fmt.Errorf("the rounds of these seeds failed: %v", state.failed)
	case state.done == 0:
		return errors.New("there was no time for a round")
	}
	return nil
}
