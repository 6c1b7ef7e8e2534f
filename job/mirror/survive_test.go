// SPDX-License-Identifier: Apache-2.0

package mirror

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/blocktest"
	"github.com/blkmirror/blkmirror/job"
	"github.com/blkmirror/blkmirror/job/mirror/intent"
)

// logFile is an intent file in memory that a crash can be taken of.
type logFile struct {
	mu     sync.Mutex
	mem    *blocktest.Mem
	broken atomic.Bool
}

const logSize = 16 << 10

var errLog = errors.New("no space left on device")

func (f *logFile) do(what func() error) error {
	if f.broken.Load() {
		return errLog
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return what()
}

func (f *logFile) WriteAt(p []byte, off int64) (int, error) {
	return len(p), f.do(func() error { return f.mem.WriteAt(bg, p, off, 0) })
}

func (f *logFile) Sync() error { return f.do(func() error { return f.mem.Flush(bg) }) }

func (f *logFile) Truncate(int64) error { return errLog }

func (f *logFile) Close() error { return nil }

type logReader struct{ *blocktest.Mem }

func (r logReader) ReadAt(p []byte, off int64) (int, error) { return len(p), r.Mem.ReadAt(bg, p, off) }

// world is what there is from one crash to the next.
type world struct {
	*rig
	random *rand.Rand
	config intent.Config
	file   *logFile
	log    *intent.Log
	m      *Mirror
	stop   atomic.Bool
	guests sync.WaitGroup

	mu       sync.Mutex
	answered map[int64]byte          // by block, what guests were told is there
	possible map[int64]map[byte]bool // what else may be there: writes that were not answered
}

const (
	worldSize  = 512 << 10
	worldBlock = 1 << 10
)

func (w *world) begin(source, target *blocktest.Mem, log *blocktest.Mem, o Options, found *intent.Found) {
	w.rig = newRig(w.t, diskOf(source, w.random), diskOf(target, w.random), unmapping, unmapping)
	w.source.slow, w.target.slow = 2*time.Millisecond, 3*time.Millisecond
	w.file = &logFile{mem: log}
	phase := intent.Scanning
	o.AutoFinalize = true
	if found != nil {
		o.Resume = &Resume{Dirty: found.Dirty, Pass: found.Pass}
		if found.Dirty != nil {
			phase = intent.Copying
		}
	}
	var err error
	if found == nil {
		w.log, err = intent.Create("log", w.file, w.config, phase, nil)
	} else {
		w.log, err = intent.Create("log", w.file, w.config, phase, found.Dirty)
	}
	must(w.t, err)
	if found != nil && found.Pass != nil {
		must(w.t, w.log.SetPass(*found.Pass))
	}
	o.Intent = w.log
	w.m = w.start(o)
}

func diskOf(mem *blocktest.Mem, random *rand.Rand) *disk {
	d := &disk{mem: mem}
	d.mu.random = rand.New(rand.NewPCG(random.Uint64(), 1))
	return d
}

// write lets guests write, each to blocks of its own.
func (w *world) write(guests int64) {
	for id := range guests {
		random := rand.New(rand.NewPCG(w.random.Uint64(), uint64(id)))
		guest, stop := w.guest, &w.stop
		w.guests.Go(func() {
			for !stop.Load() {
				number := random.Int64N(worldSize/worldBlock/guests)*guests + id
				if random.IntN(3) > 0 {
					number %= 32 * guests // some are written often
				}
				content := byte(random.IntN(256))
				w.attempt(number, content)
				var err error
				if content == 0 {
					err = guest.WriteZeroes(bg, number*worldBlock, worldBlock, block.MayUnmap)
				} else {
					err = guest.WriteAt(bg, bytes.Repeat([]byte{content}, worldBlock), number*worldBlock, 0)
				}
				if err == nil {
					w.answer(number, content)
				}
				if random.IntN(10) == 0 {
					_ = guest.Flush(bg)
				}
				time.Sleep(time.Duration(random.IntN(4000)) * time.Microsecond)
			}
		})
	}
}

func (w *world) attempt(number int64, content byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.possible[number] == nil {
		w.possible[number] = map[byte]bool{}
	}
	w.possible[number][content] = true
}

func (w *world) answer(number int64, content byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.answered[number] = content
	w.possible[number] = map[byte]bool{content: true}
}

// crash ends the world as it is at one moment, and returns what is left of it.
func (w *world) crash(power bool) (source, target, log *blocktest.Mem) {
	w.source.mu.Lock()
	w.target.mu.Lock()
	w.file.mu.Lock()
	w.mu.Lock()
	if power {
		source, target, log = w.source.mem.Crash(w.random.Uint64()), w.target.mem.Crash(w.random.Uint64()), w.file.mem.Crash(w.random.Uint64())
	} else {
		source, target, log = w.source.mem.Copy(), w.target.mem.Copy(), w.file.mem.Copy()
	}
	answered, possible := w.answered, w.possible
	w.answered, w.possible = map[int64]byte{}, map[int64]map[byte]bool{} // what comes now is of no interest
	w.mu.Unlock()
	w.file.mu.Unlock()
	w.target.mu.Unlock()
	w.source.mu.Unlock()
	w.stop.Store(true)
	w.guests.Wait()
	w.stop.Store(false)
	w.log.Keep()
	must(w.t, w.m.job.Cancel(nil))
	w.over(w.m)
	w.answered, w.possible = answered, possible
	if power { // guests hear of it only if they flushed
		w.answered, w.possible = map[int64]byte{}, map[int64]map[byte]bool{}
	}
	return source, target, log
}

func (w *world) verify(when string) {
	w.t.Helper()
	p := make([]byte, worldBlock)
	for number, content := range w.answered {
		must(w.t, w.guest.ReadAt(bg, p, number*worldBlock))
		if !bytes.Equal(p, bytes.Repeat(p[:1], worldBlock)) || p[0] != content && !w.possible[number][p[0]] {
			w.t.Fatalf("%s: block %d holds %#x, and %#x was answered", when, number, p[0], content)
		}
	}
}

// Whenever the process or the host dies, a mirror that goes on comes to an end that is right.
func TestCrashAndResume(t *testing.T) {
	base := rand.Uint64()
	t.Logf("seed %d", base)
	count := uint64(60)
	if testing.Short() {
		count = 10
	}
	for seed := base; seed < base+count; seed++ {
		in(t, func(t *testing.T) {
			defer func() {
				if t.Failed() {
					t.Logf("with seed %d", seed)
				}
			}()
			random := rand.New(rand.NewPCG(seed, 3))
			host := random.IntN(2) == 0
			w := &world{rig: &rig{t: t}, random: random, answered: map[int64]byte{}, possible: map[int64]map[byte]bool{}}
			disk := intent.Identity{Inode: 1, Size: worldSize}
			w.config = intent.Config{Size: worldSize, Granularity: 4096, Region: 16 << 10, Hot: 4, Durability: intent.Process, Source: disk, Target: disk,
				Unflushed: random.IntN(4) == 0}
			if host {
				w.config.Durability = intent.Host
			}
			options := blocktest.MemOptions{Size: worldSize, NoZeroUnmap: random.IntN(3) == 0}
			source, target := blocktest.NewMemOf(pattern(seed, worldSize), options), blocktest.NewMem(options)
			for range 10 {
				must(t, source.WriteZeroes(bg, random.Int64N(worldSize-64<<10)&^4095, (1+random.Int64N(15))<<12, block.MayUnmap))
			}
			if random.IntN(2) == 0 {
				target = blocktest.NewMemOf(pattern(seed+1, worldSize), options)
			}
			o := Options{Mode: one(random, Background, WriteBlocking), Granularity: 4096, BufSize: 64 << 10, Sync: one(random, SyncFull, SyncFull, SyncNone)}
			same := o.Sync == SyncFull
			o.Verify = same && random.IntN(2) == 0
			o.OnDifference = func(d Difference) { t.Errorf("a difference that is none: %+v", d) }
			o.Digest = o.Verify && random.IntN(2) == 0
			w.begin(source, target, blocktest.NewMem(blocktest.MemOptions{Size: logSize}), o, nil)
			for range 1 + random.IntN(4) {
				w.write(3)
				time.Sleep(time.Duration(random.IntN(300)) * time.Millisecond)
				power := random.IntN(2) == 0
				source, target, log := w.crash(power)
				expect := intent.Expect{Source: disk, Target: disk}
				if power {
					expect.Boot[0] = byte(1 + random.IntN(250))
					expect.Boot[1] = byte(random.IntN(250))
				}
				expect.Boot[2] = w.config.Boot[2]
				if !power {
					expect.Boot = w.config.Boot
				}
				found := intent.Load("log", logReader{log}, expect)
				if found.Phase >= intent.Pivoted || len(found.Whys) > 0 && !power {
					t.Fatalf("after a crash (power %v): %+v", power, found)
				}
				w.config.Boot = expect.Boot
				w.begin(source, target, blocktest.NewMem(blocktest.MemOptions{Size: logSize}), o, found)
				w.verify("after a crash")
			}
			w.write(3)
			time.Sleep(100 * time.Millisecond)
			w.m.ChangeMode(WriteBlocking, false)
			w.ready(w.m)
			w.stop.Store(true)
			w.guests.Wait()
			must(t, w.m.job.Complete(nil))
			w.over(w.m)
			if err := w.m.job.Err(); err != nil {
				t.Fatal(err)
			}
			if same {
				w.same()
			}
			w.verify("at the end")
			if p := w.log.Phase(); p != intent.Pivoted {
				t.Errorf("the file is in phase %s", p)
			}
		})
		if t.Failed() {
			return
		}
	}
}

// A file that cannot be written holds guests up, and with them the end of the job, until it can be written again.
func TestIntentCannotBeWritten(t *testing.T) {
	in(t, func(t *testing.T) {
		w := &world{rig: &rig{t: t}, random: rand.New(rand.NewPCG(1, 1))}
		disk := intent.Identity{Inode: 1, Size: worldSize}
		w.config = intent.Config{Size: worldSize, Granularity: 4096, Region: 16 << 10, Durability: intent.Process, Source: disk, Target: disk}
		var troubles []error
		var mu sync.Mutex
		trouble := func(err error) {
			mu.Lock()
			troubles = append(troubles, err)
			mu.Unlock()
		}
		w.begin(blocktest.NewMem(blocktest.MemOptions{Size: worldSize}), blocktest.NewMem(blocktest.MemOptions{Size: worldSize}),
			blocktest.NewMem(blocktest.MemOptions{Size: logSize}), Options{Granularity: 4096, OnTrouble: trouble}, nil)
		w.ready(w.m)
		must(t, w.guest.WriteAt(bg, make([]byte, 4096), 0, 0))
		time.Sleep(time.Minute)
		w.file.broken.Store(true)
		must(t, w.guest.WriteAt(bg, pattern(1, 4096), 4096, 0)) // hot
		ctx, cancel := context.WithTimeout(bg, time.Second)
		defer cancel()
		if err := w.guest.WriteAt(ctx, pattern(1, 4096), 300<<10, 0); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a guest whose time is over: %v", err)
		}
		wait := at(func() { must(t, w.guest.WriteAt(bg, pattern(2, 4096), 200<<10, 0)) })
		time.Sleep(time.Minute)
		must(t, w.m.job.Cancel(nil))
		time.Sleep(time.Minute)
		if s := w.m.job.Info().Status; s != job.Aborting {
			t.Errorf("the job is %s", s)
		}
		w.file.broken.Store(false)
		wait()
		w.over(w.m)
		mu.Lock()
		defer mu.Unlock()
		if len(troubles) == 0 || !errors.Is(troubles[0], errLog) || len(troubles) > 3 {
			t.Errorf("%v", troubles)
		}
		if p := w.log.Phase(); p != intent.Ended {
			t.Errorf("the file is in phase %s", p)
		}
	})
}

// After a resume no more is copied than what needed it, and the hot regions.
func TestResumeCopiesLittle(t *testing.T) {
	in(t, func(t *testing.T) {
		const size, region, hot = 64 * mib, 64 * kib, 16
		w := &world{rig: &rig{t: t}, random: rand.New(rand.NewPCG(1, 1)), answered: map[int64]byte{}, possible: map[int64]map[byte]bool{}}
		disk := intent.Identity{Inode: 1, Size: size}
		w.config = intent.Config{Size: size, Granularity: 64 * kib, Region: region, Hot: hot, Durability: intent.Process, Source: disk, Target: disk}
		o := Options{Mode: WriteBlocking, Granularity: 64 * kib}
		empty := blocktest.MemOptions{Size: size}
		log := blocktest.MemOptions{Size: logSize}
		w.begin(blocktest.NewMemOf(pattern(1, size), empty), blocktest.NewMem(empty), blocktest.NewMem(log), o, nil)
		w.ready(w.m)
		for i := range int64(300) {
			must(t, w.guest.WriteAt(bg, pattern(uint64(i), 4096), i*3*region, 0))
			time.Sleep(time.Millisecond)
		}
		source, target, image := w.crash(false)
		found := intent.Load("log", logReader{image}, intent.Expect{Source: disk, Target: disk})
		most := int64(hot+16) * region // and those that were copied last
		if found.Dirty == nil || found.Dirty.SetBytes() > most {
			t.Fatalf("%+v", found)
		}
		w.begin(source, target, blocktest.NewMem(log), o, found)
		w.ready(w.m)
		if b := w.m.State().Bytes; b.Copied > most || b.Copied == 0 {
			t.Errorf("it copied %d bytes, and %d were hot", b.Copied, most)
		}
		w.same()
		must(t, w.m.job.Cancel(nil))
		w.over(w.m)
	})
}

// A comparison goes on after a restart where it was: what was compared is not read again, but for what guests wrote last.
func TestVerifyResumes(t *testing.T) {
	for name, digests := range map[string]bool{"plain": false, "with a digest, from the start": true} {
		t.Run(name, func(t *testing.T) {
			in(t, func(t *testing.T) {
				const size, region = 16 * mib, 64 * kib
				w := &world{rig: &rig{t: t}, random: rand.New(rand.NewPCG(1, 1)), answered: map[int64]byte{}, possible: map[int64]map[byte]bool{}}
				disk := intent.Identity{Inode: 1, Size: size}
				w.config = intent.Config{Size: size, Granularity: 64 * kib, Region: region, Hot: 8, Durability: intent.Process, Source: disk, Target: disk}
				var k told
				o := k.options(Options{Mode: WriteBlocking, Granularity: 64 * kib, Digest: digests, Speed: mib})
				empty := blocktest.MemOptions{Size: size}
				log := blocktest.MemOptions{Size: logSize}
				w.begin(blocktest.NewMemOf(pattern(1, size), empty), blocktest.NewMem(empty), blocktest.NewMem(log), o, nil)
				w.ready(w.m)
				must(t, w.target.mem.WriteAt(bg, []byte{0}, 3*mib+77, 0)) // a difference that is found soon
				restart := func() (left int64) {
					left = w.m.State().Proof.Left
					source, target, image := w.crash(false)
					found := intent.Load("log", logReader{image}, intent.Expect{Source: disk, Target: disk})
					if found.Pass == nil || found.Pass.Number == 0 {
						t.Fatalf("%+v", found)
					}
					w.begin(source, target, blocktest.NewMem(log), o, found)
					w.ready(w.m)
					return left
				}
				for p := w.m.State().Proof; p.Left > size/2; p = w.m.State().Proof {
					time.Sleep(time.Second)
				}
				time.Sleep(2 * keepPassEvery) // as long as it may take until that is known
				left := restart()
				now := w.m.State().Proof
				if most := left + 2*int64(keepPassEvery/time.Second)*mib + 24*region; digests != (now.Left > most) || now.Left < left {
					t.Errorf("%d bytes were left, now it is %+v", left, now)
				}
				if !digests && now.Differing != sector {
					t.Errorf("%d bytes differed, and %d do after the restart", sector, now.Differing)
				}
				for w.m.State().Proof.Left > 0 {
					time.Sleep(time.Second)
				}
				time.Sleep(time.Second)
				if left := restart(); left != 0 {
					t.Fatalf("%d bytes are left", left)
				}
				if p := w.m.State().Proof; !digests && p.Left > 24*region {
					t.Errorf("all was compared before the restart, and now it is %+v", p)
				}
				// The next pass is over the whole disk, from the moment on when the command was answered.
				for w.m.State().Proof.Left > 0 {
					time.Sleep(time.Second)
				}
				time.Sleep(time.Second)
				must(t, w.m.job.SetSpeed(1))
				must(t, w.m.Verify())
				restart()
				if p := w.m.State().Proof; p.Left < size-mib || p.Differing != 0 {
					t.Errorf("after a restart in another pass: %+v", p)
				}
				must(t, w.m.job.Cancel(nil))
				w.over(w.m)
			})
		})
	}
}
