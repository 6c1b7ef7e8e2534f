// SPDX-License-Identifier: Apache-2.0

package blackbox

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/blkmirror/blkmirror/qmp/client"
)

func TestLimits(t *testing.T) {
	dir := folder(t)
	d := launch(t, dir, "--qmp", dir+"/qmp", "--nbd-server", "addr.type=unix,addr.path="+dir+"/nbd",
		"--max-monitor-clients", "2", "--max-monitor-message", "4K", "--max-monitor-depth", "10", "--max-exports", "1", "--max-jobs", "1")
	d.connect()
	second, err := client.Dial(t.Context(), "unix", dir+"/qmp", client.Options{})
	must(t, err)
	if c, err := client.Dial(t.Context(), "unix", dir+"/qmp", client.Options{}); err == nil {
		_ = c.Close()
		t.Error("it took a third client")
	}
	must(t, second.Close())
	eventually(t, "there is room again", func() bool {
		c, err := client.Dial(t.Context(), "unix", dir+"/qmp", client.Options{})
		if err != nil {
			return false
		}
		must(t, c.Close())
		return true
	})
	eventually(t, "its place is free, too", func() bool {
		raw := d.dial("qmp")
		said := bufio.NewReader(raw)
		if line, err := said.ReadString('\n'); err != nil || !strings.Contains(line, `"QMP"`) {
			return false
		}
		for text, want := range map[string]string{strings.Repeat("[", 12) + strings.Repeat("]", 12): "depth limit",
			`{"execute": "` + strings.Repeat("x", 5000) + `"}`: "size limit"} {
			_, err := io.WriteString(raw, text+"\n")
			must(t, err)
			if line, err := said.ReadString('\n'); err != nil || !strings.Contains(line, want) {
				t.Errorf("it said %q, %v", line, err)
			}
		}
		_ = raw.Close()
		return true
	})
	d.disks(4<<20, nil)
	d.refused("block-export-add", args{"type": "nbd", "id": "more", "node-name": "dst"}, "1 exports", "--max-exports")
	d.mirror(nil)
	d.wait("BLOCK_JOB_READY", nil)
	d.refused("blockdev-create", args{"job-id": "c", "options": args{"driver": "file", "filename": dir + "/new", "size": 512}}, "1 jobs", "--max-jobs")
	d.do("block-job-cancel", args{"device": "m"})
	d.wait("JOB_STATUS_CHANGE", args{"status": "null"})
	d.do("blockdev-create", args{"job-id": "c", "options": args{"driver": "file", "filename": dir + "/new", "size": 512}})
	for option, value := range map[string]string{"max-monitor-clients": "0", "max-monitor-message": "65M", "max-monitor-depth": "-1",
		"max-exports": "many", "max-jobs": "0", "max-nodes": "0", "max-nbd-requests": "1025", "max-nbd-request-size": "33M",
		"memory-limit": "1M", "copy-memory": "600M"} {
		if said := fails(t, dir, "--"+option, value); !strings.Contains(said, "--"+option) {
			t.Errorf("--%s %s: %s", option, value, said)
		}
	}
}

func TestMaxNodes(t *testing.T) {
	dir := folder(t)
	d := launch(t, dir, "--qmp", dir+"/qmp", "--max-nodes", "2")
	d.connect()
	add := func(name string) args { return args{"driver": "null-co", "node-name": name} }
	d.do("blockdev-add", add("a"))
	d.do("blockdev-add", args{"driver": "raw", "node-name": "b", "file": "a"})
	d.refused("blockdev-add", add("c"), "2 nodes", "--max-nodes")
	d.do("blockdev-del", args{"node-name": "b"})
	d.refused("blockdev-add", args{"driver": "raw", "node-name": "b", "file": add("inner")}, "2 nodes", "--max-nodes")
	d.do("blockdev-add", add("c"))
}

// Clients are told how much a request may have. That it holds is shown where the server is tested.
func TestNBDRequestLimits(t *testing.T) {
	dir := folder(t)
	d := launch(t, dir, "--qmp", dir+"/qmp", "--nbd-server", "addr.type=unix,addr.path="+dir+"/nbd",
		"--max-nbd-requests", "2", "--max-nbd-request-size", "64K", "--memory-limit", "64M")
	d.connect()
	d.disks(4<<20, nil)
	g := d.guest("src")
	if got := g.Info().BlockSize.Maximum; got != 64<<10 {
		t.Errorf("the server says that %d bytes are the most", got)
	}
	must(t, g.ReadAt(t.Context(), make([]byte, 1<<20), 0)) // in pieces of that
}

// The daemon takes as many descriptors as it may, whatever it was started with.
func TestDescriptorsAreRaised(t *testing.T) {
	const soft = 64
	var l syscall.Rlimit
	must(t, syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l))
	dir := folder(t)
	cmd := exec.Command("sh", "-c", fmt.Sprintf(`ulimit -Sn %d; exec "$@"`, soft), "sh", program, "--qmp", dir+"/qmp")
	must(t, cmd.Start())
	defer func() {
		must(t, cmd.Process.Signal(syscall.SIGTERM))
		must(t, cmd.Wait())
	}()
	d := &daemon{t: t, dir: dir, pid: cmd.Process.Pid, exited: make(chan struct{})}
	d.connect()
	defer d.client.Close()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", d.pid))
	must(t, err)
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "Max open files"); ok {
			f := strings.Fields(rest)
			got, err := strconv.Atoi(f[0])
			must(t, err)
			if most, err := strconv.Atoi(f[1]); err == nil && got < most-1 { // Go's runtime keeps one back, to know its own doing
				t.Errorf("soft limit %d, hard limit %d", got, most)
			}
		}
	}
}
