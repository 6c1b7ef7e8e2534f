// SPDX-License-Identifier: Apache-2.0

package intent

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Identity says which disk a disk is. A file or a device of the host is told by device and inode, another disk by its name alone.
type Identity struct {
	Name     [32]byte // SHA-256 of the name of a disk that is no file here
	Device   uint64
	Inode    uint64
	Size     int64     // of the disk that is seen, in bytes
	Modified time.Time // of the file, after an orderly stop
}

// Identify finds out about a disk of size bytes, in a file of the host or under another name, such as a URI. The zero Modified is
// that of a disk that is no file.
func Identify(name string, size int64) (Identity, error) {
	if strings.Contains(name, "://") || name == "" {
		return Identity{Name: sha256.Sum256([]byte(name)), Size: size}, nil
	}
	var s unix.Stat_t
	if err := unix.Stat(name, &s); err != nil {
		return Identity{}, &os.PathError{Op: "stat", Path: name, Err: err}
	}
	i := Identity{Device: s.Dev, Inode: s.Ino, Size: size}
	if s.Mode&unix.S_IFMT == unix.S_IFREG {
		i.Modified = time.Unix(s.Mtim.Unix())
	} else {
		i.Device, i.Inode = s.Rdev, 0 // a device may get another node
	}
	return i, nil
}

// differs says what tells two disks apart; the times count only after an orderly stop.
func (i *Identity) differs(was *Identity, orderly bool) string {
	switch {
	case i.Name != was.Name || i.Device != was.Device || i.Inode != was.Inode:
		return "is another disk than it was"
	case i.Size != was.Size:
		return fmt.Sprintf("has %d bytes, and it had %d", i.Size, was.Size)
	case orderly && !i.Modified.Equal(was.Modified):
		return fmt.Sprintf("was written since the daemon was stopped: it was changed at %s, and should be of %s",
			i.Modified.Format(time.RFC3339Nano), was.Modified.Format(time.RFC3339Nano))
	}
	return ""
}

// encode: name 0, device 32, inode 40, size 48, modified 56 (seconds and 64 nanoseconds since 1970; 72 whether there is one).
func (i *Identity) encode(b []byte) {
	copy(b, i.Name[:])
	le.PutUint64(b[32:], i.Device)
	le.PutUint64(b[40:], i.Inode)
	le.PutUint64(b[48:], uint64(i.Size))
	if !i.Modified.IsZero() {
		le.PutUint64(b[56:], uint64(i.Modified.Unix()))
		le.PutUint64(b[64:], uint64(i.Modified.Nanosecond()))
		b[72] = 1
	}
}

func (i *Identity) decode(b []byte) {
	*i = Identity{Device: le.Uint64(b[32:]), Inode: le.Uint64(b[40:]), Size: int64(le.Uint64(b[48:]))}
	copy(i.Name[:], b)
	if b[72] != 0 {
		i.Modified = time.Unix(int64(le.Uint64(b[56:])), int64(le.Uint64(b[64:])))
	}
}

const bootFile = "/proc/sys/kernel/random/boot_id"

// BootID is what tells this run of the host's kernel from others.
func BootID() (id [16]byte, err error) {
	text, err := os.ReadFile(bootFile)
	if err != nil {
		return id, err
	}
	raw, err := hex.DecodeString(strings.ReplaceAll(strings.TrimSpace(string(text)), "-", ""))
	if err != nil || len(raw) != len(id) {
		return id, fmt.Errorf("%s: '%s' is no boot id", bootFile, text)
	}
	return [16]byte(raw), nil
}
