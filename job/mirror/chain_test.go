// SPDX-License-Identifier: Apache-2.0

package mirror_test

import (
	"bytes"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/blocktest"
	"github.com/blkmirror/blkmirror/job"
	"github.com/blkmirror/blkmirror/job/chain/chaintest"
	"github.com/blkmirror/blkmirror/job/mirror"
)

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// mirrored is the chain of the figures that are held: a base with data at 0–2 MiB and 8–9 MiB, an overlay with data at 1–2 MiB and
// 16–18 MiB and zeroes at 8–8.5 MiB.
func mirrored(t *testing.T) *chaintest.Rig {
	r := chaintest.New(t, nil)
	r.Layers[0] = r.Overlay("lower", nil, blocktest.OverlayOptions{Size: 64 << 20})
	write := func(n *block.Node, value byte, from, end int64) {
		ok(t, n.WriteAt(chaintest.Ctx, bytes.Repeat([]byte{value}, int(end-from)), from, 0))
	}
	write(r.Top(), 1, 0, 2<<20)
	write(r.Top(), 1, 8<<20, 9<<20)
	r.AddOverlay(blocktest.OverlayOptions{})
	write(r.Top(), 2, 1<<20, 2<<20)
	write(r.Top(), 2, 16<<20, 18<<20)
	ok(t, r.Top().WriteZeroes(chaintest.Ctx, 8<<20, 512<<10, 0))
	r.Attach()
	return r
}

func startMirror(t testing.TB, r *chaintest.Rig, o mirror.Options) *job.Job {
	t.Helper()
	o.JobID, o.Source, o.AutoFinalize, o.AutoDismiss = "j", r.Top(), true, true
	var begin func()
	_, err := mirror.Start(chaintest.Ctx, r.Graph, r.Jobs, o, func(f func()) { begin = f })
	ok(t, err)
	j, err := r.Jobs.Find("j")
	ok(t, err)
	begin()
	return j
}

func TestWhatOfAChainIsCopied(t *testing.T) {
	for _, c := range []struct {
		sync   mirror.Sync
		shares bool // the target stands on the same base
		len    string
		reads  int64 // bytes of the base
	}{
		{mirror.SyncTop, false, "3670016/3670016", 0}, {mirror.SyncTop, true, "3670016/3670016", 0},
		{mirror.SyncFull, false, "5242880/5242880", 1<<20 + 512<<10}, {mirror.SyncNone, false, "0/0", 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			r := mirrored(t)
			var below *block.Node
			if c.shares {
				below = r.Layers[0].Node
			}
			target := r.Overlay("target", below, blocktest.OverlayOptions{Size: 64 << 20})
			r.Layers[0].Mem.ResetCalls()
			j := startMirror(t, r, mirror.Options{Target: target.Node, Sync: c.sync})
			synctest.Wait()
			if want := "created running ready READY " + c.len; r.Events.String() != want {
				t.Errorf("%s, want %s", r.Events, want)
			}
			if _, n := r.Layers[0].Mem.Count(block.OpRead); n != c.reads {
				t.Errorf("%d bytes of the base were read, want %d", n, c.reads)
			}
			if !c.shares && c.sync == mirror.SyncTop {
				blocktest.Change(t, r.Graph, func(tx *block.Tx) error { return tx.SetChild(target.Node, "backing", r.Layers[0].Node) })
			}
			if c.sync != mirror.SyncNone {
				ok(t, j.Complete(nil))
				<-j.Done()
				r.Check(0, 64<<20)
				return
			}
			ok(t, j.Cancel(nil))
			<-j.Done()
		})
	}
}

// A target that stands on data does not read as zero, so a source's zeroes must come to it.
func TestTargetOnData(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := mirrored(t)
		ones := r.Overlay("ones", nil, blocktest.OverlayOptions{Size: 64 << 20})
		ok(t, ones.Node.WriteAt(chaintest.Ctx, bytes.Repeat([]byte{7}, 4<<20), 40<<20, 0))
		target := r.Overlay("target", ones.Node, blocktest.OverlayOptions{})
		j := startMirror(t, r, mirror.Options{Target: target.Node, Sync: mirror.SyncFull})
		synctest.Wait()
		ok(t, j.Complete(nil))
		<-j.Done()
		r.Check(0, 64<<20)
	})
}

// A target without its backing node is given it when the copy is ready: nothing of what that has may be hidden, though guests
// write parts of clusters, in both modes, and though its clusters may be longer than a chunk.
func TestTargetIsGivenItsBackingLater(t *testing.T) {
	seeds := 60
	if s := os.Getenv("CHAIN_SEEDS"); s != "" {
		seeds, _ = strconv.Atoi(s)
	}
	for seed := range uint64(seeds) {
		synctest.Test(t, func(t *testing.T) { backingLater(t, seed) })
	}
}

func backingLater(t *testing.T, seed uint64) {
	random := rand.New(rand.NewPCG(seed, 7))
	r := chaintest.Random(t, random)
	r.Attach()
	before := bytes.Clone(r.Model())
	cluster := int64(512 << random.IntN(12))
	target := r.Overlay("target", nil, blocktest.OverlayOptions{Size: r.Top().Size(), Cluster: cluster})
	o := mirror.Options{Target: target.Node, Sync: mirror.SyncTop, Mode: mirror.Mode(random.IntN(2)),
		Granularity: []int64{0, 512, 4096, 1 << 20}[random.IntN(4)], BufSize: []int64{0, 1, 100 << 10}[random.IntN(3)]}
	below := r.Top().Backing()
	if random.IntN(2) == 0 {
		o.Sync = mirror.SyncNone
		below = blocktest.NewNode(t, r.Graph, "before", blocktest.NewMemOf(before, blocktest.MemOptions{}), block.Options{})
	}
	r.Slow(append(r.Layers, target), rand.New(rand.NewPCG(seed, 8)), 2*time.Millisecond)
	r.Guests(1+random.IntN(4), seed, 10*time.Millisecond)
	j := startMirror(t, r, o)
	for tries := 0; !j.IsReady(); tries++ {
		if time.Sleep(10 * time.Millisecond); tries == 100 {
			r.Hurry()
		} else if tries > 10000 {
			t.Fatalf("seed %d: not ready; %s", seed, r.Events)
		}
	}
	time.Sleep(time.Duration(random.Int64N(int64(time.Second))))
	blocktest.Change(t, r.Graph, func(tx *block.Tx) error {
		if err := tx.Drain(chaintest.Ctx, nil, target.Node, r.Top()); err != nil {
			return err
		}
		return tx.SetChild(target.Node, "backing", below)
	})
	time.Sleep(time.Duration(random.Int64N(int64(time.Second))))
	ok(t, j.Complete(nil))
	<-j.Done()
	time.Sleep(time.Duration(random.Int64N(int64(time.Second))))
	r.StopGuests()
	if err := j.Err(); err != nil || r.Guest.Node() != target.Node {
		t.Errorf("%v; the guest is on '%s'", err, r.Guest.Node().Name())
	}
	if t.Failed() {
		t.Fatalf("seed %d failed: cluster %d, %+v", seed, cluster, o)
	}
}
