// SPDX-License-Identifier: Apache-2.0

package blackbox

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Jobs that are no mirrors, and what jobs were asked for, come back after a restart as mirrors do, see resume_test.go.

const (
	layerBase = "base.img"
	chainSize = 24 << 20
)

// chain makes base.img <- low <- mid <- top, all but the lowest qcow2, and returns what top reads as.
func (d *daemon) chain() (want string) {
	d.t.Helper()
	tool(d.t, "qemu-img")
	randomImage(d.t, d.path(layerBase), chainSize, 21)
	below, format := layerBase, "raw"
	for i, layer := range []string{"low", "mid", "top"} {
		run(d.t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", d.path(below), "-F", format, d.path(layer))
		run(d.t, "qemu-io", "-f", "qcow2", "-c", fmt.Sprintf("write -q -P %d %dM 6M", i+1, i*5), "-c", fmt.Sprintf("write -q -z %dM 1M", 21+i),
			d.path(layer))
		below, format = layer, "qcow2"
	}
	want = d.path("want")
	run(d.t, "qemu-img", "convert", "-O", "raw", d.path("top"), want)
	return want
}

func (d *daemon) qcow2(node, layer string, more args) {
	d.t.Helper()
	a := args{"driver": "qcow2", "node-name": node, "file": args{"driver": "file", "filename": d.path(layer)}}
	for name, value := range more {
		a[name] = value
	}
	d.do("blockdev-add", a)
}

// reads holds what an image and those below it read as against a raw one.
func (d *daemon) reads(layer, want string) {
	d.t.Helper()
	got := d.path("got")
	run(d.t, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", d.path(layer), got)
	sameFiles(d.t, got, want)
}

// backing is the name of the backing file that an image has in its header.
func (d *daemon) backing(layer string) string {
	d.t.Helper()
	var info struct {
		File string `json:"full-backing-filename"`
	}
	must(d.t, json.Unmarshal([]byte(run(d.t, "qemu-img", "info", "-U", "--output=json", d.path(layer))), &info))
	return info.File
}

// nothingLeft holds a daemon without jobs against a restart: none comes back, and nothing is left of any.
func nothingLeft(t testing.TB, d *daemon) *daemon {
	t.Helper()
	eventually(t, "no intent file", func() bool {
		left, _ := filepath.Glob(d.path("state/intent-*"))
		return len(left) == 0
	})
	d.crash()
	d = survivor(t, d.dir)
	if list := d.mirrorJobs(); len(list) > 0 {
		t.Errorf("it came back: %+v", list)
	}
	return d
}

// eachStop ends the daemon and starts it again, in good order and by kills at any moment, and looks at its only job.
func eachStop(t testing.TB, d *daemon, random *rand.Rand, look func(d *daemon, j mirrorJob)) *daemon {
	t.Helper()
	for _, orderly := range []bool{false, true, false} {
		time.Sleep(time.Duration(random.IntN(400)) * time.Millisecond)
		if orderly {
			d.quit()
		} else {
			d.crash()
		}
		d = survivor(t, d.dir)
		look(d, d.theJob())
	}
	return d
}

func newRandom(t testing.TB) *rand.Rand {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 9))
}

// A stream goes on, whether its nodes have names or not, and copies nothing a second time.
func TestStreamGoesOn(t *testing.T) {
	random := newRandom(t)
	for name, named := range map[string]bool{"named": true, "by the images": false} {
		t.Run(name, func(t *testing.T) {
			d := survivor(t, folder(t))
			want := d.chain()
			stream := args{"job-id": "s", "device": "top", "speed": 3 << 20, "filter-node-name": "filter", "backing-file": d.path("low"),
				"auto-dismiss": false}
			if named {
				file := func(layer string) args { return args{"driver": "file", "filename": d.path(layer)} }
				d.qcow2("top", "top", args{"backing": args{"driver": "qcow2", "node-name": "mid", "file": file("mid"), "backing": args{
					"driver": "qcow2", "node-name": "low", "file": file("low")}}})
				stream["base-node"] = "low"
			} else {
				d.qcow2("top", "top", nil)
				stream["base"] = d.path("low")
			}
			d.serve()
			d.export("top")
			d.do("block-stream", stream)
			d = eachStop(t, d, random, func(d *daemon, j mirrorJob) {
				if j.Device != "s" || j.Speed != 3<<20 || j.Paused || !strings.Contains(d.everything(), `"node-name": "filter"`) {
					t.Errorf("%+v", j)
				}
			})
			d.do("job-pause", args{"id": "s"})
			d.crash()
			d = survivor(t, d.dir)
			if j := d.theJob(); !j.Paused {
				t.Errorf("%+v", j)
			}
			before := d.theJob().Length
			run(t, "cp", d.path("top"), d.path("sofar"))
			had, err := os.ReadFile(d.path("sofar"))
			must(t, err)
			d.do("block-job-set-speed", args{"device": "s", "speed": 0})
			d.do("job-resume", args{"id": "s"})
			e := d.wait("BLOCK_JOB_COMPLETED", args{"device": "s", "len": before})
			if text, failed := e.Data.Get("error"); failed {
				t.Errorf("it failed: %v", text)
			}
			// 6 MiB of mid and its 1 MiB of zeroes were missing, and some was copied before.
			if n := d.written("top"); n > 7<<20 || len(had) < 7<<20 {
				t.Errorf("it wrote %d bytes, with an image of %d before", n, len(had))
			}
			if got := d.backing("top"); got != d.path("low") {
				t.Errorf("the backing file is %s", got)
			}
			d = nothingLeft(t, d)
			if strings.Contains(d.everything(), d.path("mid")) {
				t.Errorf("mid came back: %s", d.everything())
			}
			d.quit()
			d.reads("top", want)
		})
	}
}

// A stream of all of a chain goes on below guests, and takes nothing from them.
func TestStreamUnderGuestsGoesOn(t *testing.T) {
	random := newRandom(t)
	d := survivor(t, folder(t))
	d.chain()
	d.qcow2("top", "top", nil)
	d.serve()
	d.export("top")
	client := far(t, d, "top")
	g := durablyBy(t, client, chainSize, random.Uint64())
	d.do("block-stream", args{"job-id": "s", "device": "top", "speed": 1 << 20})
	d = eachStop(t, d, random, func(*daemon, mirrorJob) {})
	d.do("block-job-set-speed", args{"device": "s", "speed": 0})
	d.wait("BLOCK_JOB_COMPLETED", args{"device": "s"})
	d = nothingLeft(t, d)
	g.end(client)
	if got := d.backing("top"); got != "" {
		t.Errorf("the backing file is %s", got)
	}
}

// A commit of layers that nobody writes to goes on.
func TestCommitGoesOn(t *testing.T) {
	random := newRandom(t)
	for name, named := range map[string]bool{"named": true, "by the images": false} {
		t.Run(name, func(t *testing.T) {
			d := survivor(t, folder(t))
			want := d.chain()
			d.qcow2("top", "top", nil)
			commit := args{"job-id": "c", "device": "top", "top": d.path("mid"), "base": d.path(layerBase), "speed": 3 << 20}
			if named {
				d.do("blockdev-del", args{"node-name": "top"})
				d.disk("base", d.path(layerBase), args{"read-only": true})
				d.qcow2("low", "low", args{"backing": "base", "read-only": true})
				d.qcow2("mid", "mid", args{"backing": "low", "read-only": true})
				d.qcow2("top", "top", args{"backing": "mid"})
				commit = args{"job-id": "c", "device": "top", "top-node": "mid", "base-node": "base", "speed": 3 << 20}
			}
			d.serve()
			d.export("top")
			before := d.everything()
			d.do("block-commit", commit)
			d = eachStop(t, d, random, func(d *daemon, j mirrorJob) {
				if j.Device != "c" || j.Speed != 3<<20 || j.Length != chainSize {
					t.Errorf("%+v", j)
				}
			})
			d.do("block-job-set-speed", args{"device": "c", "speed": 0})
			d.wait("BLOCK_JOB_COMPLETED", args{"device": "c"})
			if got := d.backing("top"); got != d.path(layerBase) {
				t.Errorf("the backing file is %s", got)
			}
			after := d.everything()
			d = nothingLeft(t, d)
			differ(t, after, d.everything())
			if named != strings.Contains(after, `"node-name": "mid"`) || strings.Contains(after, `"read-only": true`) != strings.Contains(before, `"read-only": true`) {
				t.Errorf("after it there are %s", after)
			}
			d.quit()
			d.reads("top", want)
		})
	}
}

// A crash between the last change of an image and that of the state leaves a job that has nothing to do any more, or is known to
// have ended.
func TestStateDoesNotHearOfAnEnd(t *testing.T) {
	for _, c := range []struct {
		command string
		named   bool
		a       args
		backing string
	}{
		{"block-stream", false, args{"base": "low"}, "low"},
		{"block-stream", true, args{"base-node": "low"}, "low"},
		{"block-stream", false, nil, ""},
		{"block-commit", false, args{"top": "mid", "base": "low"}, "low"},
		{"block-commit", true, args{"top-node": "mid", "base-node": "low"}, "low"},
	} {
		t.Run(fmt.Sprint(c.command, " named ", c.named, " ", c.a), func(t *testing.T) {
			d := survivor(t, folder(t))
			want := d.chain()
			a := args{"job-id": "j", "device": "top", "speed": 2 << 20}
			for name, value := range c.a {
				if a[name] = value; !c.named {
					a[name] = d.path(value.(string))
				}
			}
			if c.named {
				d.qcow2("low", "low", args{"read-only": true})
				d.qcow2("mid", "mid", args{"backing": "low", "read-only": true})
				d.qcow2("top", "top", args{"backing": "mid"})
			} else {
				d.qcow2("top", "top", nil)
			}
			d.do(c.command, a)
			d.quit() // so that the file of a commit is orderly, too
			d = survivor(t, d.dir)
			run(t, "cp", d.path("state/state"), d.path("kept"))
			files, _ := filepath.Glob(d.path("state/intent-*"))
			for _, f := range files {
				run(t, "cp", f, d.path(filepath.Base(f)))
			}
			d.do("block-job-set-speed", args{"device": "j", "speed": 0})
			d.wait("BLOCK_JOB_COMPLETED", args{"device": "j"})
			d.crash()
			must(t, os.Rename(d.path("kept"), d.path("state/state")))
			for _, f := range files {
				must(t, os.Rename(d.path(filepath.Base(f)), f))
			}
			d = survivor(t, d.dir)
			eventually(t, "the job ends", func() bool {
				list := d.mirrorJobs()
				if len(list) > 0 && list[0].Speed > 0 {
					_ = d.try("block-job-set-speed", args{"device": "j", "speed": 0}) // unless it has just ended
				}
				return len(list) == 0
			})
			if got := d.backing("top"); got != d.path(c.backing) && c.backing != "" || c.backing == "" && got != "" {
				t.Errorf("the backing file is %s", got)
			}
			d = nothingLeft(t, d)
			d.quit()
			d.reads("top", want)
		})
	}
}

// A mirror of the top layer, and one of what a bitmap says, go on as what they were.
func TestMirrorsOfPartsGoOn(t *testing.T) {
	for _, c := range []struct {
		sync   string
		target int64 // the most that may be copied in all
	}{{"top", 12 << 20}, {"bitmap", 12 << 20}} {
		for _, orderly := range []bool{false, true} {
			t.Run(fmt.Sprint(c.sync, " orderly ", orderly), func(t *testing.T) {
				d := survivor(t, folder(t))
				want := d.chain()
				d.qcow2("src", "top", nil)
				d.serve()
				d.export("src")
				a := args{"sync": c.sync, "speed": 3 << 20}
				if c.sync == "top" {
					run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", d.path("mid"), "-F", "qcow2", d.path("dst"))
					d.qcow2("dst", "dst", args{"backing": nil})
				} else {
					run(t, "qemu-img", "convert", "-O", "qcow2", want, d.path("dst"))
					d.qcow2("dst", "dst", nil)
					d.do("block-dirty-bitmap-add", args{"node": "src", "name": "map"})
					a["bitmap"] = "map"
				}
				client := d.guest("src")
				p := make([]byte, 1<<20)
				for i := range uint64(6) {
					fill(p, i)
					must(t, client.WriteAt(t.Context(), p, i<<21, 0))
				}
				must(t, client.Flush(t.Context()))
				d.mirror(a)
				time.Sleep(500 * time.Millisecond)
				if orderly {
					d.quit()
				} else {
					d.crash()
				}
				d = survivor(t, d.dir)
				d.do("block-job-set-speed", args{"device": "m", "speed": 0})
				d.isReady()
				if j := d.theJob(); orderly && j.Copied > c.target {
					t.Errorf("it copied %d bytes after the restart", j.Copied)
				}
				d.do("job-complete", args{"id": "m"})
				d.wait("BLOCK_JOB_COMPLETED", nil)
				d = nothingLeft(t, d)
				d.quit()
				run(t, "qemu-img", "compare", "-q", d.path("top"), d.path("dst"))
			})
		}
	}
}

// A commit of the active layer goes on below guests, gets ready again, and its end lasts, whether its nodes have names or not.
func TestActiveCommitGoesOn(t *testing.T) {
	random := newRandom(t)
	d := survivor(t, folder(t))
	d.chain()
	d.qcow2("top", "top", nil)
	d.serve()
	d.export("top")
	client := far(t, d, "top")
	g := durablyBy(t, client, chainSize, random.Uint64())
	d.do("block-commit", args{"job-id": "c", "device": "top", "base": d.path(layerBase), "speed": 6 << 20})
	d = eachStop(t, d, random, func(d *daemon, j mirrorJob) {
		if j.Device != "c" || j.Speed != 6<<20 {
			t.Errorf("%+v", j)
		}
	})
	d.do("block-job-set-speed", args{"device": "c", "speed": 0})
	d.isReady()
	d = eachStop(t, d, random, func(d *daemon, _ mirrorJob) { d.isReady() })
	d.isReady()
	d.do("job-complete", args{"id": "c"})
	d.wait("BLOCK_JOB_COMPLETED", args{"device": "c"})
	d = nothingLeft(t, d)
	g.end(client)
	d.quit()
}

// A comparison goes on where it was, unless the disks changed, and finds what another one would have found.
func TestVerifyGoesOn(t *testing.T) {
	d := survivor(t, folder(t))
	const size = 32 << 20
	randomImage(t, d.path("a"), size, 4)
	run(t, "cp", d.path("a"), d.path("b"))
	poke(t, d.path("b"), 700, "rot")
	poke(t, d.path("b"), size-1, "x")
	d.disk("a", d.path("a"), nil)
	d.disk("b", d.path("b"), nil)
	d.do("blockdev-verify", args{"job-id": "v", "device": "a", "target": "b", "speed": 5 << 20, "auto-dismiss": false})
	progress := func() int64 { return d.theJob().Offset }
	eventually(t, "6 MiB", func() bool { return progress() >= 6<<20 })
	was := progress()
	d.quit()
	d = survivor(t, d.dir)
	if now := progress(); now < was || d.theJob().Speed != 5<<20 {
		t.Errorf("it goes on at %d, and was at %d: %+v", now, was, d.theJob())
	}
	eventually(t, "a position is kept", func() bool { // every few seconds
		state, err := os.ReadFile(d.path("state/state"))
		must(t, err)
		_, after, _ := strings.Cut(string(state), `"compared":{"end":`)
		var end int64
		_, _ = fmt.Sscan(strings.Split(after, ",")[0], &end)
		return end > was+1<<20
	})
	d.crash()
	d = survivor(t, d.dir)
	if now := progress(); now < was+1<<20 {
		t.Errorf("after a kill it goes on at %d", now)
	}
	d.do("job-pause", args{"id": "v"})
	d.crash()
	d = survivor(t, d.dir)
	if j := d.theJob(); !j.Paused {
		t.Errorf("%+v", j)
	}
	d.do("block-job-set-speed", args{"device": "v", "speed": 0})
	d.quit()
	poke(t, d.path("a"), 12345, "somebody else was here")
	d = survivor(t, d.dir)
	if now := progress(); now != 0 || !strings.Contains(d.stderr.String(), "or was written") {
		t.Errorf("it goes on at %d and says %s", now, d.stderr.String())
	}
	d.do("job-resume", args{"id": "v"})
	d.wait("BLOCKDEV_VERIFIED", args{"device": "v", "differing-bytes": 1536, "first-difference": 512})
	d.wait("JOB_STATUS_CHANGE", args{"status": "concluded"})
	d = nothingLeft(t, d)
}

// What was answered is done: a job goes on to do what it was asked for, without being asked again.
func TestAnsweredRequestsLast(t *testing.T) {
	const size = 16 << 20
	for _, c := range []struct {
		name    string
		command string
		a       args
		pivot   bool
	}{
		{"job-complete", "job-complete", args{"id": "m"}, true},
		{"block-job-complete", "block-job-complete", args{"device": "m"}, true},
		{"block-job-cancel", "block-job-cancel", args{"device": "m"}, false},
	} {
		for _, standby := range []bool{false, true} {
			t.Run(fmt.Sprint(c.name, " standby ", standby), func(t *testing.T) {
				if standby && !c.pivot {
					t.Skip("a paused job cannot be cancelled without force")
				}
				d := survivor(t, folder(t))
				randomImage(t, d.path("src.img"), size, 5)
				image(t, d.path("dst.img"), size, 0)
				d.disk("src", d.path("src.img"), nil)
				d.disk("dst", d.path("dst.img"), nil)
				d.serve()
				d.export("src")
				d.mirror(nil)
				d.isReady()
				d.do("block-job-set-speed", args{"device": "m", "speed": 1 << 20})
				if standby {
					d.do("job-pause", args{"id": "m"})
				}
				client := d.guest("src")
				p := make([]byte, 1<<20)
				for at := uint64(0); at < size; at += 1 << 20 { // ten seconds' work
					fill(p, at)
					must(t, client.WriteAt(t.Context(), p, at, 0))
				}
				d.do(c.command, c.a)
				for range 2 {
					d.crash()
					d = survivor(t, d.dir)
				}
				if j := d.theJob(); j.Paused != standby {
					t.Errorf("%+v", j)
				}
				d.do("block-job-set-speed", args{"device": "m", "speed": 0})
				if standby {
					d.do("job-resume", args{"id": "m"})
				}
				eventually(t, "it ends", func() bool { return len(d.mirrorJobs()) == 0 })
				sameFiles(t, d.path("src.img"), d.path("dst.img"))
				if on := d.exportOf("export-src"); on != map[bool]string{true: "dst", false: "src"}[c.pivot] {
					t.Errorf("the export stands on %s", on)
				}
				nothingLeft(t, d)
			})
		}
	}
}

// exportOf is the node that an export stands on.
func (d *daemon) exportOf(id string) string {
	d.t.Helper()
	var list []struct {
		ID   string
		Node string `json:"node-name"`
	}
	must(d.t, d.query("query-block-exports", nil, &list))
	for _, e := range list {
		if e.ID == id {
			return e.Node
		}
	}
	return ""
}

// A job that waits to be finalized waits again, and one that was told to does not wait any more.
func TestPendingComesBack(t *testing.T) {
	d := survivor(t, folder(t))
	want := d.chain()
	d.qcow2("top", "top", nil)
	d.disk("src", d.path(layerBase), args{"read-only": true})
	image(t, d.path("dst.img"), chainSize, 0)
	d.disk("dst", d.path("dst.img"), nil)
	d.do("blockdev-verify", args{"job-id": "v", "device": "src", "target": "src-file", "auto-finalize": false})
	d.wait("BLOCK_JOB_PENDING", args{"id": "v"})
	d.do("block-stream", args{"job-id": "s", "device": "top", "base": d.path("low"), "auto-finalize": false})
	d.wait("BLOCK_JOB_PENDING", args{"id": "s"})
	d.mirror(args{"auto-finalize": false})
	d.wait("BLOCK_JOB_READY", nil)
	d.do("job-complete", args{"id": "m"})
	d.wait("BLOCK_JOB_PENDING", args{"id": "m"})
	pending := func() int {
		var list []struct{ Status string }
		must(t, d.query("query-jobs", nil, &list))
		n := 0
		for _, j := range list {
			if j.Status == "pending" {
				n++
			}
		}
		return n
	}
	d.crash()
	d = survivor(t, d.dir)
	eventually(t, "all are pending", func() bool { return pending() == 3 })
	d.quit()
	d = survivor(t, d.dir)
	eventually(t, "all are pending", func() bool { return pending() == 3 })
	for _, id := range []string{"v", "s", "m"} {
		d.do("job-finalize", args{"id": id})
	}
	d.crash()
	d = survivor(t, d.dir)
	eventually(t, "all end", func() bool { return len(d.mirrorJobs()) == 0 })
	d = nothingLeft(t, d)
	d.quit()
	d.reads("top", want)
	if got := d.backing("top"); got != d.path("low") {
		t.Errorf("the backing file is %s", got)
	}
}

// A job that was cancelled does not come back, even if the daemon dies with the answer.
func TestCancelledJobsStayAway(t *testing.T) {
	d := survivor(t, folder(t))
	want := d.chain()
	d.qcow2("top", "top", nil)
	image(t, d.path("dst.img"), chainSize, 0)
	d.disk("dst", d.path("dst.img"), nil)
	d.disk("src", d.path(layerBase), args{"read-only": true})
	for _, c := range []struct {
		command string
		a       args
	}{
		{"block-stream", args{"device": "top"}},
		{"block-commit", args{"device": "top", "top": d.path("mid")}},
		{"blockdev-verify", args{"device": "src", "target": "dst"}},
		{"blockdev-mirror", args{"device": "src", "target": "dst", "sync": "full"}},
	} {
		for cancel, a := range map[string]args{"job-cancel": {"id": "j"}, "block-job-cancel": {"device": "j"}} {
			c.a["job-id"], c.a["speed"] = "j", 1<<20
			if c.command == "block-commit" {
				d.do("blockdev-del", args{"node-name": "src"})
			}
			d.do(c.command, c.a)
			d.do(cancel, a)
			d.crash()
			d = survivor(t, d.dir)
			if list := d.mirrorJobs(); len(list) > 0 {
				t.Fatalf("%s came back after %s: %+v", c.command, cancel, list)
			}
			if c.command == "block-commit" {
				d.disk("src", d.path(layerBase), args{"read-only": true})
			}
		}
	}
	d.quit()
	d.reads("top", want)
}

// A mirror to a node without a name comes back, and so does the export that it leaves there.
func TestMirrorToANodeWithoutAName(t *testing.T) {
	const size = 16 << 20
	d := survivor(t, folder(t))
	randomImage(t, d.path("src.img"), size, 5)
	image(t, d.path("dst.img"), size, 0)
	d.disk("src", d.path("src.img"), nil)
	d.do("blockdev-add", args{"driver": "raw", "node-name": "dst", "file": args{"driver": "file", "filename": d.path("dst.img")}})
	d.serve()
	d.export("src")
	d.mirror(args{"target": d.nodeOf(d.path("dst.img"), "file"), "speed": 4 << 20})
	d.crash()
	d = survivor(t, d.dir)
	d.do("block-job-set-speed", args{"device": "m", "speed": 0})
	d.isReady()
	d.do("job-complete", args{"id": "m"})
	d.wait("BLOCK_JOB_COMPLETED", nil)
	sameFiles(t, d.path("src.img"), d.path("dst.img"))
	d = nothingLeft(t, d)
	if on := d.exportOf("export-src"); on != d.nodeOf(d.path("dst.img"), "file") {
		t.Errorf("the export stands on %s", on)
	}
}

// A mirror between images that allocate goes on: their tables are in memory until they are flushed, and a kill takes them.
func TestMirrorOfImagesGoesOn(t *testing.T) {
	random := newRandom(t)
	const size = 160 << 20
	for _, mode := range []string{"background", "write-blocking"} {
		t.Run(mode, func(t *testing.T) {
			d := survivor(t, folder(t))
			tool(t, "qemu-img")
			randomImage(t, d.path("raw.img"), size, 31)
			run(t, "qemu-img", "convert", "-O", "qcow2", d.path("raw.img"), d.path("src"))
			run(t, "qemu-img", "create", "-q", "-f", "qcow2", d.path("dst"), fmt.Sprint(size))
			d.qcow2("src", "src", nil)
			d.qcow2("dst", "dst", nil)
			d.serve()
			d.export("src")
			client := far(t, d, "src")
			d.mirror(args{"copy-mode": mode, "speed": 100 << 20})
			for range 3 {
				g := loadBy(t, client, 8<<20, random.Uint64()) // elsewhere the regions are not kept for guests' sake
				time.Sleep(time.Duration(200+random.IntN(400)) * time.Millisecond)
				d.crash()
				close(g.stop) // what it was answered may be lost
				d = survivor(t, d.dir)
				g.writers.Wait()
			}
			d.do("block-job-set-speed", args{"device": "m", "speed": 0})
			d.isReady()
			d.crash()
			d = survivor(t, d.dir)
			d.isReady()
			d.do("job-complete", args{"id": "m"})
			d.wait("BLOCK_JOB_COMPLETED", nil)
			d.quit()
			run(t, "qemu-img", "compare", "-q", d.path("src"), d.path("dst"))
		})
	}
}

// nodeOf is the name of the node of a driver that an image is open in.
func (d *daemon) nodeOf(path, driver string) string {
	d.t.Helper()
	var list []struct {
		Name   string `json:"node-name"`
		File   string
		Driver string `json:"drv"`
	}
	must(d.t, d.query("query-named-block-nodes", nil, &list))
	for _, n := range list {
		if n.File == path && n.Driver == driver {
			return n.Name
		}
	}
	d.t.Fatalf("no node of %s with %s: %+v", driver, path, list)
	return ""
}

// What cannot come back is told with the names of jobs.
func TestJobsThatCannotComeBack(t *testing.T) {
	d := survivor(t, folder(t))
	d.chain()
	d.qcow2("top", "top", nil)
	d.do("block-stream", args{"job-id": "s", "device": "top", "speed": 1 << 20})
	d.crash()
	must(t, os.Rename(d.path("mid"), d.path("mud")))
	failsWith(t, d.dir, nil, "node top", "job 's'", d.path("mid"))
	d = survivor(t, d.dir, "--restore=best-effort")
	if !strings.Contains(d.stderr.String(), "job 's'") || len(d.mirrorJobs()) > 0 {
		t.Errorf("it says %s", d.stderr.String())
	}
}
