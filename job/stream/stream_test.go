// SPDX-License-Identifier: Apache-2.0

package stream_test

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/blocktest"
	"github.com/blkmirror/blkmirror/job"
	"github.com/blkmirror/blkmirror/job/chain/chaintest"
	"github.com/blkmirror/blkmirror/job/stream"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const kib = 1 << 10

// stack is a base of 1 MiB full of ones, a layer with twos from 256 KiB to 384 KiB and a hole of zeroes after it, and an empty one.
func stack(t *testing.T) *chaintest.Rig {
	r := chaintest.New(t, bytes.Repeat([]byte{1}, 1<<20))
	middle := r.AddOverlay(blocktest.OverlayOptions{})
	must(t, middle.Node.WriteAt(chaintest.Ctx, bytes.Repeat([]byte{2}, 128*kib), 256*kib, 0))
	must(t, middle.Node.WriteZeroes(chaintest.Ctx, 384*kib, 64*kib, 0))
	r.AddOverlay(blocktest.OverlayOptions{})
	r.Attach()
	return r
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func start(t testing.TB, r *chaintest.Rig, o stream.Options) *job.Job {
	t.Helper()
	o.JobID, o.AutoDismiss = "j", true
	if o.Device == nil {
		o.Device = r.Top()
	}
	var begin func()
	_, err := stream.Start(chaintest.Ctx, r.Graph, r.Jobs, o, func(f func()) { begin = f })
	must(t, err)
	j, err := r.Jobs.Find("j")
	must(t, err)
	begin()
	return j
}

func TestStreamAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := stack(t)
		top := r.Layers[2]
		j := start(t, r, stream.Options{AutoFinalize: true})
		<-j.Done()
		synctest.Wait()
		if want := "created running waiting pending COMPLETED 1048576/1048576 concluded null"; r.Events.String() != want {
			t.Errorf("%s, want %s", r.Events, want)
		}
		if top.Node.Backing() != nil || len(r.Graph.Users(r.Layers[1].Node)) != 0 {
			t.Error("the layers below are still there")
		}
		if r.Guest.Node() != top.Node {
			t.Error("the filter is still there")
		}
		r.Check(0, 1<<20)
		if name, format := top.Overlay.BackingFile(); name != "" || format != "" {
			t.Errorf("the image names %q, %q", name, format)
		}
		if top.Overlay.Allocated() != 15 {
			t.Errorf("%d clusters are allocated, and not all but the one that is zero", top.Overlay.Allocated())
		}
	})
}

func TestStreamDownToBase(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := stack(t)
		top := r.Layers[2]
		name := "other"
		j := start(t, r, stream.Options{Base: r.Layers[0].Node, AutoFinalize: true, BackingFile: &name})
		<-j.Done()
		synctest.Wait()
		must(t, j.Err())
		if top.Node.Backing() != r.Layers[0].Node || top.Overlay.Allocated() != 3 {
			t.Errorf("over %v, %d clusters", top.Node.Backing(), top.Overlay.Allocated())
		}
		if name, format := top.Overlay.BackingFile(); name != "other" || format != "test" {
			t.Errorf("the image names %q, %q", name, format)
		}
		r.Check(0, 1<<20)
	})
}

// Nothing is copied that base has, and a range beyond the end of a layer that goes does not show base's data afterwards.
func TestShortLayerHidesBase(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := chaintest.New(t, bytes.Repeat([]byte{1}, 256*kib))
		r.AddOverlay(blocktest.OverlayOptions{Size: 64 * kib})
		r.AddOverlay(blocktest.OverlayOptions{Size: 256 * kib})
		r.Attach()
		j := start(t, r, stream.Options{Base: r.Layers[0].Node, AutoFinalize: true})
		<-j.Done()
		synctest.Wait()
		must(t, j.Err())
		r.Check(0, 256*kib)
		if reads, _ := r.Layers[0].Mem.Count(block.OpRead); reads > 2 { // the model, and the check
			t.Errorf("%d reads of the base", reads)
		}
	})
}

func TestRefused(t *testing.T) {
	r := stack(t)
	other := r.Overlay("other", nil, blocktest.OverlayOptions{Size: 1 << 20})
	blocktest.Change(t, r.Graph, func(tx *block.Tx) error { tx.Block(r.Layers[1].Node, "test"); return nil })
	for _, c := range []struct {
		o    stream.Options
		want string
	}{
		{stream.Options{Device: r.Top(), Base: other.Node}, "'other' is not in the backing chain of 'layer2'"},
		{stream.Options{Device: r.Top(), Base: r.Top()}, "Cannot stream 'layer2' into itself"},
		{stream.Options{Device: r.Top(), Speed: -1}, "Parameter 'speed' expects a non-negative value"},
		{stream.Options{Device: r.Top()}, "Node 'layer1' is busy: test"},
	} {
		c.o.JobID = "j"
		if _, err := stream.Start(chaintest.Ctx, r.Graph, r.Jobs, c.o, nil); err == nil || err.Error() != c.want {
			t.Errorf("%v, want %s", err, c.want)
		}
		if r.Guest.Node() != r.Top() || len(r.Jobs.Jobs()) != 0 {
			t.Error("something is left")
		}
	}
}

func TestPolicies(t *testing.T) {
	for _, c := range []struct {
		policy job.Policy
		want   string
	}{
		{job.PolicyReport, "created running ERROR(true,report) aborting COMPLETED(Input/output error) concluded null"},
		{job.PolicyIgnore, "created running ERROR(true,ignore) waiting pending COMPLETED 1048576/1048576 concluded null"},
		{job.PolicyStop, "created running ERROR(true,stop) paused running waiting pending COMPLETED 1048576/1048576 concluded null"},
	} {
		synctest.Test(t, func(t *testing.T) {
			r := stack(t)
			r.Slow(r.Layers[:1], rand.New(rand.NewPCG(1, 1)), time.Millisecond)
			r.Faults(1)
			j := start(t, r, stream.Options{OnError: c.policy, AutoFinalize: true})
			time.Sleep(10 * time.Millisecond)
			r.Faults(0)
			if c.policy == job.PolicyStop {
				if i := j.Info(); i.IOStatus != job.IOFailed {
					t.Errorf("io-status %s", i.IOStatus)
				}
				must(t, j.Resume(nil))
			}
			<-j.Done()
			synctest.Wait()
			if r.Events.String() != c.want {
				t.Errorf("%s, want %s", r.Events, c.want)
			}
			r.Check(0, 1<<20)
		})
	}
}

func TestSpeed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := stack(t)
		began := time.Now()
		j := start(t, r, stream.Options{Speed: 256 * kib, AutoFinalize: true})
		time.Sleep(time.Second)
		if i := j.Info(); i.Current < 192*kib || i.Current > 400*kib {
			t.Errorf("%d bytes after a second", i.Current)
		}
		<-j.Done()
		if took := time.Since(began); took < 3*time.Second || took > 4*time.Second {
			t.Errorf("960 KiB took %v", took)
		}
	})
}

func TestManualFinalize(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := stack(t)
		j := start(t, r, stream.Options{})
		synctest.Wait()
		if want := "created running waiting pending PENDING"; r.Events.String() != want {
			t.Fatalf("%s, want %s", r.Events, want)
		}
		must(t, r.Guest.WriteAt(chaintest.Ctx, []byte{9}, 77, 0))
		r.Model()[77] = 9
		must(t, j.Finalize(nil))
		<-j.Done()
		synctest.Wait()
		must(t, j.Err())
		r.Check(0, 1<<20)
		if r.Top().Backing() != nil {
			t.Error("the layers below are still there")
		}
	})
}

// Pieces are copied beside each other, and in spite of that no more passes than the speed allows.
func TestPiecesBesideEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := chaintest.New(t, bytes.Repeat([]byte{1}, 8<<20))
		r.AddOverlay(blocktest.OverlayOptions{})
		r.Attach()
		var now, most atomic.Int32
		r.Layers[0].Mem.SetHook(func(_ context.Context, c blocktest.Call) error {
			if c.Op == block.OpRead {
				n := now.Add(1)
				for old := most.Load(); n > old && !most.CompareAndSwap(old, n); {
					old = most.Load()
				}
				time.Sleep(100 * time.Millisecond)
				now.Add(-1)
			}
			return nil
		})
		began := time.Now()
		j := start(t, r, stream.Options{AutoFinalize: true})
		<-j.Done()
		synctest.Wait()
		must(t, j.Err())
		if took := time.Since(began); most.Load() < 4 || took > 700*time.Millisecond {
			t.Errorf("%d pieces at most, %v", most.Load(), took)
		}
	})
}

// Whoever holds the graph, or drains the device, does not keep the job from being paused, and not from being cancelled.
func TestPauseAtTheGate(t *testing.T) {
	for _, cancel := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			r := stack(t)
			r.Slow(r.Layers, rand.New(rand.NewPCG(1, 1)), 10*time.Millisecond)
			j := start(t, r, stream.Options{AutoFinalize: true, Speed: 256 * kib})
			time.Sleep(time.Second)
			release := make(chan struct{})
			go func() {
				_ = r.Graph.Change(chaintest.Ctx, func(tx *block.Tx) error {
					err := tx.Drain(chaintest.Ctx, nil, r.Guest.Node())
					<-release
					return err
				})
			}()
			time.Sleep(time.Second)
			must(t, j.Pause(nil))
			time.Sleep(time.Second)
			if i := j.Info(); i.Status != job.Paused || i.Busy {
				t.Errorf("the job is %s", i.Status)
			}
			if cancel {
				must(t, j.Cancel(nil))
			} else {
				must(t, j.Resume(nil))
			}
			time.Sleep(time.Second)
			close(release)
			<-j.Done()
			synctest.Wait()
			if !cancel {
				must(t, j.Err())
			}
			r.Check(0, 1<<20)
		})
	}
}

// TestSchedules streams beside guests, trouble and an operator. After a stream that did not come to its end another one does.
func TestSchedules(t *testing.T) {
	chaintest.Schedules(t, 120, func(s *chaintest.Schedule, random *rand.Rand) {
		device := len(s.Layers) - 1
		if random.IntN(2) == 0 {
			device = 1 + random.IntN(device)
		}
		o := stream.Options{Device: s.Layers[device].Node, AutoFinalize: random.IntN(2) == 0, Speed: []int64{0, 0, 100 * kib, 10 << 20}[random.IntN(4)],
			OnError: []job.Policy{job.PolicyReport, job.PolicyIgnore, job.PolicyStop, job.PolicyENOSPC}[random.IntN(4)]}
		base := random.IntN(device+1) - 1
		var below *block.Node
		if base >= 0 {
			below = s.Layers[base].Node
			o.Base = below
		}
		if random.IntN(10) == 0 {
			s.Layers[device].Overlay.FailRename(os.ErrPermission)
		}
		judge := func(ok bool) {
			want := s.Layers[device-1].Node
			if ok {
				want = below
			}
			if got := s.Layers[device].Node.Backing(); got != want || s.Guest.Node() != s.Top() {
				t.Errorf("ok %v: it stands on %v, the guest on '%s'", ok, got, s.Guest.Node().Name())
			}
		}
		ok := s.Run(random, func() (*job.Job, error) { return start(t, s.Rig, o), nil })
		s.Judge(ok, false)
		judge(ok)
		if ok || t.Failed() {
			return
		}
		s.Layers[device].Overlay.FailRename(nil)
		o.AutoFinalize, o.Speed = true, 0
		j := start(t, s.Rig, o)
		<-j.Done()
		must(t, j.Err())
		judge(true)
		s.LookAll()
	})
}
