// SPDX-License-Identifier: Apache-2.0

package nbdserver

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/blocktest"
)

// tool runs a program of somebody else's against the server.
func (h *house) tool(name string, args ...string) string {
	h.t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		h.t.Skipf("%s is not installed", name)
	}
	cmd := exec.CommandContext(h.bounded(), name, args...)
	cmd.Dir = h.t.TempDir()
	out, err := cmd.CombinedOutput()
	if err != nil {
		h.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// newTool runs a program that speaks extended headers, from the system in $PEER_ROOT, which must share the folder of
// temporary files with this one, or a new enough one from here.
func (h *house) newTool(name string, args ...string) string {
	h.t.Helper()
	if root := os.Getenv("PEER_ROOT"); root != "" {
		return h.tool("chroot", append([]string{root, name}, args...)...)
	}
	out, err := exec.CommandContext(h.bounded(), "nbdinfo", "--version").Output()
	var major, minor int
	if _, scanErr := fmt.Sscanf(string(out), "nbdinfo %d.%d", &major, &minor); err != nil || scanErr != nil || major == 1 && minor < 18 {
		h.t.Skip("needs libnbd 1.18 or newer for extended headers, here or in the system that $PEER_ROOT names")
	}
	return h.tool(name, args...)
}

// TestNewTools has programs that ask for extended headers and for the contexts of QEMU look at an export.
func TestNewTools(t *testing.T) {
	h := newHouse(t, Options{MaxConnections: 100})
	var bitmap *block.DirtyBitmap
	blocktest.Change(t, h.graph, func(tx *block.Tx) (err error) {
		bitmap, err = tx.AddBitmap(h.node, block.BitmapConfig{Name: "b", Granularity: 64 << 10})
		return err
	})
	h.must(h.server.AddExport(t.Context(), Config{ID: "d", Node: h.node, Writable: true, Description: "words", AllocationDepth: true,
		Bitmaps: []*block.DirtyBitmap{bitmap}}))
	h.must(os.Chmod(h.path, 0o666))
	out := h.newTool("nbdinfo", h.uri("d"))
	for _, want := range []string{"extended", "base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:b", "can_block_status_payload: true",
		"description: words"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in\n%s", want, out)
		}
	}
	h.newTool("qemu-io", "-f", "raw", "-c", "write -P 9 1M 64k", "-c", "read -P 9 1M 64k", "-c", "read -P 0 1536k 512k", h.uri("d"))
	for context, lines := range map[string]int{"base:allocation": 3, "qemu:allocation-depth": 1, "qemu:dirty-bitmap:b": 3} {
		if out := h.newTool("nbdinfo", "--map="+context, h.uri("d")); strings.Count(out, "\n") != lines {
			t.Errorf("the map of %s is\n%s", context, out)
		}
	}
	bitmapOf := "json:{\"driver\":\"nbd\",\"export\":\"d\",\"server\":{\"type\":\"unix\",\"path\":\"" + h.path +
		"\"},\"x-dirty-bitmap\":\"qemu:dirty-bitmap:b\"}"
	if out := h.newTool("qemu-img", "map", "--output=json", bitmapOf); strings.Count(out, "start") != 3 {
		t.Errorf("qemu-img's map of the bitmap is\n%s", out)
	}
	out = h.newTool("nbdsh", "-u", h.uri("d"), "-c", "print(h.get_extended_headers_negotiated())", "-c", "h.zero(1<<20, 3<<20)", "-c", "print(h.pread(131072, 0) == bytearray(131072))",
		"-c", "print(h.pread(131072, 1<<20)[:65537] == b'\\x09'*65536 + b'\\0')")
	if out != "True\nTrue\nTrue\n" {
		t.Errorf("libnbd says %q", out)
	}
	back := filepath.Join(t.TempDir(), "back")
	h.newTool("nbdcopy", h.uri("d"), back)
	got, err := os.ReadFile(back)
	h.must(err)
	if !bytes.Equal(got, h.disk.Bytes()) {
		t.Error("nbdcopy's copy differs")
	}
}

func (h *house) uri(name string) string { return "nbd+unix:///" + name + "?socket=" + h.path }

func TestTools(t *testing.T) {
	t.Run("nbdinfo", func(t *testing.T) {
		h := newHouse(t, Options{MaxConnections: 100})
		h.export("d")
		out := h.tool("nbdinfo", h.uri("d"))
		for _, want := range []string{"newstyle-fixed without TLS, using structured", "can_multi_conn: true", "can_fast_zero: true",
			"base:allocation", "block_size_minimum: 1", "block_size_preferred: 4096", "block_size_maximum: 33554432"} {
			if !strings.Contains(out, want) {
				t.Errorf("%q is not in\n%s", want, out)
			}
		}
		if out := h.tool("nbdinfo", "--list", h.uri("")); !strings.Contains(out, `export="d"`) {
			t.Errorf("the list is\n%s", out)
		}
		h.must(h.node.WriteAt(t.Context(), []byte{1}, 1<<20, 0))
		if out := h.tool("nbdinfo", "--map", h.uri("d")); strings.Count(out, "\n") != 3 {
			t.Errorf("the map is\n%s", out)
		}
	})
	t.Run("nbdcopy", func(t *testing.T) {
		h := newHouse(t, Options{MaxConnections: 100})
		h.export("d")
		want := bytes.Repeat([]byte("0123456789abcdef"), diskSize/16)
		clear(want[1<<20 : 2<<20])
		image := filepath.Join(t.TempDir(), "image")
		h.must(os.WriteFile(image, want, 0o600))
		h.tool("nbdcopy", image, h.uri("d"))
		if !bytes.Equal(h.disk.Bytes(), want) {
			t.Error("the disk differs from what was copied to it")
		}
		back := filepath.Join(t.TempDir(), "back")
		h.tool("nbdcopy", h.uri("d"), back)
		got, err := os.ReadFile(back)
		h.must(err)
		if !bytes.Equal(got, want) {
			t.Error("the copy differs from the disk")
		}
	})
	t.Run("qemu-io", func(t *testing.T) {
		h := newHouse(t, Options{MaxConnections: 100})
		h.export("d")
		out := h.tool("qemu-io", "-f", "raw", "-c", "write -P 17 4097 70000", "-c", "read -P 17 4097 70000", "-c", "write -z -u 8192 4096",
			"-c", "read -P 0 8192 4096", "-c", "discard 64k 4k", "-c", "write -f -P 3 1M 512", "-c", "flush", h.uri("d"))
		if strings.Contains(out, "fail") {
			t.Errorf("qemu-io says\n%s", out)
		}
		if got := h.disk.Bytes(); got[4097] != 17 || got[8192] != 0 || got[8191] != 17 || got[1<<20] != 3 {
			t.Error("the disk differs from what was written")
		}
	})
	for _, depth := range []int{1, 64} {
		t.Run(fmt.Sprintf("fio depth %d", depth), func(t *testing.T) {
			h := newHouse(t, Options{MaxConnections: 100})
			h.node = blocktest.NewNode(t, h.graph, "fio", blocktest.NewMem(blocktest.MemOptions{Size: 16 << 20}), block.Options{})
			h.export("d")
			h.tool("fio", "--name=x", "--ioengine=nbd", "--uri="+h.uri("d"), "--rw=randwrite", "--bsrange=512-64k", "--size=16M",
				fmt.Sprintf("--iodepth=%d", depth), "--verify=crc32c", "--verify_state_save=0")
		})
	}
}
