// SPDX-License-Identifier: Apache-2.0

package commit_test

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
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

// TestSchedules commits the active layer and lower ones beside guests, trouble and an operator. After a commit that did not come to
// its end another one does.
func TestSchedules(t *testing.T) {
	chaintest.Schedules(t, 120, func(s *chaintest.Schedule, random *rand.Rand) {
		last := len(s.Layers) - 1
		top := last
		if random.IntN(2) == 0 {
			top = 1 + random.IntN(last)
		}
		base := random.IntN(top)
		if s.Layers[base].Node.Size() > s.Layers[top].Node.Size() {
			return
		}
		o := commit.Options{Top: s.Layers[top].Node, Base: s.Layers[base].Node, AutoFinalize: random.IntN(2) == 0,
			Speed:   []int64{0, 0, 100 * kib, 10 << 20}[random.IntN(4)],
			OnError: []job.Policy{job.PolicyReport, job.PolicyIgnore, job.PolicyStop, job.PolicyENOSPC}[random.IntN(4)]}
		if top < last && random.IntN(10) == 0 {
			s.Layers[top+1].Overlay.FailRename(os.ErrPermission)
		}
		soft := false
		judge := func(ok bool) {
			guest, over, below := s.Top(), s.Layers[top].Node, s.Layers[top-1].Node
			switch {
			case !ok:
			case top == last && !soft:
				guest = s.Layers[base].Node
			case top < last:
				over, below = s.Layers[top+1].Node, s.Layers[base].Node
			}
			if s.Guest.Node() != guest || over.Backing() != below {
				t.Errorf("ok %v: the guest is on '%s'; '%s' stands on %v", ok, s.Guest.Node().Name(), over.Name(), over.Backing())
			}
		}
		ok := s.Run(random, func() (*job.Job, error) { return start(t, s.Rig, o), nil })
		s.Judge(ok, true)
		soft = ok && top == last && s.Guest.Node() == s.Top() // cancelled when it was ready
		judge(ok)
		if ok && !soft || t.Failed() {
			return
		}
		if top < last {
			s.Layers[top+1].Overlay.FailRename(nil)
		}
		soft = false
		o.AutoFinalize, o.Speed = true, 0
		j := start(t, s.Rig, o)
		if top == last {
			for j.Complete(nil) != nil {
				time.Sleep(time.Millisecond)
			}
		}
		<-j.Done()
		must(t, j.Err())
		judge(true)
		s.LookAll()
	})
}
