// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// kernel is a Linux for the guest.
type kernel struct {
	image   string
	version string
	modules []string // paths, in the order in which they must be loaded
}

// needed are the modules between the processor and the disk.
var needed = []string{"virtio_pci", "virtio_blk"}

// findKernel looks for a kernel whose image can be read and whose modules are there. The last by name in the first folder that
// has one is taken.
func findKernel() (kernel, error) {
	roots := []string{"../../.cache/kernel", "/"}
	if root := os.Getenv("BLKMIRROR_KERNEL"); root != "" {
		roots = []string{root}
	}
	var faults error
	for _, root := range roots {
		images, err := filepath.Glob(filepath.Join(root, "boot/vmlinuz-*"))
		if err != nil {
			return kernel{}, err
		}
		for _, image := range slices.Backward(images) {
			k, err := openKernel(root, image)
			if err == nil {
				return k, nil
			}
			faults = errors.Join(faults, err)
		}
	}
	if faults != nil {
		return kernel{}, faults
	}
	return kernel{}, fmt.Errorf("no kernel is installed (boot/vmlinuz-* below %s)", strings.Join(roots, " or "))
}

func openKernel(root, image string) (kernel, error) {
	k := kernel{image: image, version: strings.TrimPrefix(filepath.Base(image), "vmlinuz-")}
	f, err := os.Open(image)
	if err != nil {
		return kernel{}, err
	}
	_ = f.Close()
	// Debian's newer packages have /lib in /usr.
	var folder string
	for _, lib := range []string{"lib", "usr/lib"} {
		if at := filepath.Join(root, lib, "modules", k.version); isFolder(at) {
			folder = at
		}
	}
	if folder == "" {
		return kernel{}, fmt.Errorf("kernel %s has no modules below %s", k.version, root)
	}
	builtin, err := os.ReadFile(filepath.Join(folder, "modules.builtin"))
	if err != nil {
		return kernel{}, err
	}
	paths := map[string]string{} // by name, with underscores as in dependencies; "" is built in
	for line := range strings.Lines(string(builtin)) {
		paths[moduleName(strings.TrimSpace(line))] = ""
	}
	err = filepath.WalkDir(filepath.Join(folder, "kernel/drivers"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && strings.Contains(d.Name(), ".ko") {
			paths[moduleName(path)] = path
		}
		return err
	})
	if err != nil {
		return kernel{}, err
	}
	for _, name := range needed {
		if err := k.need(name, paths); err != nil {
			return kernel{}, fmt.Errorf("kernel %s: module %s: %w", k.version, name, err)
		}
	}
	return k, nil
}

func isFolder(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

func moduleName(path string) string {
	name, _, _ := strings.Cut(filepath.Base(path), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

// need adds a module to the list, after those that it depends on.
func (k *kernel) need(name string, paths map[string]string) error {
	path, known := paths[name]
	if path == "" || slices.Contains(k.modules, path) {
		if !known {
			return errors.New("not there")
		}
		return nil
	}
	if !strings.HasSuffix(path, ".ko") {
		return fmt.Errorf("%s is compressed", path)
	}
	depends, err := dependencies(path)
	if err != nil {
		return err
	}
	for _, other := range depends {
		if err := k.need(other, paths); err != nil {
			return fmt.Errorf("%s: %w", other, err)
		}
	}
	k.modules = append(k.modules, path)
	return nil
}

// dependencies reads what a module says of itself: strings of name=value that end with a zero.
func dependencies(path string) ([]string, error) {
	f, err := elf.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	section := f.Section(".modinfo")
	if section == nil {
		return nil, fmt.Errorf("%s has no .modinfo", path)
	}
	info, err := section.Data()
	if err != nil {
		return nil, err
	}
	for entry := range bytes.SplitSeq(info, []byte{0}) {
		if list, found := strings.CutPrefix(string(entry), "depends="); found && list != "" {
			return strings.Split(strings.ReplaceAll(list, "-", "_"), ","), nil
		}
	}
	return nil, nil
}

// needKernel finds a kernel, or skips the test.
func needKernel(t *testing.T) kernel {
	t.Helper()
	k, err := findKernel()
	if err != nil {
		t.Skipf("%v; make interop fetches one", err)
	}
	return k
}
