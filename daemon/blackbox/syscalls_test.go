// SPDX-License-Identifier: Apache-2.0

package blackbox

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/blkmirror/blkmirror/block/nbd/nbdguest"
)

// tracer is strace on a running daemon.
type tracer struct {
	t   testing.TB
	cmd *exec.Cmd
	log string
}

// trace watches every system call with a descriptor, in all threads that there are and will be.
func (d *daemon) trace() *tracer {
	d.t.Helper()
	tr := &tracer{t: d.t, log: d.path("strace.log")}
	var printed output
	tr.cmd = exec.Command(tool(d.t, "strace"), "-f", "-y", "-e", "trace=%desc", "-o", tr.log, "-p", strconv.Itoa(d.pid))
	tr.cmd.Stderr = &printed
	must(d.t, tr.cmd.Start())
	d.t.Cleanup(func() { tr.end() })
	eventually(d.t, "strace is attached to all threads", func() bool {
		if strings.Contains(printed.String(), "ermitted") {
			d.t.Skipf("strace may not attach: %s", printed.String())
		}
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", d.pid))
		must(d.t, err)
		for _, thread := range threads {
			status, err := os.ReadFile(thread)
			if err == nil && strings.Contains(string(status), "TracerPid:\t0\n") {
				return false
			}
		}
		return len(threads) > 0
	})
	return tr
}

// end lets the daemon go and returns what it called, with names of files in place of descriptors.
func (tr *tracer) end() string {
	if tr.cmd.ProcessState == nil {
		_ = tr.cmd.Process.Signal(syscall.SIGINT)
		_ = tr.cmd.Wait() // it was interrupted
	}
	log, err := os.ReadFile(tr.log)
	must(tr.t, err)
	return string(log)
}

// on lists the calls on a file.
func calls(log, path string) (lines []string) {
	for line := range strings.Lines(log) {
		if strings.Contains(line, "<"+path+">") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

// A write of zeroes that the target reads already costs no system call there.
func TestRedundantZeroCostsNothing(t *testing.T) {
	tool(t, "strace")
	const chunk, size = 64 << 10, 16 << 20
	for _, mode := range []string{"background", "write-blocking"} {
		t.Run(mode, func(t *testing.T) {
			d := start(t)
			_, target := d.disks(size, args{"discard": "unmap"})
			d.mirror(args{"copy-mode": mode})
			d.wait("BLOCK_JOB_READY", nil)
			g := d.guest("src")
			const was, marker = 12 << 20, 15 << 20
			data := []byte(strings.Repeat("data", chunk))
			// Wait until the target has what the guest wrote; in background mode that takes a moment.
			settled := func() {
				eventually(t, "the target has it all", func() bool { j := d.job(); return j.DirtyBytes == 0 && j.Len == j.Offset })
			}
			must(t, g.WriteAt(t.Context(), data, was, 0))
			settled()
			must(t, g.Zero(t.Context(), was, uint32(len(data)), 0))
			settled()

			tr := d.trace()
			for _, z := range []struct {
				off    uint64
				length uint32
				flags  nbdguest.CommandFlags
			}{
				{4 << 20, 1 << 20, 0},                     // never written
				{4 << 20, 1 << 20, nbdguest.NoHole},       // and not to be a hole
				{5<<20 + 4096, 4096, 0},                   // within a chunk that was never written
				{was, uint32(len(data)), 0},               // written, and zeroed since
				{was, uint32(len(data)), nbdguest.NoHole}, // the same
				{was + chunk + 512, 512, 0},               // within a chunk that was zeroed
				{was - 700, 1400, 0},                      // across the end of both kinds
			} {
				must(t, g.Zero(t.Context(), z.off, z.length, z.flags))
			}
			// What the trace would show if it were not so, and the end of what background mode puts off.
			must(t, g.WriteAt(t.Context(), data[:chunk], marker, 0))
			settled()
			found := calls(tr.end(), target)
			if len(found) == 0 {
				t.Fatal("the trace does not even show the data")
			}
			for _, call := range found {
				if !strings.Contains(call, strconv.Itoa(marker)) { // written, or copied by the kernel
					t.Errorf("the target saw %s", call)
				}
			}
		})
	}
}
