// SPDX-License-Identifier: Apache-2.0

package verify_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/blocktest"
	"github.com/blkmirror/blkmirror/job"
	"github.com/blkmirror/blkmirror/job/chain/chaintest"
	"github.com/blkmirror/blkmirror/job/verify"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const mib = 1 << 20

var bg = context.Background()

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// pair is two disks.
type pair struct {
	t      *testing.T
	graph  *block.Graph
	jobs   *job.Registry
	events chaintest.Recorder
	disks  [2]*blocktest.Mem
	nodes  [2]*block.Node
	told   []verify.State
}

func newPair(t *testing.T, a, b []byte) *pair {
	p := &pair{t: t, graph: block.NewGraph()}
	p.jobs = job.NewRegistry(&p.events)
	for i, content := range [][]byte{a, b} {
		p.disks[i] = blocktest.NewMemOf(content, blocktest.MemOptions{})
		p.nodes[i] = blocktest.NewNode(t, p.graph, []string{"a", "b"}[i], p.disks[i], block.Options{})
	}
	return p
}

func (p *pair) try(o verify.Options, after job.After) (*verify.Verify, error) {
	o.JobID, o.Device, o.Target, o.AutoFinalize, o.AutoDismiss = "j", p.nodes[0], p.nodes[1], true, true
	o.OnEnd = func(s verify.State) { p.told = append(p.told, s) }
	return verify.Start(bg, p.graph, p.jobs, o, after)
}

func (p *pair) start(o verify.Options) (*verify.Verify, *job.Job) {
	p.t.Helper()
	var begin func()
	v, err := p.try(o, func(f func()) { begin = f })
	must(p.t, err)
	for _, j := range p.jobs.Jobs() {
		begin() // it may be over at once, and nowhere to be found
		return v, j
	}
	p.t.Fatal("no job")
	return nil, nil
}

// content is data with holes.
func content(size int64) []byte {
	b := make([]byte, size)
	r := rand.New(rand.NewPCG(1, 2))
	for at := int64(0); at < size; at += 300000 {
		for i := at; i < min(at+100000, size); i++ {
			b[i] = byte(r.Uint32()) | 1
		}
	}
	return b
}

func TestCompare(t *testing.T) {
	const size = 5*mib + 1536
	cases := map[string]struct {
		at    []int64 // bytes that differ
		first int64
		n     int64
		words []string
	}{
		"equal":            {},
		"the first byte":   {at: []int64{0}, n: 512, words: []string{"'a'", "'b'", "offset 0 ", "512 bytes"}},
		"a hole":           {at: []int64{200000}, first: 199680, n: 512, words: []string{"offset 199680 "}},
		"the last bytes":   {at: []int64{size - 1}, first: size - 512, n: 512, words: []string{"512 bytes"}},
		"several":          {at: []int64{4 * mib, 100, 90, 3*mib + 1}, n: 3 * 512, words: []string{"offset 0 ", "1536 bytes"}},
		"across the piece": {at: []int64{mib - 1, mib}, first: mib - 512, n: 1024},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := content(size)
				b := bytes.Clone(a)
				for _, at := range c.at {
					b[at] ^= 0x40
				}
				p := newPair(t, a, b)
				v, j := p.start(verify.Options{})
				<-j.Done()
				synctest.Wait()
				want := verify.State{Verified: size - c.n, Differing: c.n, First: c.first}
				if s := v.State(); s != want || len(p.told) != 1 || p.told[0] != want {
					t.Errorf("found %+v, told %+v, want %+v", s, p.told, want)
				}
				if err := j.Err(); (err != nil) != (c.n > 0) {
					t.Errorf("the job ended with %v", err)
				}
				for _, w := range c.words {
					if !strings.Contains(j.Err().Error(), w) {
						t.Errorf("error %q does not say %q", j.Err(), w)
					}
				}
				if i := j.Info(); i.Current != size || i.Total != size {
					t.Errorf("progress %d of %d", i.Current, i.Total)
				}
				if users := append(p.graph.Users(p.nodes[0]), p.graph.Users(p.nodes[1])...); len(users) > 0 {
					t.Errorf("the disks are still used by %v", users)
				}
			})
		})
	}
}

// A gigabyte of holes is not read.
func TestHolesAreCheap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &pair{t: t, graph: block.NewGraph()}
		p.jobs = job.NewRegistry(&p.events)
		for i := range p.disks {
			p.disks[i] = blocktest.NewMem(blocktest.MemOptions{Size: 1 << 30})
			must(t, p.disks[i].WriteAt(bg, []byte("data"), 1<<29+5, 0))
			p.nodes[i] = blocktest.NewNode(t, p.graph, []string{"a", "b"}[i], p.disks[i], block.Options{})
			p.disks[i].ResetCalls()
		}
		_, j := p.start(verify.Options{})
		<-j.Done()
		must(t, j.Err())
		if n := len(p.disks[0].Calls()) + len(p.disks[1].Calls()); n > 10 {
			t.Errorf("%d requests for two holes and a piece of data", n)
		}
	})
}

// Digests are those of the content, whoever says that it is zero, and differ where the disks do.
func TestDigests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := content(3*mib + 512)
		clear(a[mib : 2*mib])
		p := newPair(t, a, a)
		must(t, p.disks[1].WriteAt(bg, make([]byte, mib/2), mib, 0)) // written zeroes in place of a hole
		digests := func() [2]string {
			_, j := p.start(verify.Options{Digest: true})
			<-j.Done()
			synctest.Wait()
			return p.told[len(p.told)-1].Digests
		}
		first := digests()
		if len(first[0]) != 64 || first[0] != first[1] {
			t.Errorf("equal disks have %v", first)
		}
		must(t, p.disks[1].WriteAt(bg, []byte{a[77] ^ 1}, 77, 0))
		if now := digests(); now[0] != first[0] || now[1] == first[0] {
			t.Errorf("different disks have %v", now)
		}
	})
}

func TestRefused(t *testing.T) {
	p := newPair(t, content(mib), content(mib))
	guest := blocktest.Attach(t, p.graph, p.nodes[1], "export 'e'", block.PermConsistentRead|block.PermWrite, block.PermAll)
	expect := func(what string, err error, words ...string) {
		t.Helper()
		if err == nil {
			t.Fatalf("%s was not refused", what)
		}
		for _, w := range words {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%s: error %q does not name %q", what, err, w)
			}
		}
	}
	_, err := p.try(verify.Options{}, nil)
	expect("a disk that somebody may write to", err, "'b'", "export 'e'", "block job 'j'")
	if len(p.jobs.Jobs()) != 0 || len(p.graph.Users(p.nodes[0])) != 0 {
		t.Error("something was left")
	}
	blocktest.Detach(t, p.graph, guest)
	p.nodes[0] = p.nodes[1]
	_, err = p.try(verify.Options{}, nil)
	expect("a disk and itself", err, "itself")
	p.nodes[0] = blocktest.NewNode(t, p.graph, "short", blocktest.NewMem(blocktest.MemOptions{Size: mib - 512}), block.Options{})
	_, err = p.try(verify.Options{}, nil)
	expect("different sizes", err, "'short'", "1048064", "'b'", "1048576")
}

// Nobody begins to write to the disks while they are compared; pause, speed and cancel are heeded, also while the disks are drained.
func TestSteered(t *testing.T) {
	for _, cancel := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			p := newPair(t, bytes.Repeat([]byte{7}, 8*mib), bytes.Repeat([]byte{7}, 8*mib))
			v, j := p.start(verify.Options{Speed: mib})
			time.Sleep(2500 * time.Millisecond)
			if s := v.State(); s.Verified < 2*mib || s.Verified > 4*mib {
				t.Errorf("after 2.5 s at 1 MiB/s: %+v", s)
			}
			err := p.graph.Change(bg, func(tx *block.Tx) error {
				_, err := tx.Attach(p.nodes[0], "late", block.PermWrite, block.PermAll)
				return err
			})
			if err == nil || !strings.Contains(err.Error(), "block job 'j'") {
				t.Errorf("a writer was let in beside the job: %v", err)
			}
			must(t, j.Pause(nil))
			time.Sleep(time.Second)
			before := v.State()
			time.Sleep(time.Minute)
			if s := v.State(); s != before || j.Info().Status != job.Paused {
				t.Errorf("while the job is paused: %+v after %+v, %v", s, before, j.Info().Status)
			}
			must(t, j.Resume(nil))
			must(t, j.SetSpeed(0))
			blocktest.Change(t, p.graph, func(tx *block.Tx) error {
				must(t, tx.Drain(bg, nil, p.nodes[0], p.nodes[1]))
				if cancel {
					must(t, j.Cancel(nil))
				} else {
					must(t, j.Pause(nil))
				}
				synctest.Wait()
				if s := j.Info().Status; !cancel && s != job.Paused {
					t.Errorf("the job is %v", s)
				}
				return nil
			})
			if !cancel {
				must(t, j.Resume(nil))
			}
			<-j.Done()
			synctest.Wait()
			if err := j.Err(); cancel != errors.Is(err, job.ErrCancelled) || len(p.told) == 1 == cancel {
				t.Errorf("the job ended with %v, and told %+v", err, p.told)
			}
		})
	}
}

func TestFailedReads(t *testing.T) {
	for i, name := range []string{"a", "b"} {
		for policy, want := range map[job.Policy]string{job.PolicyReport: "fails", job.PolicyIgnore: "goes on", job.PolicyStop: "stops"} {
			t.Run(name+"/"+want, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					p := newPair(t, content(3*mib), content(3*mib))
					failing := 3
					p.disks[i].SetHook(func(_ context.Context, c blocktest.Call) error {
						if c.Op == block.OpRead && c.Off == mib && failing > 0 {
							failing--
							return syscall.EIO
						}
						return nil
					})
					o := verify.Options{OnSourceError: policy, OnTargetError: job.PolicyReport}
					if i == 1 {
						o = verify.Options{OnTargetError: policy, OnSourceError: job.PolicyReport}
					}
					_, j := p.start(o)
					for policy == job.PolicyStop {
						synctest.Wait()
						if j.Info().Status != job.Paused {
							break
						}
						must(t, j.Resume(nil))
					}
					<-j.Done()
					if err := j.Err(); (err != nil) != (policy == job.PolicyReport) {
						t.Errorf("the job ended with %v", err)
					}
					if left := failing; left > 0 != (policy == job.PolicyReport) {
						t.Errorf("%d failures left", left)
					}
				})
			})
		}
	}
}
