// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// mountRAM makes a folder in memory within the folder of the run, if we may; otherwise the folder is an ordinary one. Scenarios
// about requests rather than about bulk data have their images there, so that the disk has no say.
func (b *bench) mountRAM() error {
	b.ram = filepath.Join(b.dir, "ram")
	if err := os.Mkdir(b.ram, 0o755); err != nil {
		return err
	}
	size := available() * 6 / 10
	if size < gib || os.Geteuid() != 0 {
		return nil
	}
	if err := unix.Mount("tmpfs", b.ram, "tmpfs", unix.MS_NODEV|unix.MS_NOSUID, fmt.Sprintf("size=%d", size)); err != nil {
		return nil // not allowed here
	}
	b.mounts = append(b.mounts, b.ram)
	return nil
}

// mountXFS makes a file system with reflinks in a file, for a while. The reason why that is not possible is no error.
func (b *bench) mountXFS(ctx context.Context, size int64) (folder, reason string) {
	folder = filepath.Join(b.dir, "xfs")
	image := folder + ".img"
	err := os.Mkdir(folder, 0o755)
	if err == nil {
		err = makeSparse(image, size+512*mib)
	}
	if err == nil {
		_, err = output(ctx, "mkfs.xfs", "-q", "-f", "-m", "reflink=1", image)
	}
	if err == nil {
		if _, err = output(ctx, "mount", "-o", "loop", image, folder); err == nil {
			b.mounts = append(b.mounts, folder)
			return folder, ""
		}
	}
	return "", err.Error()
}

// unmount ends a mount, if it is one of ours.
func (b *bench) unmount(folder string) (err error) {
	for i, m := range b.mounts {
		if m != folder {
			continue
		}
		b.mounts = append(b.mounts[:i:i], b.mounts[i+1:]...)
		// A process that was just killed may still be on its way out.
		for range 20 {
			if err = unix.Unmount(folder, 0); !errors.Is(err, unix.EBUSY) {
				return err
			}
			time.Sleep(50 * time.Millisecond)
		}
		return errors.Join(err, unix.Unmount(folder, unix.MNT_DETACH))
	}
	return nil
}
