// SPDX-License-Identifier: Apache-2.0

package handlers

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/blkmirror/blkmirror/qmp/api"
)

// writeImage makes an empty qcow2 image of 1 MiB that names a backing file, with its format or "" for none.
func writeImage(t *testing.T, path, backing, format string) {
	t.Helper()
	const cluster = 65536
	b := make([]byte, 4*cluster)
	be := binary.BigEndian
	be.PutUint32(b[0:], 0x514649fb)
	be.PutUint32(b[4:], 3)
	be.PutUint32(b[20:], 16)
	be.PutUint64(b[24:], 1<<20)
	be.PutUint32(b[36:], 1)
	be.PutUint64(b[40:], 3*cluster) // L1 table
	be.PutUint64(b[48:], cluster)   // refcount table
	be.PutUint32(b[56:], 1)
	be.PutUint32(b[96:], 4) // refcounts of 16 bits
	be.PutUint32(b[100:], 104)
	at := 104
	if format != "" {
		be.PutUint32(b[at:], 0xe2792aca)
		be.PutUint32(b[at+4:], uint32(len(format)))
		copy(b[at+8:], format)
		at += 8 + (len(format)+7)&^7
	}
	at += 8 // the end of the extensions
	if backing != "" {
		be.PutUint64(b[8:], uint64(at))
		be.PutUint32(b[16:], uint32(len(backing)))
		copy(b[at:], backing)
	}
	be.PutUint64(b[cluster:], 2*cluster)
	for i := range 4 {
		be.PutUint16(b[2*cluster+2*i:], 1)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func writeRaw(t *testing.T, path string) {
	t.Helper()
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
}

// nodes describes all nodes: name, driver and file name.
func nodes(t *testing.T, h *Handlers) map[string]api.BlockDeviceInfo {
	t.Helper()
	list, err := h.QueryNamedBlockNodes(context.Background(), nil)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]api.BlockDeviceInfo{}
	for _, n := range list {
		found[*n.NodeName] = n
	}
	return found
}

// Names in images are relative to the image, have protocols, or are whole definitions.
func TestNamesOfBackingFiles(t *testing.T) {
	dir := t.TempDir()
	sub := filepath.Join(dir, "sub")
	if err := os.Mkdir(sub, 0o700); err != nil {
		t.Fatal(err)
	}
	base, colon := filepath.Join(sub, "base"), filepath.Join(sub, "a:b")
	writeRaw(t, base)
	writeRaw(t, colon)
	for name, want := range map[string]string{
		"base": base, "./base": base, "../sub/base": base, base: base, "file:" + base: base, "./a:b": colon,
		`json:{"driver": "raw", "file": {"driver": "file", "filename": ` + quote(t, base) + `}}`: base,
		`json:{"driver": "file", "filename": ` + quote(t, base) + `}`:                            base,
	} {
		h, do := run(t)
		over := filepath.Join(sub, "over")
		writeImage(t, over, name, "raw")
		if err := do("blockdev-add", `{"driver": "qcow2", "node-name": "s", "file": {"driver": "file", "filename": `+quote(t, over)+`}}`); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		s := nodes(t, h)["s"]
		if s.BackingFile == nil || *s.BackingFile != want || s.BackingFileDepth != 1 || *s.Image.BackingFilename != name {
			t.Errorf("%s: backing file %v, image %+v", name, s.BackingFile, s.Image)
		}
		for _, n := range nodes(t, h) {
			if strings.HasPrefix(*n.NodeName, "#") && !n.Ro && n.File != over {
				t.Errorf("%s: '%s' (%s) of the chain can be written", name, *n.NodeName, n.File)
			}
		}
		if err := do("blockdev-del", `{"node-name": "s"}`); err != nil || len(nodes(t, h)) > 0 {
			t.Errorf("%s: %v, %d nodes are left", name, err, len(nodes(t, h)))
		}
	}
}

// What is wrong with a chain is told with the images that lead there, and leaves no node behind.
func TestBrokenChains(t *testing.T) {
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	writeRaw(t, in("raw"))
	writeImage(t, in("self"), "self", "qcow2")
	writeImage(t, in("a"), "b", "qcow2")
	writeImage(t, in("b"), in("./sub/../c"), "qcow2")
	writeImage(t, in("c"), "hard", "qcow2")
	if err := os.Link(in("a"), in("hard")); err != nil {
		t.Fatal(err)
	}
	writeImage(t, in("missing"), "nowhere", "raw")
	writeImage(t, in("deep"), "missing", "qcow2")
	writeImage(t, in("foreign"), "raw", "vmdk")
	writeImage(t, in("notqcow2"), "raw", "qcow2")
	writeImage(t, in("protocol"), "gopher:x", "raw")
	writeImage(t, in("plain"), "", "")
	writeImage(t, in("trap"), in("raw"), "raw")
	writeImage(t, in("trusting"), "trap", "")
	for i := range maxChain + 1 {
		writeImage(t, in(fmt.Sprintf("l%d", i)), fmt.Sprintf("l%d", i+1), "qcow2")
	}
	for name, want := range map[string]string{
		"self":     "loop",
		"a":        "loop: '" + in("a") + "' → '" + in("b") + "' → '" + in("c") + "' → '" + in("hard") + "'",
		"missing":  "Could not open backing file 'nowhere' of '" + in("missing") + "': ",
		"deep":     "Could not open backing file 'missing' of '" + in("deep") + "': Could not open backing file 'nowhere' of '" + in("missing"),
		"foreign":  "'vmdk' is not supported",
		"notqcow2": "not in qcow2 format",
		"protocol": "Unknown protocol 'gopher'",
		"trusting": "record the format",
		"l0":       "more than 200 images",
	} {
		h, do := run(t)
		err := do("blockdev-add", `{"driver": "qcow2", "node-name": "s", "file": {"driver": "file", "filename": `+quote(t, in(name))+`}}`)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
		if left := nodes(t, h); len(left) > 0 {
			t.Errorf("%s: %d nodes are left", name, len(left))
		}
	}
}

// Where an image does not say what format its backing file has, one that looks like qcow2 may not lead to other files.
func TestProbedFormats(t *testing.T) {
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	writeRaw(t, in("raw"))
	writeImage(t, in("plain"), "", "")
	if err := os.WriteFile(in("empty"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"raw": "raw", "plain": "qcow2", "empty": "raw"} {
		h, do := run(t)
		writeImage(t, in("over"), name, "")
		if err := do("blockdev-add", `{"driver": "qcow2", "node-name": "s", "file": {"driver": "file", "filename": `+quote(t, in("over"))+`}}`); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if image := nodes(t, h)["s"].Image.BackingImage; image == nil || image.Format != want {
			t.Errorf("%s was opened as %+v", name, image)
		}
		if err := do("blockdev-del", `{"node-name": "s"}`); err != nil { // lets go of the image's locks
			t.Fatal(err)
		}
	}
}

// An overlay that could not be put on its disk leaves no file behind, and no node.
func TestFailedSnapshotLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	base, over := filepath.Join(dir, "base"), filepath.Join(dir, "over")
	writeRaw(t, base)
	h, do := run(t)
	if err := do("blockdev-add", `{"driver": "raw", "node-name": "s", "file": {"driver": "file", "filename": `+quote(t, base)+`}}`); err != nil {
		t.Fatal(err)
	}
	before := len(nodes(t, h))
	if err := do("transaction", `{"actions": [{"type": "blockdev-snapshot-sync", "data": {"node-name": "s", "snapshot-node-name": "o",
		"snapshot-file": `+quote(t, over)+`}}, {"type": "abort", "data": {}}]}`); err == nil {
		t.Fatal("abort did not abort")
	}
	if _, err := os.Stat(over); !os.IsNotExist(err) {
		t.Errorf("the file of the overlay: %v", err)
	}
	if after := len(nodes(t, h)); after != before {
		t.Errorf("%d nodes, then %d", before, after)
	}
	if err := do("blockdev-snapshot-sync", `{"node-name": "s", "snapshot-node-name": "o", "snapshot-file": `+quote(t, over)+`}`); err != nil {
		t.Fatal(err)
	}
	if o := nodes(t, h)["o"]; o.BackingFile == nil || *o.BackingFile != base || *o.Image.BackingFilenameFormat != "raw" {
		t.Errorf("the overlay is %+v", o)
	}
	for _, name := range []string{"o", "s"} {
		if err := do("blockdev-del", `{"node-name": "`+name+`"}`); err != nil {
			t.Error(err)
		}
	}
}
