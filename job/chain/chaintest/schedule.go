// SPDX-License-Identifier: Apache-2.0

package chaintest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/blocktest"
	"github.com/blkmirror/blkmirror/job"
)

// Schedule is a job on a chain, beside guests that write, disks that fail and stall, and an operator who does what comes to mind, all
// at random and in virtual time. Guests expect errors; what they read must be right all the same.
type Schedule struct {
	*Rig
	Seed  uint64
	Count *Tally

	faulty  bool
	calm    atomic.Bool // no more trouble
	trouble atomic.Pointer[trouble]
	allowed [][]byte // for each sector, what may be in it: more than one value after a write that failed
}

// Tally counts what schedules came to, so that one can see that they reach what they are to test.
type Tally struct {
	Completed, Failed, Cancelled, Ready, Paused, Reports, Errors, Requests atomic.Int64
}

func (c *Tally) String() string {
	return fmt.Sprintf("%d completed, %d failed, %d cancelled, %d ready, %d pauses, %d failed requests of jobs and %d of %d of guests",
		c.Completed.Load(), c.Failed.Load(), c.Cancelled.Load(), c.Ready.Load(), c.Paused.Load(), c.Reports.Load(), c.Errors.Load(),
		c.Requests.Load())
}

// trouble is what the disks do to requests for some time.
type trouble struct {
	one    uint64 // one in so many requests fails
	layers uint64 // a bit for each that does
	errs   []error
	stalls bool
	ops    []block.Op
}

// Schedules runs so many schedules, or as many as CHAIN_SEEDS says, from a seed that is told, or that CHAIN_SEED says.
func Schedules(t *testing.T, many int, run func(s *Schedule, random *rand.Rand)) {
	first := uint64(time.Now().UnixNano()) & 0xffffffff
	if v := os.Getenv("CHAIN_SEEDS"); v != "" {
		many, _ = strconv.Atoi(v)
	}
	if v := os.Getenv("CHAIN_SEED"); v != "" {
		first, _ = strconv.ParseUint(v, 10, 64)
	}
	t.Logf("seeds from %d", first)
	count := new(Tally)
	for i := range uint64(many) {
		synctest.Test(t, func(t *testing.T) {
			random := rand.New(rand.NewPCG(first+i, 7))
			s := &Schedule{Rig: Random(t, random), Seed: first + i, Count: count, faulty: random.IntN(4) > 0}
			s.Attach()
			for _, b := range eachSector(s.model) {
				s.allowed = append(s.allowed, []byte{b})
			}
			s.disturb()
			run(s, random)
			if t.Failed() {
				t.Fatalf("seed %d failed (CHAIN_SEED=%d CHAIN_SEEDS=1): %s", s.Seed, s.Seed, s.Events)
			}
		})
		if t.Failed() {
			return
		}
	}
	t.Logf("%d schedules: %v", many, count)
}

func eachSector(p []byte) (values []byte) {
	for at := 0; at < len(p); at += 512 {
		values = append(values, p[at])
	}
	return values
}

// disturb has requests to all disks take time, and fail and stall when there is trouble.
func (s *Schedule) disturb() {
	var mu sync.Mutex
	random := rand.New(rand.NewPCG(s.Seed, 8))
	s.delay.Store(int64(2 * time.Millisecond))
	for i, l := range s.Layers {
		hook := func(before bool) blocktest.Hook {
			return func(ctx context.Context, c blocktest.Call) error {
				mu.Lock()
				wait, draw, which := random.Int64N(max(s.delay.Load(), 1)), random.Uint64(), random.Int()
				mu.Unlock()
				if before {
					time.Sleep(time.Duration(wait))
				}
				t := s.trouble.Load()
				switch {
				case t == nil || t.layers>>i&1 == 0 || draw%t.one != 0 || !slices.Contains(t.ops, c.Op) || !before && c.Op == block.OpResize:
					return nil
				case before && t.stalls && which%3 == 0:
					return stall(ctx, time.Duration(which%5000)*time.Millisecond)
				case before != (which%4 > 0):
					return nil
				}
				return t.errs[which%len(t.errs)]
			}
		}
		l.Mem.SetHook(hook(true))
		l.Mem.SetAfterHook(hook(false))
	}
}

func stall(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// makeTrouble lets trouble come and go until the job is done.
func (s *Schedule) makeTrouble(random *rand.Rand, done <-chan struct{}) {
	every := []block.Op{block.OpRead, block.OpWrite, block.OpZero, block.OpTrim, block.OpFlush, block.OpStatus}
	for s.faulty && !s.calm.Load() {
		select {
		case <-done:
			s.trouble.Store(nil)
			return
		case <-time.After(time.Duration(random.Int64N(int64(100 * time.Millisecond)))):
		}
		if random.IntN(2) == 0 {
			s.trouble.Store(nil)
			continue
		}
		t := &trouble{one: 1 + random.Uint64N(20), layers: random.Uint64(), ops: every, stalls: random.IntN(3) == 0,
			errs: [][]error{{syscall.EIO}, {syscall.ENOSPC}, {syscall.EIO, syscall.ENOSPC}}[random.IntN(3)]}
		if random.IntN(2) == 0 {
			t.ops = []block.Op{every[random.IntN(len(every))]}
		}
		s.trouble.Store(t)
	}
	s.trouble.Store(nil)
}

// Run starts guests, trouble and the operator beside a job that start starts, and waits for its end. It says whether the job came to a
// good end.
func (s *Schedule) Run(random *rand.Rand, start func() (*job.Job, error)) (ok bool) {
	var wait sync.WaitGroup
	many := 1 + random.IntN(4)
	sectors := int64(len(s.allowed))
	stop := make(chan struct{})
	for i := range int64(many) {
		from, end := sectors*i/int64(many), sectors*(i+1)/int64(many)
		own := rand.New(rand.NewPCG(s.Seed, 100+uint64(i)))
		wait.Go(func() {
			for from < end {
				select {
				case <-stop:
					return
				case <-time.After(time.Duration(own.Int64N(int64(10 * time.Millisecond)))):
				}
				s.request(own, from, end)
			}
		})
	}
	j, err := start()
	if err == nil {
		gone := make(chan struct{})
		wait.Go(func() { s.makeTrouble(rand.New(rand.NewPCG(s.Seed, 9)), gone) })
		s.operate(random, j)
		<-j.Done()
		close(gone)
		ok = j.Err() == nil
	} else {
		s.T.Errorf("it does not start: %v", err)
	}
	time.Sleep(time.Duration(random.Int64N(int64(50 * time.Millisecond)))) // guests go on
	close(stop)
	wait.Wait()
	s.trouble.Store(nil)
	s.faulty = false
	s.LookAll()
	return ok
}

// request is one request of a guest to a range of sectors.
func (s *Schedule) request(random *rand.Rand, from, end int64) {
	s.Count.Requests.Add(1)
	n := 1 + random.Int64N(min(300, end-from))
	if random.IntN(3) == 0 {
		n = min(n, 1+random.Int64N(4))
	}
	off := 512 * (from + random.Int64N(end-from-n+1))
	n *= 512
	flags := block.Flags(random.IntN(8)/7) * block.FUA
	value := byte(0)
	var err error
	switch kind := random.IntN(10); {
	case kind < 4:
		value = byte(1 + random.IntN(255))
		err = s.Guest.WriteAt(Ctx, bytes.Repeat([]byte{value}, int(n)), off, flags)
	case kind < 6:
		err = s.Guest.WriteZeroes(Ctx, off, n, flags|block.Flags(random.IntN(2))*block.MayUnmap)
	case kind < 7:
		if err = s.Guest.Discard(Ctx, off, n); err == nil {
			err = errors.New("whether it did something is not known")
		}
	case kind < 8:
		if s.Guest.Flush(Ctx) != nil {
			s.Count.Errors.Add(1)
		}
		return
	default:
		s.look(off, n)
		return
	}
	for at := off / 512; at < (off+n)/512; at++ {
		if err == nil {
			s.allowed[at] = s.allowed[at][:0]
		}
		s.allowed[at] = append(s.allowed[at], value)
	}
	if err != nil {
		s.Count.Errors.Add(1)
	}
}

// look reads a range: each sector must have what it may have, and has nothing else from then on.
func (s *Schedule) look(off, n int64) {
	p := make([]byte, n)
	if err := s.Guest.ReadAt(Ctx, p, off); err != nil {
		s.Count.Errors.Add(1)
		if !s.faulty {
			s.T.Errorf("a guest's read of %d+%d: %v", off, n, err)
		}
		return
	}
	for at := int64(0); at < n; at += 512 {
		sector := p[at : at+512]
		number := (off + at) / 512
		if !bytes.Equal(sector, bytes.Repeat(sector[:1], 512)) || !slices.Contains(s.allowed[number], sector[0]) {
			s.T.Errorf("the guest reads %#x at %d, and not one of %#x; %s", sector[0], off+at, s.allowed[number], s.Events)
			return
		}
		s.allowed[number] = append(s.allowed[number][:0], sector[0])
	}
}

// LookAll is a look at the whole disk.
func (s *Schedule) LookAll() { s.look(0, int64(len(s.model))) }

// operate does things to the job until it is done. After some time it sees to it that the job ends.
func (s *Schedule) operate(random *rand.Rand, j *job.Job) {
	cancels := random.IntN(4) == 0
	limit := time.Duration(random.Int64N(int64(3 * time.Second)))
	speeds := []int64{0, 0, 100 << 10, 1 << 20, 10 << 20}
	began := time.Now()
	for {
		select {
		case <-j.Done():
			return
		case <-time.After(time.Duration(random.Int64N(int64(100 * time.Millisecond)))):
		}
		if time.Since(began) > limit {
			break
		}
		switch random.IntN(10) {
		case 0, 1:
			if j.Pause(nil) == nil {
				s.Count.Paused.Add(1)
			}
		case 2, 3, 4:
			_ = j.Resume(nil)
		case 5:
			_ = j.SetSpeed(speeds[random.IntN(len(speeds))])
		case 6:
			if cancels {
				_ = j.SoftCancel(random.IntN(2) == 0, nil)
			}
		case 7:
			if cancels {
				_ = j.Cancel(nil)
			}
		case 8:
			_ = j.Complete(nil)
		case 9:
			_ = j.Finalize(nil)
		}
	}
	s.calm.Store(random.IntN(2) == 0)
	s.delay.Store(0)
	for time.Since(began) < limit+time.Hour {
		if time.Since(began) > limit+time.Minute {
			s.calm.Store(true)
		}
		_ = j.SetSpeed(0)
		_ = j.Resume(nil)
		_ = j.Complete(nil)
		_ = j.Finalize(nil)
		select {
		case <-j.Done():
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
	s.T.Errorf("the job does not end: %+v; %s", j.Info(), s.Events)
	_ = j.Cancel(nil)
}

// Judge says whether the job's events tell of one end, and counts it. A job that scans first may fail there without a word.
func (s *Schedule) Judge(ok, scans bool) {
	history := s.Events.String()
	completed := strings.Count(history, "COMPLETED")
	cancelled := strings.Count(history, "CANCELLED")
	if completed+cancelled != 1 || ok && completed != 1 {
		s.T.Errorf("%d completions and %d cancellations", completed, cancelled)
	}
	switch {
	case ok:
		s.Count.Completed.Add(1)
	case cancelled > 0:
		s.Count.Cancelled.Add(1)
	default:
		s.Count.Failed.Add(1)
		if !strings.Contains(history, ",report)") && !scans && !strings.Contains(history, "pending") {
			// The last step, with guests drained, fails without a policy, too.
			s.T.Errorf("the job failed for no reason that was told")
		}
	}
	s.Count.Ready.Add(int64(strings.Count(history, "READY")))
	s.Count.Reports.Add(int64(strings.Count(history, "ERROR")))
}
