// SPDX-License-Identifier: Apache-2.0

package blackbox

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// survivor starts a daemon on a folder whose state survives.
func survivor(t testing.TB, dir string, options ...string) *daemon {
	t.Helper()
	d := launch(t, dir, append([]string{"--qmp", filepath.Join(dir, "qmp"), "--state-dir", filepath.Join(dir, "state")}, options...)...)
	d.connect()
	return d
}

// crash kills the daemon.
func (d *daemon) crash() {
	d.t.Helper()
	_ = d.client.Close()
	_ = syscall.Kill(d.pid, syscall.SIGKILL) // unless it is dead
	<-d.exited
	d.status = 0 // as told
}

func (d *daemon) quit() {
	d.t.Helper()
	d.do("quit", nil)
	<-d.exited
}

func (d *daemon) serve() {
	d.t.Helper()
	d.do("nbd-server-start", args{"addr": args{"type": "unix", "data": args{"path": d.path("nbd")}}})
}

// everything is what a client sees of what there is, but for counters and generated names.
func (d *daemon) everything() string {
	d.t.Helper()
	var text strings.Builder
	for _, q := range []struct {
		command string
		a       args
	}{{"query-named-block-nodes", args{"flat": true}}, {"query-block-exports", nil}, {"qom-list", args{"path": "/objects"}}} {
		var result any
		must(d.t, d.query(q.command, q.a, &result))
		object, err := json.MarshalIndent(result, "", " ")
		must(d.t, err)
		text.Write(object)
	}
	return generated.ReplaceAllString(text.String(), "#block")
}

var generated = regexp.MustCompile("#block[0-9]+")

// failsWith starts a daemon that must refuse to, with all of these words.
func failsWith(t testing.TB, dir string, options []string, words ...string) {
	t.Helper()
	d := launch(t, dir, append([]string{"--qmp", filepath.Join(dir, "qmp"), "--state-dir", filepath.Join(dir, "state")}, options...)...)
	<-d.exited
	if d.status != 1 {
		t.Errorf("it ended with status %d", d.status)
	}
	d.status = 0
	for _, w := range words {
		if !strings.Contains(d.stderr.String(), w) {
			t.Errorf("it says %q, not %q", d.stderr.String(), w)
		}
	}
}

func differ(t testing.TB, was, is string) {
	t.Helper()
	if was != is {
		t.Errorf("before\n%s\nafter\n%s", was, is)
	}
}

// What was made over QMP is there after a crash and after an orderly stop; a bitmap keeps its contents through the latter, and
// counts as dirty after the former.
func TestStateComesBack(t *testing.T) {
	d := survivor(t, folder(t))
	image(t, d.path("a.img"), 4<<20, 0)
	image(t, d.path("b.img"), 4<<20, 0)
	d.do("object-add", args{"qom-type": "throttle-group", "id": "group", "limits": args{"iops-total": 100000}})
	d.do("qom-set", args{"path": "group", "property": "limits", "value": args{"iops-total": 90000}})
	d.do("object-add", args{"qom-type": "iothread", "id": "gone"})
	d.do("object-del", args{"id": "gone"})
	d.disk("a", d.path("a.img"), args{"detect-zeroes": "on"})
	d.do("blockdev-add", args{"driver": "throttle", "node-name": "slow", "throttle-group": "group", "file": "a"})
	d.do("blockdev-add", args{"driver": "file", "node-name": "b", "filename": d.path("b.img"), "read-only": true})
	d.do("blockdev-reopen", args{"options": []args{{"driver": "file", "node-name": "b", "filename": d.path("b.img")}}})
	d.do("block-dirty-bitmap-add", args{"node": "slow", "name": "map", "granularity": 65536})
	d.do("block-dirty-bitmap-add", args{"node": "slow", "name": "off", "disabled": true})
	d.serve()
	d.export("slow")
	d.do("block-export-add", args{"type": "nbd", "id": "gone", "node-name": "b"})
	d.do("block-export-del", args{"id": "gone"})
	g := d.guest("slow")
	data := bytes.Repeat([]byte{0xab}, 128<<10)
	must(t, g.WriteAt(t.Context(), data, 1<<20, 0))
	must(t, g.Flush(t.Context()))
	before := d.everything()
	d.quit()

	d = survivor(t, d.dir)
	differ(t, before, d.everything())
	got := make([]byte, len(data))
	must(t, d.guest("slow").ReadAt(t.Context(), got, 1<<20))
	if !bytes.Equal(got, data) {
		t.Error("the data is not there")
	}
	var limits map[string]any
	must(t, d.query("qom-get", args{"path": "group", "property": "limits"}, &limits))
	if fmt.Sprint(limits["iops-total"]) != "90000" {
		t.Errorf("the limits are %v", limits)
	}
	d.crash()

	d = survivor(t, d.dir)
	dirty := d.everything()
	if strings.Count(dirty, `"count": 4194304`) != 2 {
		t.Errorf("not all of the bitmaps is dirty: %s", dirty)
	}
	d.do("nbd-server-stop", nil)
	d.do("blockdev-del", args{"node-name": "slow"})
	before = d.everything()
	d.crash()
	d = survivor(t, d.dir)
	differ(t, before, d.everything())
}

// Chains of images come back as snapshots, reopens and jobs have left them.
func TestStateChains(t *testing.T) {
	d := survivor(t, folder(t))
	for _, q := range [][]string{
		{"base", "4M"},
		{"mid", "-F", "qcow2", "-b", d.path("base")},
		{"top", "-F", "qcow2", "-b", d.path("mid")},
		{"other", "4M"},
	} {
		out, err := exec.Command("qemu-img", append([]string{"create", "-q", "-f", "qcow2", d.path(q[0])}, q[1:]...)...).CombinedOutput()
		if err != nil {
			t.Skipf("qemu-img makes no image here: %v: %s", err, out)
		}
	}
	file := func(name string) args { return args{"driver": "file", "filename": d.path(name)} }
	again := func(what string) {
		t.Helper()
		before := d.everything()
		d.crash()
		d = survivor(t, d.dir)
		if t.Failed() {
			return
		}
		if differ(t, before, d.everything()); t.Failed() {
			t.Fatal(what)
		}
	}
	d.do("blockdev-add", args{"driver": "qcow2", "node-name": "disk", "file": file("top"), "discard": "unmap"})
	d.serve()
	d.do("block-export-add", args{"type": "nbd", "id": "e", "node-name": "disk", "name": "disk", "writable": true})
	again("a chain that images name")
	d.do("block-dirty-bitmap-add", args{"node": "disk", "name": "kept", "persistent": true})
	d.do("block-dirty-bitmap-remove", args{"node": "disk", "name": "kept"})
	data := bytes.Repeat([]byte{0x77}, 64<<10)
	must(t, d.guest("disk").WriteAt(t.Context(), data, 0, 0))
	d.do("blockdev-snapshot-sync", args{"node-name": "disk", "snapshot-node-name": "overlay", "snapshot-file": d.path("overlay")})
	g := d.guest("disk")
	must(t, g.WriteAt(t.Context(), data, 1<<20, 0))
	must(t, g.Flush(t.Context()))
	again("a snapshot")
	d.do("blockdev-add", args{"driver": "qcow2", "node-name": "second", "file": file("other"), "backing": nil})
	d.do("transaction", args{"actions": []args{{"type": "blockdev-snapshot", "data": args{"node": "overlay", "overlay": "second"}}}})
	again("a second one")
	d.do("blockdev-reopen", args{"options": []args{{"driver": "qcow2", "node-name": "second", "file": args{"driver": "file",
		"filename": d.path("other")}, "backing": "overlay", "discard": "unmap"}}})
	again("a reopen")
	d.do("block-stream", args{"job-id": "s", "device": "second", "base-node": "disk"})
	d.wait("BLOCK_JOB_COMPLETED", nil)
	d.do("blockdev-del", args{"node-name": "overlay"})
	again("a stream")
	g = d.guest("disk")
	for _, off := range []uint64{0, 1 << 20} {
		got := make([]byte, len(data))
		must(t, g.ReadAt(t.Context(), got, off))
		if !bytes.Equal(got, data) {
			t.Errorf("what was written at %d is not there", off)
		}
	}
}

// Guests that a mirror has given the target find it again after a crash, whoever made the exports.
func TestStatePivot(t *testing.T) {
	for _, c := range []struct {
		name    string
		options []string
	}{
		{"over QMP", nil},
		{"command line", []string{"--blockdev", "file,node-name=src,filename=src.img", "--nbd-server", "addr.type=unix,addr.path=nbd", "--export", "nbd,id=e,node-name=src,writable=on",
			"--export", "nbd,id=f,node-name=src,name=top"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := folder(t)
			image(t, filepath.Join(dir, "src.img"), 4<<20, 0)
			image(t, filepath.Join(dir, "dst.img"), 4<<20, 0)
			d := survivor(t, dir, c.options...)
			if c.options == nil {
				d.do("blockdev-add", args{"driver": "file", "node-name": "src", "filename": d.path("src.img")})
				d.serve()
				d.do("block-export-add", args{"type": "nbd", "id": "e", "node-name": "src", "writable": true})
				d.do("block-export-add", args{"type": "nbd", "id": "f", "node-name": "src", "name": "top"})
			}
			d.do("blockdev-add", args{"driver": "file", "node-name": "dst", "filename": d.path("dst.img")})
			d.do("block-dirty-bitmap-add", args{"node": "src", "name": "map"})
			d.mirror(args{"filter-node-name": "filter"})
			d.wait("BLOCK_JOB_READY", nil)
			d.do("job-complete", args{"id": "m"})
			d.wait("BLOCK_JOB_COMPLETED", nil)
			data := bytes.Repeat([]byte{0xcd}, 4096)
			must(t, d.guest("src").WriteAt(t.Context(), data, 8192, 0))
			d.crash() // no command came since

			d = survivor(t, d.dir, c.options...)
			for _, export := range []string{"src", "top"} {
				got := make([]byte, len(data))
				must(t, d.guest(export).ReadAt(t.Context(), got, 8192))
				if !bytes.Equal(got, data) {
					t.Errorf("export '%s' shows the old disk", export)
				}
			}
			if all := d.everything(); strings.Count(all, `"node-name": "dst",`) < 2 {
				t.Errorf("the export does not stand on the target: %s", all)
			}
			d.do("block-dirty-bitmap-remove", args{"node": "dst", "name": "map"})
		})
	}
}

// What guests write after an active commit is on the disk that comes back.
func TestStateActiveCommit(t *testing.T) {
	d := survivor(t, folder(t))
	image(t, d.path("src.img"), 4<<20, 0)
	d.do("blockdev-add", args{"driver": "raw", "node-name": "src", "file": args{"driver": "file", "filename": d.path("src.img")}})
	d.serve()
	d.do("block-export-add", args{"type": "nbd", "id": "e", "node-name": "src", "writable": true})
	d.do("blockdev-snapshot-sync", args{"node-name": "src", "snapshot-node-name": "over", "snapshot-file": d.path("over.img")})
	data := bytes.Repeat([]byte{0xab}, 8192)
	must(t, d.guest("src").WriteAt(t.Context(), data[:4096], 8192, 0))
	d.do("block-commit", args{"job-id": "m", "device": "over"})
	d.wait("BLOCK_JOB_READY", nil)
	d.do("job-complete", args{"id": "m"})
	d.wait("BLOCK_JOB_COMPLETED", nil)
	must(t, d.guest("src").WriteAt(t.Context(), data[4096:], 12288, 0))
	d.crash() // no command came since

	d = survivor(t, d.dir)
	got := make([]byte, len(data))
	must(t, d.guest("src").ReadAt(t.Context(), got, 8192))
	if !bytes.Equal(got, data) {
		t.Error("the export shows the old disk")
	}
}

// What cannot be recorded is not done.
func TestStateCannotBeRecorded(t *testing.T) {
	d := survivor(t, folder(t))
	image(t, d.path("a.img"), 1<<20, 0)
	d.do("blockdev-add", args{"driver": "file", "node-name": "a", "filename": d.path("a.img")})
	d.do("object-add", args{"qom-type": "throttle-group", "id": "group", "limits": args{"iops-total": 100}})
	d.serve()
	d.do("block-export-add", args{"type": "nbd", "id": "e", "node-name": "a"})
	before := d.everything()
	stored, err := os.ReadFile(d.path("state/state"))
	must(t, err)
	must(t, os.MkdirAll(d.path("state/state.new/full"), 0o700))
	for command, a := range map[string]args{
		"blockdev-add":           {"driver": "null-co", "node-name": "n"},
		"block-dirty-bitmap-add": {"node": "a", "name": "map"},
		"object-add":             {"qom-type": "iothread", "id": "io"},
		"object-del":             {"id": "group"},
		"qom-set":                {"path": "group", "property": "limits", "value": args{"iops-total": 7}},
		"block-export-add":       {"type": "nbd", "id": "f", "node-name": "a", "name": "f"},
		"block-export-del":       {"id": "e"},
		"nbd-server-stop":        nil,
		"transaction":            {"actions": []args{{"type": "block-dirty-bitmap-add", "data": args{"node": "a", "name": "m"}}}},
	} {
		d.refused(command, a, "cannot record this in the state directory", d.path("state"))
		differ(t, before, d.everything())
	}
	var limits map[string]any
	must(t, d.query("qom-get", args{"path": "group", "property": "limits"}, &limits))
	if fmt.Sprint(limits["iops-total"]) != "100" {
		t.Errorf("the limits are %v", limits)
	}
	d.guest("a")
	still, err := os.ReadFile(d.path("state/state"))
	must(t, err)
	differ(t, string(stored), string(still))
	must(t, os.RemoveAll(d.path("state/state.new")))
	d.do("blockdev-add", args{"driver": "null-co", "node-name": "n"})
	before = d.everything()
	d.crash()
	d = survivor(t, d.dir)
	differ(t, before, d.everything())
}

// A request to complete that cannot be recorded is refused. A mirror whose end cannot be recorded fails, and guests stay on the source.
func TestStatePivotCannotBeRecorded(t *testing.T) {
	const size = 16 << 20
	d := survivor(t, folder(t))
	d.serve()
	d.disks(size, nil)
	g := d.guest("src")
	d.mirror(args{"auto-dismiss": false})
	d.wait("BLOCK_JOB_READY", nil)
	full := d.path("state/state.new/full")
	must(t, os.MkdirAll(full, 0o700))
	d.refused("job-complete", args{"id": "m"}, "cannot record this")
	d.refused("block-job-cancel", args{"device": "m"}, "cannot record this")
	d.refused("job-cancel", args{"id": "m"}, "cannot record this")
	must(t, os.RemoveAll(filepath.Dir(full)))
	if j := d.theJob(); !j.Ready {
		t.Errorf("%+v", j)
	}
	d.do("block-job-set-speed", args{"device": "m", "speed": 8 << 20})
	for at := uint64(0); at < size; at += 1 << 20 {
		must(t, g.WriteAt(t.Context(), bytes.Repeat([]byte{byte(at >> 20)}, 1<<20), at, 0))
	}
	d.do("job-complete", args{"id": "m"}) // there is more than a second's work left
	must(t, os.MkdirAll(full, 0o700))
	if e := d.wait("BLOCK_JOB_COMPLETED", nil); !has(e, args{"error": "x"}) {
		text, _ := e.Data.Get("error")
		if !strings.Contains(fmt.Sprint(text), "cannot record this") {
			t.Errorf("the job ended with %v", text)
		}
	}
	must(t, os.RemoveAll(filepath.Dir(full)))
	data := bytes.Repeat([]byte{0x5a}, 4096)
	must(t, g.WriteAt(t.Context(), data, 0, 0))
	d.crash()
	d = survivor(t, d.dir)
	got := make([]byte, len(data))
	must(t, d.guest("src").ReadAt(t.Context(), got, 0))
	if !bytes.Equal(got, data) || !strings.Contains(d.everything(), `"node-name": "src",`) {
		t.Error("the guest's write is lost")
	}
}

// What cannot come back is told all at once; nothing is lost by trying.
func TestStateReports(t *testing.T) {
	d := survivor(t, folder(t))
	for _, name := range []string{"a", "b", "c"} {
		image(t, d.path(name), 1<<20, 0)
		d.do("blockdev-add", args{"driver": "file", "node-name": name, "filename": d.path(name)})
	}
	d.serve()
	d.do("block-export-add", args{"type": "nbd", "id": "e", "node-name": "b"})
	d.do("block-export-add", args{"type": "nbd", "id": "f", "node-name": "c"})
	d.crash()
	must(t, os.Remove(d.path("a")))
	must(t, os.Truncate(d.path("b"), 4096))
	words := []string{"node a", "No such file", d.path("a"), "node b", "has 4096 bytes, and it had 1048576"}
	stored, err := os.ReadFile(d.path("state/state"))
	must(t, err)
	failsWith(t, d.dir, nil, words...)
	failsWith(t, d.dir, []string{"--blockdev", "null-co,node-name=c"}, append(words, "node c", "another definition")...)
	still, err := os.ReadFile(d.path("state/state"))
	must(t, err)
	differ(t, string(stored), string(still))

	d = survivor(t, d.dir, "--restore=best-effort")
	for _, w := range append(words, "export e", "state.ignored-1") {
		if !strings.Contains(d.stderr.String(), w) {
			t.Errorf("it does not log %q", w)
		}
	}
	d.guest("c")
	other := launch(t, d.dir, "--state-dir", d.path("state"))
	<-other.exited
	if other.status = 0; !strings.Contains(other.stderr.String(), fmt.Sprintf("in use by the process %d", d.pid)) {
		t.Errorf("a second daemon says %s", other.stderr.String())
	}
	d.crash()
	d = survivor(t, d.dir, "--restore=ignore", "--blockdev", "file,node-name=c,filename=c")
	if all := d.everything(); strings.Contains(all, `"id": "f"`) {
		t.Errorf("something was restored: %s", all)
	}
	d.crash()
	d = survivor(t, d.dir, "--blockdev", "file,node-name=c,filename=c") // nothing was made
	d.crash()
	kept, err := os.ReadFile(d.path("state/state.ignored-1"))
	must(t, err)
	differ(t, string(stored), string(kept))

	must(t, os.WriteFile(d.path("state/state"), stored[:len(stored)-1], 0o600))
	failsWith(t, d.dir, nil, d.path("state/state"), "cut off")
	must(t, os.WriteFile(d.path("state/state"), bytes.Replace(stored, []byte("node-name"), []byte("mode-name"), 1), 0o600))
	failsWith(t, d.dir, nil, d.path("state/state"), "CRC32C")
}

// Guests with a client that waits see a pause and no error when the daemon dies and comes back.
func TestStateGuestsWait(t *testing.T) {
	d := survivor(t, folder(t))
	image(t, d.path("a.img"), 4<<20, 0)
	d.do("blockdev-add", args{"driver": "file", "node-name": "a", "filename": d.path("a.img")})
	d.serve()
	d.export("a")
	near := start(t)
	near.do("blockdev-add", args{"driver": "nbd", "node-name": "far", "export": "a", "reconnect-delay": 60,
		"server": args{"type": "unix", "path": d.path("nbd")}})
	near.export("far")
	g := near.guest("far")
	for round := range 3 {
		data := bytes.Repeat([]byte{byte(round + 1)}, 4096)
		d.crash()
		done := make(chan error, 1)
		go func() { done <- g.WriteAt(t.Context(), data, uint64(round)*4096, 0) }()
		near.wait("BLOCK_NODE_CONNECTION", args{"state": "waiting"})
		d = survivor(t, d.dir)
		must(t, <-done)
		got := make([]byte, len(data))
		must(t, g.ReadAt(t.Context(), got, uint64(round)*4096))
		if !bytes.Equal(got, data) {
			t.Error("the write is not there")
		}
	}
}

// So does QEMU's client.
func TestStateQEMUWaits(t *testing.T) {
	d := survivor(t, folder(t))
	image(t, d.path("a.img"), 4<<20, 0)
	d.do("blockdev-add", args{"driver": "file", "node-name": "a", "filename": d.path("a.img")})
	d.serve()
	d.export("a")
	cmd := exec.CommandContext(t.Context(), "qemu-io", "--image-opts",
		"driver=nbd,export=a,reconnect-delay=60,server.type=unix,server.path="+d.path("nbd"))
	in, err := cmd.StdinPipe()
	must(t, err)
	var out output
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Skipf("no qemu-io: %v", err)
	}
	say := func(command, answer string, count int) {
		t.Helper()
		_, err := fmt.Fprintln(in, command)
		must(t, err)
		eventually(t, answer+" in "+out.String(), func() bool { return strings.Count(out.String(), answer) == count })
	}
	say("write -P 7 0 64k", "wrote 65536/65536", 1)
	d.crash()
	_, err = fmt.Fprintln(in, "write -P 8 64k 64k") // it waits
	must(t, err)
	survivor(t, d.dir)
	say("read -P 7 0 64k", "read 65536/65536", 1)
	say("read -P 8 64k 64k", "read 65536/65536", 2)
	must(t, in.Close())
	must(t, cmd.Wait())
	if text := out.String(); strings.Contains(text, "error") || strings.Contains(text, "failed") || strings.Count(text, "wrote") != 2 {
		t.Errorf("qemu-io says %s", text)
	}
}

// Whenever the daemon is killed, what it answered is there, and nothing else but what was asked last.
func TestStateKilledAnytime(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	d := survivor(t, folder(t))
	nodes := map[string]bool{}
	for round := range 15 {
		kill := time.AfterFunc(time.Duration(random.IntN(30))*time.Millisecond, func() { _ = syscall.Kill(d.pid, syscall.SIGKILL) })
		last := ""
		for {
			last = fmt.Sprint("n", random.IntN(20))
			var err error
			if nodes[last] {
				err = d.try("blockdev-del", args{"node-name": last})
			} else {
				err = d.try("blockdev-add", args{"driver": "null-co", "node-name": last})
			}
			if err != nil {
				break // it is dead
			}
			nodes[last] = !nodes[last]
		}
		if kill.Stop() {
			t.Fatalf("a command for node %s failed", last)
		}
		d.crash()
		d = survivor(t, d.dir)
		var list []struct {
			Name string `json:"node-name"`
		}
		must(t, d.query("query-named-block-nodes", nil, &list))
		found := map[string]bool{}
		for _, n := range list {
			found[n.Name] = true
		}
		for i := range 20 {
			if name := fmt.Sprint("n", i); found[name] != nodes[name] && name != last {
				t.Fatalf("round %d: node %s: %v, but the answers say %v", round, name, found[name], nodes[name])
			}
		}
		nodes = found
	}
}
