// SPDX-License-Identifier: Apache-2.0

package block_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/blocktest"
)

// hold makes writes to the disk wait until the returned function is called.
func hold(m *blocktest.Mem) (release func()) {
	gate := make(chan struct{})
	m.SetHook(func(ctx context.Context, c blocktest.Call) error {
		if c.Op == block.OpWrite {
			<-gate
		}
		return nil
	})
	return func() { close(gate) }
}

func TestDrainWaitsForRequestsFromAllAbove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, a, m := disk(t, blocktest.MemOptions{Size: mib}, block.Options{})
		parent := above(t, g, "parent", a)
		direct := blocktest.Attach(t, g, a, "direct", readWrite, block.PermAll)
		indirect := blocktest.Attach(t, g, parent, "indirect", readWrite, block.PermAll)
		elsewhere := blocktest.Attach(t, g, blocktest.NewNode(t, g, "b", newMem(mib), block.Options{}), "elsewhere", readWrite, block.PermAll)
		release := hold(m)
		results := make(chan error, 3)
		write := func(b *block.Backend) { results <- b.WriteAt(t.Context(), []byte{1}, 0, 0) }
		go write(direct)
		go write(indirect)
		synctest.Wait()
		var drained atomic.Bool
		resume := make(chan struct{})
		done := make(chan error)
		go func() {
			done <- g.Change(t.Context(), func(tx *block.Tx) error {
				if err := tx.Drain(t.Context(), nil, a); err != nil {
					return err
				}
				drained.Store(true)
				<-resume
				return nil
			})
		}()
		synctest.Wait()
		if drained.Load() {
			t.Fatal("drained with requests in flight")
		}
		must(t, elsewhere.WriteAt(t.Context(), []byte{1}, 0, 0)) // no business of this drain
		go write(indirect)                                       // parked, so not waited for
		synctest.Wait()
		release()
		synctest.Wait()
		if !drained.Load() || len(results) != 2 {
			t.Fatalf("drained %v, %d of 2 requests ended", drained.Load(), len(results))
		}
		close(resume)
		must(t, <-done)
		for range 3 {
			must(t, <-results)
		}
	})
}

func TestDrainExemptsAndResumes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, a, _ := disk(t, blocktest.MemOptions{Size: mib}, block.Options{})
		job := blocktest.Attach(t, g, a, "job", readWrite, block.PermAll)
		guest := blocktest.Attach(t, g, a, "guest", readWrite, block.PermAll)
		if !job.Gate().TryEnter() { // a request of its own that ends only later
			t.Fatal("closed")
		}
		var late *block.Backend
		blocktest.Change(t, g, func(tx *block.Tx) (err error) {
			must(t, tx.Drain(t.Context(), job.Gate(), a))
			must(t, tx.Drain(t.Context(), job.Gate(), a)) // again is no harm
			must(t, job.WriteAt(t.Context(), []byte{1}, 0, 0))
			if guest.Gate().TryEnter() {
				t.Error("the guest got in")
			}
			late, err = tx.Attach(a, "late", readWrite, block.PermAll)
			must(t, err)
			if late.Gate().TryEnter() {
				t.Error("a backend that came under drain got in")
			}
			tx.Resume()
			must(t, guest.WriteAt(t.Context(), []byte{1}, 0, 0))
			must(t, late.WriteAt(t.Context(), []byte{1}, 0, 0))
			return nil
		})
		job.Gate().Leave()
		must(t, guest.WriteAt(t.Context(), []byte{1}, 0, 0))
	})
}

func TestDrainEndsWithItsContextAndOpensTheGates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, a, m := disk(t, blocktest.MemOptions{Size: mib}, block.Options{})
		guest := blocktest.Attach(t, g, a, "guest", readWrite, block.PermAll)
		release := hold(m)
		result := make(chan error)
		go func() { result <- guest.WriteAt(t.Context(), []byte{1}, 0, 0) }()
		synctest.Wait()
		tired := errors.New("shutting down")
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(tired)
		err := g.Change(t.Context(), func(tx *block.Tx) error { return tx.Drain(ctx, nil, a) })
		if block.KindOf(err) != block.KindShutdown || !errors.Is(err, tired) {
			t.Errorf("error %v", err)
		}
		if guest.Gate().Closed() {
			t.Error("the gate stayed closed")
		}
		release()
		must(t, <-result)
	})
}

// Every request of a backend passes the gate.
func TestBackendRequestsAreGated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, a, m := disk(t, blocktest.MemOptions{Size: mib}, block.Options{Discard: true})
		b := blocktest.Attach(t, g, a, "guest", readWrite, block.PermAll)
		ctx, cancel := context.WithCancel(t.Context())
		var results []chan error
		blocktest.Change(t, g, func(tx *block.Tx) error {
			must(t, tx.Drain(t.Context(), nil, a))
			for _, do := range []func() error{
				func() error { return b.ReadAt(ctx, make([]byte, 1), 0) },
				func() error { return b.WriteAt(ctx, make([]byte, 1), 0, 0) },
				func() error { return b.WriteZeroes(ctx, 0, 1, 0) },
				func() error { return b.Discard(ctx, 0, 512) },
				func() error { return b.Flush(ctx) },
				func() error { _, err := b.BlockStatus(ctx, 0, 1); return err },
			} {
				result := make(chan error, 1)
				results = append(results, result)
				go func() { result <- do() }()
			}
			synctest.Wait()
			if calls := m.Calls(); len(calls) > 0 {
				t.Errorf("%v went past a closed gate", calls)
			}
			cancel()
			for _, r := range results {
				if err := <-r; block.KindOf(err) != block.KindShutdown {
					t.Errorf("a parked request: %v", err)
				}
			}
			return nil
		})
		for _, err := range []error{b.ReadAt(bg, make([]byte, 1), 0), b.WriteAt(bg, make([]byte, 1), 0, 0), b.WriteZeroes(bg, 0, 1, 0),
			b.Discard(bg, 0, 512), b.Flush(bg)} {
			must(t, err)
		}
		if len(m.Calls()) != 5 || b.Gate().InFlight() != 0 {
			t.Errorf("calls %v, %d in flight", m.Calls(), b.Gate().InFlight())
		}
	})
}
