// SPDX-License-Identifier: Apache-2.0

package commit_test

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/blocktest"
	"github.com/blkmirror/blkmirror/job"
	"github.com/blkmirror/blkmirror/job/chain/chaintest"
	"github.com/blkmirror/blkmirror/job/commit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const kib = 1 << 10

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// stack is a base of 512 KiB full of ones, a longer layer with twos and a hole of zeroes, and a third with threes.
func stack(t *testing.T) *chaintest.Rig {
	r := chaintest.New(t, bytes.Repeat([]byte{1}, 512*kib))
	middle := r.AddOverlay(blocktest.OverlayOptions{Size: 1 << 20})
	must(t, middle.Node.WriteAt(chaintest.Ctx, bytes.Repeat([]byte{2}, 128*kib), 256*kib, 0))
	must(t, middle.Node.WriteZeroes(chaintest.Ctx, 64*kib, 64*kib, 0))
	top := r.AddOverlay(blocktest.OverlayOptions{})
	must(t, top.Node.WriteAt(chaintest.Ctx, bytes.Repeat([]byte{3}, 64*kib), 768*kib, 0))
	r.Attach()
	return r
}

func start(t testing.TB, r *chaintest.Rig, o commit.Options) *job.Job {
	t.Helper()
	o.JobID, o.AutoDismiss = "j", true
	if o.Device == nil {
		o.Device = r.Top()
	}
	var begin func()
	_, err := commit.Start(chaintest.Ctx, r.Graph, r.Jobs, o, func(f func()) { begin = f })
	must(t, err)
	j, err := r.Jobs.Find("j")
	must(t, err)
	begin()
	return j
}

func TestActive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := stack(t)
		j := start(t, r, commit.Options{AutoFinalize: true})
		synctest.Wait()
		if want := "created running ready READY 262144/262144"; r.Events.String() != want {
			t.Fatalf("%s, want %s", r.Events, want)
		}
		if i := j.Info(); i.Type != "commit" {
			t.Errorf("a job of type %s", i.Type)
		}
		must(t, r.Guest.WriteAt(chaintest.Ctx, []byte{9}, 777, 0))
		r.Model()[777] = 9
		must(t, j.Complete(nil))
		<-j.Done()
		synctest.Wait()
		must(t, j.Err())
		if r.Guest.Node() != r.Layers[0].Node || r.Layers[0].Node.Size() != 1<<20 {
			t.Errorf("the guest is on '%s' with %d bytes", r.Guest.Node().Name(), r.Guest.Size())
		}
		r.Check(0, 1<<20)
	})
}

// What no layer above the base has is not touched.
func TestBaseKeepsItsOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := chaintest.New(t, bytes.Repeat([]byte{1}, 256*kib))
		r.AddOverlay(blocktest.OverlayOptions{Cluster: 4 * kib})
		r.Attach()
		must(t, r.Guest.WriteAt(chaintest.Ctx, bytes.Repeat([]byte{2}, 4*kib), 68*kib, 0))
		copy(r.Model()[68*kib:], bytes.Repeat([]byte{2}, 4*kib))
		r.Layers[0].Mem.ResetCalls()
		j := start(t, r, commit.Options{AutoFinalize: true})
		synctest.Wait()
		must(t, j.Complete(nil))
		<-j.Done()
		if writes, n := r.Layers[0].Mem.Count(block.OpWrite); writes != 1 || n != 4*kib {
			t.Errorf("%d writes with %d bytes", writes, n)
		}
		r.Check(0, 256*kib)
	})
}

func TestLower(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := stack(t)
		top, middle, base := r.Layers[2], r.Layers[1], r.Layers[0]
		j := start(t, r, commit.Options{Top: middle.Node, AutoFinalize: true, FilterName: "f"})
		<-j.Done()
		synctest.Wait()
		must(t, j.Err())
		if want := "created running waiting pending COMPLETED 1048576/1048576 concluded null"; r.Events.String() != want {
			t.Errorf("%s, want %s", r.Events, want)
		}
		if top.Node.Backing() != base.Node || r.Guest.Node() != top.Node || len(r.Graph.Users(middle.Node)) != 0 {
			t.Error("the chain is not what it should be")
		}
		if name, format := top.Overlay.BackingFile(); name != "mem:" || format != "test" {
			t.Errorf("the image names %q, %q", name, format)
		}
		r.Check(0, 1<<20)
		if p := r.Read(base.Node); p[256*kib] != 2 || p[64*kib] != 0 || p[0] != 1 || p[900*kib] != 0 {
			t.Error("the base has not got what the layer had")
		}
	})
}

// The name in the overlay's image is the last step: without it, the chain stays.
func TestLowerFailsAtTheLastStep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := stack(t)
		must(t, r.Guest.WriteAt(chaintest.Ctx, []byte{4}, 1000, 0))
		r.Model()[1000] = 4
		r.Layers[2].Overlay.FailRename(os.ErrPermission)
		j := start(t, r, commit.Options{Top: r.Layers[1].Node, AutoFinalize: true})
		<-j.Done()
		synctest.Wait()
		if j.Err() == nil || r.Layers[2].Node.Backing() != r.Layers[1].Node || r.Guest.Node() != r.Top() {
			t.Errorf("%v; over %v", j.Err(), r.Layers[2].Node.Backing())
		}
		r.Check(0, 1<<20)
	})
}

func TestRefused(t *testing.T) {
	r := stack(t)
	other := r.Overlay("other", nil, blocktest.OverlayOptions{Size: 1 << 20})
	long := r.Overlay("long", r.Overlay("short", other.Node, blocktest.OverlayOptions{Size: 1 << 20}).Node,
		blocktest.OverlayOptions{Size: 512 * kib})
	name := "x"
	top, middle, base := r.Layers[2].Node, r.Layers[1].Node, r.Layers[0].Node
	for _, c := range []struct {
		o    commit.Options
		want string
	}{
		{commit.Options{Device: top, Base: other.Node}, "'other' is not in the backing chain of 'layer2'"},
		{commit.Options{Device: top, Top: other.Node}, "'other' is not in the backing chain of 'layer2'"},
		{commit.Options{Device: top, Top: base}, "Cannot commit 'base' into itself"},
		{commit.Options{Device: top, Top: middle, Base: middle}, "Cannot commit 'layer1' into itself"},
		{commit.Options{Device: top, Top: base, Base: middle}, "'layer1' is not a backing node of 'base'"},
		{commit.Options{Device: other.Node}, "'other' is not a backing node of 'other'"},
		{commit.Options{Device: top, BackingFile: &name}, "'backing-file' specified, but 'top' is the active layer"},
		{commit.Options{Device: long.Node}, "'other' with 1048576 bytes is longer than 'long' with 524288 bytes: users would see more of it afterwards; resize one of them first"},
		{commit.Options{Device: middle, Base: base}, "Need a root block node: 'layer1' is used by node 'layer2' (as its 'backing' child)"},
		{commit.Options{Device: top, Speed: -1}, "Parameter 'speed' expects a non-negative value"},
	} {
		c.o.JobID = "j"
		if _, err := commit.Start(chaintest.Ctx, r.Graph, r.Jobs, c.o, nil); err == nil || err.Error() != c.want {
			t.Errorf("%v, want %s", err, c.want)
		}
		if r.Guest.Node() != top || len(r.Jobs.Jobs()) != 0 {
			t.Error("something is left")
		}
	}
}

// Somebody who reads one of the lower disks would see a mixture.
func TestReaderOfLowerLayerConflicts(t *testing.T) {
	for i, name := range []string{"base", "layer1"} {
		r := stack(t)
		blocktest.Attach(t, r.Graph, r.Layers[i].Node, "reader", block.PermConsistentRead, block.PermAll)
		_, err := commit.Start(chaintest.Ctx, r.Graph, r.Jobs, commit.Options{JobID: "j", Device: r.Top()}, nil)
		if block.KindOf(err) != block.KindPermission || r.Guest.Node() != r.Top() {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A read-only base and overlay are writable for the job only.
func TestReadOnlyBase(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := stack(t)
		reopen := func(ctx context.Context, n *block.Node, readOnly bool) error {
			return r.Graph.Change(ctx, func(tx *block.Tx) error {
				return tx.Reopen(ctx, []block.Reopen{{Node: n, Options: block.Options{Discard: true, ReadOnly: readOnly}}})
			})
		}
		base := r.Layers[0].Node
		must(t, reopen(chaintest.Ctx, base, true))
		j := start(t, r, commit.Options{Top: r.Layers[1].Node, AutoFinalize: true, Reopen: reopen})
		<-j.Done()
		synctest.Wait()
		must(t, j.Err())
		if !base.Options().ReadOnly {
			t.Error("the base stays writable")
		}
		r.Check(0, 1<<20)
		j = start(t, r, commit.Options{AutoFinalize: true, Reopen: reopen})
		synctest.Wait()
		must(t, j.Complete(nil))
		<-j.Done()
		synctest.Wait()
		must(t, j.Err())
		if base.Options().ReadOnly || r.Guest.Node() != base {
			t.Error("the base cannot be written")
		}
		r.Check(0, 1<<20)
	})
}

// Guests write all the time, the operator pauses and cancels: the guest always reads what it wrote.
func TestRandom(t *testing.T) {
	seeds := 60
	if s := os.Getenv("CHAIN_SEEDS"); s != "" {
		seeds, _ = strconv.Atoi(s)
	}
	for seed := range uint64(seeds) {
		synctest.Test(t, func(t *testing.T) { random(t, seed) })
	}
}

func random(t *testing.T, seed uint64) {
	random := rand.New(rand.NewPCG(seed, 7))
	r := chaintest.Random(t, random)
	r.Attach()
	last := len(r.Layers) - 1
	top := 1 + random.IntN(last)
	if random.IntN(2) == 0 {
		top = last
	}
	base := random.IntN(top)
	if r.Layers[base].Node.Size() > r.Layers[top].Node.Size() {
		return
	}
	r.Slow(r.Layers, rand.New(rand.NewPCG(seed, 8)), 2*time.Millisecond)
	r.Guests(1+random.IntN(4), seed, 10*time.Millisecond)
	cancelled := random.IntN(3) == 0
	j := start(t, r, commit.Options{Top: r.Layers[top].Node, Base: r.Layers[base].Node, AutoFinalize: true,
		Speed: []int64{0, 0, 100 * kib, 10 << 20}[random.IntN(4)]})
	for range random.IntN(4) {
		time.Sleep(time.Duration(random.Int64N(int64(100 * time.Millisecond))))
		if j.Pause(nil) == nil {
			time.Sleep(time.Duration(random.Int64N(int64(20 * time.Millisecond))))
			_ = j.Resume(nil)
		}
	}
	if cancelled {
		time.Sleep(time.Duration(random.Int64N(int64(50 * time.Millisecond))))
		_ = j.Cancel(nil)
	}
	for tries := 0; !cancelled && top == last && tries < 10002 && j.Complete(nil) != nil; tries++ {
		switch time.Sleep(10 * time.Millisecond); {
		case tries == 100:
			_ = j.SetSpeed(0) // guests are faster than the copy
			r.Hurry()
		case tries > 10000:
			t.Errorf("seed %d: not ready: %+v; %s", seed, j.Info(), r.Events)
			_ = j.Cancel(nil)
		}
	}
	<-j.Done()
	synctest.Wait()
	time.Sleep(50 * time.Millisecond) // guests go on
	r.StopGuests()
	history := r.Events.String()
	ok := strings.Contains(history, "COMPLETED ")
	guest := r.Top()
	if ok && top == last {
		guest = r.Layers[base].Node
	}
	switch {
	case !ok && !cancelled, r.Guest.Node() != guest,
		ok && top < last && r.Layers[top+1].Node.Backing() != r.Layers[base].Node,
		!ok && r.Layers[top].Node.Backing() != r.Layers[top-1].Node:
		t.Errorf("the guest is on '%s'; %s", r.Guest.Node().Name(), history)
	}
	if t.Failed() {
		t.Fatalf("seed %d failed: top %d, base %d of %d", seed, top, base, len(r.Layers))
	}
}
