// SPDX-License-Identifier: Apache-2.0

package budget

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func wantShared(t *testing.T, b *Budget, want int64) {
	t.Helper()
	if got, _ := b.Used(); got != want {
		t.Errorf("%d shared bytes are held, want %d", got, want)
	}
}

func TestNoBound(t *testing.T) {
	var b *Budget
	a := b.Open(10)
	if !a.TryTake(1<<60) || a.Take(t.Context(), 1<<60) != nil {
		t.Error("no budget refused something")
	}
	a.Give(1 << 60)
	a.Close()
}

func TestShares(t *testing.T) {
	b := New(100)
	hog, other, late := b.Open(10), b.Open(10), b.Open(10) // 70 are shared
	take := func(a *Account, n int64, want bool) {
		t.Helper()
		if got := a.TryTake(n); got != want {
			t.Errorf("taking %d is %v", n, got)
		}
	}
	take(hog, 10, true)
	wantShared(t, b, 0)
	take(hog, 35, true)
	wantShared(t, b, 35)
	take(hog, 1, false) // it has half
	take(other, 10, true)
	take(other, 17, true)
	take(other, 1, false) // the third part, in whole bytes
	wantShared(t, b, 52)
	take(late, 29, false) // nobody has more than there is
	take(late, 28, true)  // but one that holds nothing may have all of that
	take(other, 1, false)
	hog.Give(45)
	other.Give(27)
	late.Give(28)
	wantShared(t, b, 0)
	take(late, 1000, true) // alone, even more than there is
	if u := b.Use(); u != (Use{Limit: 100, Held: 1000, Accounts: 3}) {
		t.Errorf("the budget says that its use is %+v", u)
	}
	take(other, 11, false)
	take(other, 10, true)
	other.Give(10)
	late.Give(1000)
	for _, a := range []*Account{hog, other, late} {
		a.Close()
	}
	if _, most := b.Used(); most != 100 {
		t.Errorf("%d are shared in the end", most)
	}
}

func TestOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := New(100)
		first, second, third, small := b.Open(0), b.Open(0), b.Open(0), b.Open(5)
		if !first.TryTake(80) {
			t.Fatal("there is room")
		}
		var order []string
		var all sync.WaitGroup
		wait := func(name string, a *Account, n int64) {
			all.Go(func() {
				if err := a.Take(t.Context(), n); err != nil {
					t.Error(err)
				}
				order = append(order, name)
				a.Give(n)
			})
			synctest.Wait()
		}
		wait("large", second, 90)
		wait("fits", third, 10) // it does not overtake
		if !small.TryTake(5) || small.TryTake(1) {
			t.Error("one's own part is there at once, and no more")
		}
		gone, cancel := context.WithCancelCause(t.Context())
		all.Go(func() {
			if err := small.Take(gone, 6); !errors.Is(err, errGone) {
				t.Errorf("giving up: %v", err)
			}
		})
		synctest.Wait()
		cancel(errGone)
		synctest.Wait()
		if len(order) > 0 {
			t.Errorf("%v were served too early", order)
		}
		first.Give(80)
		all.Wait()
		if len(order) != 2 || order[0] != "large" {
			t.Errorf("served in the order %v", order)
		}
		wantShared(t, b, 0)
	})
}

var errGone = errors.New("gone")

// A waiter whose own part becomes free needs nothing of what is shared.
func TestOwnPartEndsWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := New(20)
		a, hog := b.Open(10), b.Open(0)
		if !hog.TryTake(10) || !a.TryTake(10) {
			t.Fatal("there is room")
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			if err := a.Take(t.Context(), 10); err != nil {
				t.Error(err)
			}
		}()
		synctest.Wait()
		a.Give(10)
		<-done
		wantShared(t, b, 10)
	})
}

// An account that takes and gives nothing back waits for itself alone.
func TestHogHoldsNobodyUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := New(100)
		hog, other := b.Open(0), b.Open(0)
		if !hog.TryTake(40) {
			t.Fatal("there is room")
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			if hog.Take(ctx, 40) == nil {
				t.Error("one account has more than half")
			}
		}()
		synctest.Wait()
		if err := other.Take(t.Context(), 60); err != nil {
			t.Error(err)
		}
		other.Give(60)
		cancel()
		<-done
		wantShared(t, b, 40)
	})
}

// TestRandom has many take and give at once. Nobody may hang, the bound holds, and in the end all is there again.
func TestRandom(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	const limit, accounts, users, own = 1000, 5, 4, 50
	b := New(limit)
	var total atomic.Int64
	var all sync.WaitGroup
	for i := range accounts {
		a := b.Open(own)
		for j := range users {
			all.Go(func() {
				random := rand.New(rand.NewPCG(seed, uint64(i*users+j)))
				for range 3000 {
					n := 1 + random.Int64N(limit/4)
					ctx, cancel := context.WithCancel(t.Context())
					if random.IntN(4) == 0 {
						go cancel()
					}
					var err error
					if random.IntN(3) == 0 {
						if !a.TryTake(n) {
							err = errGone
						}
					} else {
						err = a.Take(ctx, n)
					}
					if err == nil {
						if got := total.Add(n); got > limit {
							t.Errorf("%d bytes of %d are taken", got, limit)
						}
						total.Add(-n)
						a.Give(n)
					}
					cancel()
				}
			})
		}
		defer a.Close()
	}
	all.Wait()
	wantShared(t, b, 0)
}

func TestNoAllocation(t *testing.T) {
	a := New(1000).Open(10)
	if n := testing.AllocsPerRun(100, func() {
		if !a.TryTake(10) || !a.TryTake(100) || a.TryTake(2000) {
			t.Error("not as it should be")
		}
		a.Give(110)
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkTake(b *testing.B) {
	for name, own := range map[string]int64{"own": 1 << 20, "shared": 0} {
		b.Run(name, func(b *testing.B) {
			budget := New(1 << 30)
			b.ReportAllocs()
			b.RunParallel(func(p *testing.PB) {
				a := budget.Open(own)
				for p.Next() {
					a.TryTake(4096)
					a.Give(4096)
				}
				a.Close()
			})
		})
	}
}
