// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// archive is an initial file system for the kernel, in the "newc" format of cpio that the kernel's documentation specifies
// (driver-api/early-userspace/buffer-format): for each entry the magic and 13 fields of eight hexadecimal digits, the name with
// its final zero, and the content, name and content padded to four bytes.
type archive struct {
	bytes.Buffer
	entries int
}

const (
	modeFolder  = 0o040755
	modeProgram = 0o100755
)

func (a *archive) add(name string, mode int, content []byte) {
	a.entries++
	// Inode, mode, owner, group, links, time, size, four device numbers, length of the name, checksum.
	fields := []int{a.entries, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0}
	a.WriteString("070701")
	for _, field := range fields {
		fmt.Fprintf(a, "%08x", field)
	}
	a.WriteString(name)
	a.WriteByte(0)
	a.pad()
	a.Write(content)
	a.pad()
}

func (a *archive) pad() {
	for a.Len()%4 != 0 {
		a.WriteByte(0)
	}
}

// end finishes the archive.
func (a *archive) end() { a.add("TRAILER!!!", 0, nil) }

// initramfs packs /init and the modules, numbered in the order in which they are loaded.
func initramfs(t *testing.T, init string, modules []string) []byte {
	t.Helper()
	var a archive
	content, err := os.ReadFile(init)
	must(t, err)
	a.add("init", modeProgram, content)
	a.add("modules", modeFolder, nil)
	for i, path := range modules {
		content, err := os.ReadFile(path)
		must(t, err)
		a.add(fmt.Sprintf("modules/%02d-%s", i, filepath.Base(path)), modeProgram, content)
	}
	a.end()
	return a.Bytes()
}

// TestArchive has a foreign program unpack an archive.
func TestArchive(t *testing.T) {
	cpio, err := exec.LookPath("cpio")
	if err != nil {
		t.Skip("cpio is not installed")
	}
	var a archive
	a.add("folder", modeFolder, nil)
	a.add("folder/file", modeProgram, []byte("hello"))
	a.end()
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), cpio, "-i", "--quiet")
	cmd.Dir, cmd.Stdin = dir, &a.Buffer
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Fatalf("cpio: %v %s", err, out)
	}
	content, err := os.ReadFile(filepath.Join(dir, "folder/file"))
	if err != nil || string(content) != "hello" {
		t.Errorf("the file holds %q: %v", content, err)
	}
}
