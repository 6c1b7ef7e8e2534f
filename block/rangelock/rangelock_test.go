// SPDX-License-Identifier: Apache-2.0

package rangelock

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestOverlappingRangesAreServedInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l Lock
		var mu sync.Mutex
		var order []string
		take := func(name string, off, n int64) chan *Held {
			got := make(chan *Held, 1)
			go func() {
				h := l.Lock(off, n)
				mu.Lock()
				order = append(order, name)
				mu.Unlock()
				got <- h
			}()
			synctest.Wait()
			return got
		}
		a := take("a", 0, 100)
		b := take("b", 50, 100)  // waits for a
		c := take("c", 140, 100) // waits for b, although its range is free
		d := take("d", 300, 10)  // nobody's business
		e := take("e", 100, 10)  // only b is before it
		if fmt.Sprint(order) != "[a d]" {
			t.Fatalf("order %v", order)
		}
		l.Unlock(<-d)
		l.Unlock(<-a)
		synctest.Wait()
		if fmt.Sprint(order) != "[a d b]" {
			t.Fatalf("order %v", order)
		}
		l.Unlock(<-b)
		l.Unlock(<-c)
		l.Unlock(<-e)
		if len(order) != 5 || len(l.mu.ranges) != 0 {
			t.Errorf("order %v, %d ranges left", order, len(l.mu.ranges))
		}
	})
}

func TestTouchingRangesDoNotOverlap(t *testing.T) {
	var l Lock
	a, b := l.Lock(0, 512), l.Lock(512, 512)
	l.Unlock(a)
	l.Unlock(b)
}

func TestNoTwoHoldersOfAByte(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	const size = 64
	var l Lock
	var owners [size]int // guarded by l itself, which is what the race detector looks at
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(seed, uint64(w)))
			for range 500 {
				off := random.Int64N(size)
				n := 1 + random.Int64N(size-off)
				h := l.Lock(off, n)
				for i := off; i < off+n; i++ {
					if owners[i] != 0 {
						t.Errorf("byte %d has two holders", i)
					}
					owners[i] = w + 1
				}
				for i := off; i < off+n; i++ {
					owners[i] = 0
				}
				l.Unlock(h)
			}
		})
	}
	wg.Wait()
}
