// SPDX-License-Identifier: Apache-2.0

package blackbox

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/block/nbd/nbdguest"
)

// mirrorJob is what query-block-jobs says of a mirror.
type mirrorJob struct {
	Device   string
	Offset   int64
	Length   int64 `json:"len"`
	Speed    int64
	Paused   bool
	Ready    bool
	Copied   int64  `json:"copied-bytes"`
	Zeroed   int64  `json:"zeroed-bytes"`
	Dirty    int64  `json:"dirty-bytes"`
	IOStatus string `json:"io-status"`
}

func (d *daemon) mirrorJobs() (list []mirrorJob) {
	d.t.Helper()
	must(d.t, d.query("query-block-jobs", nil, &list))
	return list
}

// theJob is the only job there is.
func (d *daemon) theJob() mirrorJob {
	d.t.Helper()
	list := d.mirrorJobs()
	if len(list) != 1 {
		d.t.Fatalf("%d jobs: %+v", len(list), list)
	}
	return list[0]
}

// isReady waits until the only job is ready.
func (d *daemon) isReady() {
	d.t.Helper()
	eventually(d.t, "READY", func() bool { return d.theJob().Ready })
}

func sameFiles(t testing.TB, a, b string) {
	t.Helper()
	x, err := os.ReadFile(a)
	must(t, err)
	y, err := os.ReadFile(b)
	must(t, err)
	if len(x) != len(y) {
		t.Errorf("%s has %d bytes and %s %d", a, len(x), b, len(y))
		return
	}
	for i := range x {
		if x[i] != y[i] {
			t.Errorf("%s and %s differ at %d", a, b, i)
			return
		}
	}
}

// guests write to a disk for as long as they are let, each to blocks of its own, and know what they were answered.
type guests struct {
	t       testing.TB
	stop    chan struct{}
	writers sync.WaitGroup
	mu      sync.Mutex
	blocks  map[uint64]uint64 // by number, what was written last
}

const guestBlock = 8 << 10

func fill(p []byte, stamp uint64) {
	for at := 0; at < len(p); at += 8 {
		binary.LittleEndian.PutUint64(p[at:], stamp+uint64(at))
	}
}

func loadBy(t testing.TB, client *nbdguest.Client, size int64, seed uint64) *guests {
	return load(t, client, size, seed, 0)
}

// durablyBy has guests ask that what they write is durable: an image that has to allocate keeps nothing else through a kill.
func durablyBy(t testing.TB, client *nbdguest.Client, size int64, seed uint64) *guests {
	return load(t, client, size, seed, nbdguest.FUA)
}

func load(t testing.TB, client *nbdguest.Client, size int64, seed uint64, flags nbdguest.CommandFlags) *guests {
	g := &guests{t: t, stop: make(chan struct{}), blocks: map[uint64]uint64{}}
	const writers = 3
	for w := range uint64(writers) {
		g.writers.Go(func() {
			random := rand.New(rand.NewPCG(seed, w))
			p := make([]byte, guestBlock)
			for {
				select {
				case <-g.stop:
					return
				default:
				}
				number := random.Uint64N(uint64(size)/guestBlock/writers)*writers + w
				stamp := random.Uint64()
				fill(p, stamp)
				if err := client.WriteAt(t.Context(), p, number*guestBlock, flags); err != nil {
					t.Errorf("a guest's write failed: %v", err)
					return
				}
				g.mu.Lock()
				g.blocks[number] = stamp
				g.mu.Unlock()
				time.Sleep(time.Duration(random.IntN(3)) * time.Millisecond)
			}
		})
	}
	return g
}

// end stops the guests and holds the disk against what they were answered.
func (g *guests) end(client *nbdguest.Client) {
	g.t.Helper()
	close(g.stop)
	g.writers.Wait()
	got, want := make([]byte, guestBlock), make([]byte, guestBlock)
	for number, stamp := range g.blocks {
		must(g.t, client.ReadAt(g.t.Context(), got, number*guestBlock))
		if fill(want, stamp); !bytes.Equal(got, want) {
			g.t.Errorf("an answered write at %d is not there", number*guestBlock)
		}
	}
}

func randomImage(t testing.TB, path string, size int64, seed uint64) {
	t.Helper()
	p := make([]byte, size)
	random := rand.New(rand.NewPCG(seed, 77))
	for at := 0; at < len(p); at += 8 {
		binary.LittleEndian.PutUint64(p[at:], random.Uint64())
	}
	must(t, os.WriteFile(path, p, 0o600))
}

// far is a guest behind a daemon of its own, whose client waits for a daemon that is away.
func far(t testing.TB, d *daemon, export string) *nbdguest.Client {
	near := start(t)
	near.do("blockdev-add", args{"driver": "nbd", "node-name": "far", "export": export, "reconnect-delay": 300,
		"server": args{"type": "unix", "path": d.path("nbd")}})
	near.export("far")
	return near.guest("far")
}

// Whenever the daemon is killed, its mirror goes on, loses nothing that guests were answered, and comes to its end.
func TestMirrorGoesOnAfterKills(t *testing.T) {
	const size = 48 << 20
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	for number, mode := range []string{"background", "write-blocking"} {
		for _, durability := range []string{"process", "host"} {
			t.Run(mode+" "+durability, func(t *testing.T) {
				random := rand.New(rand.NewPCG(seed, uint64(number)))
				options := []string{"--mirror-durability", durability}
				d := survivor(t, folder(t), options...)
				randomImage(t, d.path("src.img"), size, seed)
				image(t, d.path("dst.img"), size, 0)
				d.do("blockdev-add", args{"driver": "file", "node-name": "src", "filename": d.path("src.img")})
				d.disk("dst", d.path("dst.img"), nil)
				d.serve()
				d.export("src")
				client := far(t, d, "src")
				d.mirror(args{"copy-mode": mode, "speed": 12 << 20, "filter-node-name": "top", "granularity": 65536, "auto-dismiss": false})
				g := loadBy(t, client, size, seed)
				for round := range 4 {
					time.Sleep(time.Duration(random.IntN(600)) * time.Millisecond)
					d.crash()
					d = survivor(t, d.dir, options...)
					j := d.theJob()
					if j.Device != "m" || j.Speed != 12<<20 || j.Paused || !strings.Contains(d.everything(), `"node-name": "top"`) {
						t.Errorf("round %d: %+v", round, j)
					}
				}
				d.do("block-job-set-speed", args{"device": "m", "speed": 0})
				if number == 0 {
					d.isReady()
					d.crash()
					d = survivor(t, d.dir, options...)
					if j := d.theJob(); j.Speed != 0 {
						t.Errorf("%+v", j)
					}
				}
				d.isReady()
				if random.IntN(2) == 0 {
					g.end(client)
					g = nil
				}
				d.do("job-complete", args{"id": "m"})
				d.wait("BLOCK_JOB_COMPLETED", nil)
				if g != nil {
					g.end(client)
				} else {
					sameFiles(t, d.path("src.img"), d.path("dst.img"))
				}
				before := d.everything()
				d.crash()
				d = survivor(t, d.dir, options...)
				differ(t, before, d.everything())
				if list := d.mirrorJobs(); len(list) > 0 {
					t.Errorf("it came back: %+v", list)
				}
				if left, _ := filepath.Glob(d.path("state/intent-*")); len(left) > 0 {
					t.Errorf("%v is left", left)
				}
			})
		}
	}
}

// An orderly stop keeps mirrors, too. What an operator did to a job lasts, and a job that was cancelled does not come back.
func TestMirrorGoesOnAfterAStop(t *testing.T) {
	const size = 16 << 20
	d := survivor(t, folder(t))
	randomImage(t, d.path("src.img"), size, 5)
	image(t, d.path("dst.img"), size, 0)
	d.disk("src", d.path("src.img"), nil)
	d.disk("dst", d.path("dst.img"), nil)
	d.serve()
	d.export("src")
	d.mirror(args{"copy-mode": "auto", "speed": 1 << 20})
	d.do("block-job-set-speed", args{"device": "m", "speed": 2 << 20})
	d.do("block-job-change", args{"id": "m", "type": "mirror", "copy-mode": "write-blocking"})
	d.do("job-pause", args{"id": "m"})
	must(t, d.guest("src").WriteAt(t.Context(), bytes.Repeat([]byte{0x5a}, 4096), 8<<20, 0))
	for _, orderly := range []bool{true, false, true} {
		if orderly {
			d.quit()
		} else {
			d.crash()
		}
		d = survivor(t, d.dir)
		if j := d.theJob(); !j.Paused || j.Speed != 2<<20 {
			t.Errorf("%+v", j)
		}
		d.wait("MIRROR_RESUMED", args{"device": "m"})
	}
	d.do("block-job-set-speed", args{"device": "m", "speed": 0})
	d.do("job-resume", args{"id": "m"})
	d.isReady()
	d.quit()
	sameFiles(t, d.path("src.img"), d.path("dst.img"))
	d = survivor(t, d.dir)
	d.isReady()
	d.wait("MIRROR_RESUMED", args{"bytes-left": 0, "all": false})
	if j := d.theJob(); j.Copied > 0 {
		t.Errorf("after a stop at READY it copied %d bytes", j.Copied)
	}
	d.quit()
	changed, err := os.OpenFile(d.path("src.img"), os.O_WRONLY, 0)
	must(t, err)
	_, err = changed.WriteAt([]byte("somebody else was here"), 12345)
	must(t, err)
	must(t, changed.Close())
	d = survivor(t, d.dir)
	d.isReady()
	if j := d.theJob(); j.Copied != size || !strings.Contains(d.stderr.String(), "was written since") {
		t.Errorf("after somebody wrote to the source it copied %d bytes and says %s", j.Copied, d.stderr.String())
	}
	d.do("block-job-cancel", args{"device": "m", "force": true})
	d.wait("BLOCK_JOB_CANCELLED", nil)
	d.crash()
	d = survivor(t, d.dir)
	if list := d.mirrorJobs(); len(list) > 0 {
		t.Errorf("it came back: %+v", list)
	}
}

// After a kill at READY no more is copied than what is hot.
func TestMirrorGoesOnWithLittle(t *testing.T) {
	const size, mib = 96 << 20, 1 << 20
	d := survivor(t, folder(t))
	randomImage(t, d.path("src.img"), size, 6)
	image(t, d.path("dst.img"), size, 0)
	d.disk("src", d.path("src.img"), nil)
	d.disk("dst", d.path("dst.img"), nil)
	d.serve()
	d.export("src")
	d.mirror(args{"copy-mode": "write-blocking"})
	d.wait("BLOCK_JOB_READY", nil)
	d.quit()
	d = survivor(t, d.dir)
	d.isReady()
	g := d.guest("src")
	for i := range 10 { // ten regions of a MiB
		must(t, g.WriteAt(t.Context(), bytes.Repeat([]byte{byte(i)}, 4096), uint64(i)*5*mib, 0))
	}
	d.crash()
	d = survivor(t, d.dir)
	d.isReady()
	if j := d.theJob(); j.Copied == 0 || j.Copied > 10*mib {
		t.Errorf("it copied %d bytes", j.Copied)
	}
	sameFiles(t, d.path("src.img"), d.path("dst.img"))

}

// A mirror to another daemon goes on, too. What may have been on its way there is compared at the end.
func TestMirrorToAnotherDaemonGoesOn(t *testing.T) {
	const size = 24 << 20
	other := start(t)
	image(t, other.path("dst.img"), size, 0)
	other.disk("dst", other.path("dst.img"), nil)
	other.export("dst")
	d := survivor(t, folder(t))
	randomImage(t, d.path("src.img"), size, 8)
	d.do("blockdev-add", args{"driver": "file", "node-name": "src", "filename": d.path("src.img")})
	d.do("blockdev-add", args{"driver": "nbd", "node-name": "dst", "export": "dst", "server": args{"type": "unix", "path": other.path("nbd")}})
	d.serve()
	d.export("src")
	client := far(t, d, "src")
	d.mirror(args{"copy-mode": "write-blocking", "speed": 16 << 20})
	g := loadBy(t, client, size, 9)
	for range 3 {
		time.Sleep(300 * time.Millisecond)
		d.crash()
		d = survivor(t, d.dir)
		if left, _ := filepath.Glob(d.path("state/intent-*")); len(left) != 2 {
			t.Errorf("there are %v", left)
		}
	}
	d.do("block-job-set-speed", args{"device": "m", "speed": 0})
	d.isReady()
	g.end(client)
	d.do("job-complete", args{"id": "m"})
	d.wait("BLOCK_JOB_COMPLETED", nil)
	sameFiles(t, d.path("src.img"), other.path("dst.img"))
	if left, _ := filepath.Glob(d.path("state/intent-*")); len(left) > 0 {
		t.Errorf("%v is left", left)
	}
}

// What cannot be recorded of a mirror is refused and leaves nothing. An intent file that is damaged or gone costs copies, and nothing else.
func TestMirrorCannotBeRecorded(t *testing.T) {
	const size = 8 << 20
	d := survivor(t, folder(t))
	randomImage(t, d.path("src.img"), size, 10)
	image(t, d.path("dst.img"), size, 0)
	d.disk("src", d.path("src.img"), nil)
	d.disk("dst", d.path("dst.img"), nil)
	before := d.everything()
	full := d.path("state/state.new/full")
	must(t, os.MkdirAll(full, 0o700))
	d.refused("blockdev-mirror", mirrorArgs(nil), "cannot record this in the state directory")
	differ(t, before, d.everything())
	if left, _ := filepath.Glob(d.path("state/intent-*")); len(left) > 0 || len(d.mirrorJobs()) > 0 {
		t.Errorf("%v is left", left)
	}
	must(t, os.RemoveAll(filepath.Dir(full)))
	d.mirror(args{"speed": 1 << 20})
	must(t, os.MkdirAll(full, 0o700))
	for command, a := range map[string]args{
		"block-job-set-speed": {"device": "m", "speed": 5},
		"job-pause":           {"id": "m"},
		"block-job-change":    {"id": "m", "type": "mirror", "copy-mode": "write-blocking"},
	} {
		d.refused(command, a, "cannot record this in the state directory")
		if j := d.theJob(); j.Speed != 1<<20 || j.Paused {
			t.Errorf("after %s: %+v", command, j)
		}
	}
	must(t, os.RemoveAll(filepath.Dir(full)))
	d.do("block-job-set-speed", args{"device": "m", "speed": 0})
	d.isReady()
	for _, damage := range []struct {
		what func(path string) error
		says string
	}{
		{func(path string) error { return os.Truncate(path, 4096) }, "record at offset 4096"},
		{os.Remove, "no such file"},
		{func(path string) error { return os.WriteFile(path, []byte("QFI\xfb"), 0o600) }, "header at offset 0"},
	} {
		d.crash()
		files, _ := filepath.Glob(d.path("state/intent-*"))
		if len(files) != 1 {
			t.Fatal(files)
		}
		must(t, damage.what(files[0]))
		d = survivor(t, d.dir)
		d.isReady()
		if j := d.theJob(); j.Copied != size || !strings.Contains(d.stderr.String(), damage.says) || !strings.Contains(d.stderr.String(), files[0]) {
			t.Errorf("%+v, and it says %s, not %s", j, d.stderr.String(), damage.says)
		}
	}
	d.quit()
	sameFiles(t, d.path("src.img"), d.path("dst.img"))
}
