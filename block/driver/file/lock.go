// SPDX-License-Identifier: Apache-2.0

package file

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/blkmirror/blkmirror/block"
)

// Where the lock bytes begin: one byte for each permission that a process uses and one for each that it does not share.
const (
	lockUsed     = 100
	lockUnshared = 200
)

// locks are the permissions that this image is locked for: used, and not shared with others.
type locks struct{ used, unshared block.Perm }

func (l locks) without(other locks) locks {
	return locks{l.used &^ other.used, l.unshared &^ other.unshared}
}

// each calls do for every lock byte, telling its permission and the byte whose holder is in conflict with it.
func (l locks) each(do func(at, opposite int64, perm int) error) error {
	for i := range block.PermNames {
		if l.used&(1<<i) != 0 {
			if err := do(lockUsed+int64(i), lockUnshared+int64(i), i); err != nil {
				return err
			}
		}
		if l.unshared&(1<<i) != 0 {
			if err := do(lockUnshared+int64(i), lockUsed+int64(i), i); err != nil {
				return err
			}
		}
	}
	return nil
}

func lockByte(fd int, kind int16, at int64) error {
	for {
		lock := unix.Flock_t{Type: kind, Whence: unix.SEEK_SET, Start: at, Len: 1}
		if err := unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &lock); err != unix.EINTR {
			return err
		}
	}
}

// heldElsewhere asks whether anybody but fd's open file description has a lock on a byte.
func heldElsewhere(fd int, at int64) (bool, error) {
	lock := unix.Flock_t{Type: unix.F_WRLCK, Whence: unix.SEEK_SET, Start: at, Len: 1}
	err := unix.FcntlFlock(uintptr(fd), unix.F_OFD_GETLK, &lock)
	return lock.Type != unix.F_UNLCK, err
}

func locksWork(fd int) bool {
	_, err := heldElsewhere(fd, lockUsed)
	return err == nil
}

// takeLocks adds locks to those of fd and then looks for conflicts, in this order: of two processes that do it at once,
// at least one sees the other. On failure none of the new locks is left.
func takeLocks(fd int, add locks, name string) error {
	err := add.each(func(at, _ int64, perm int) error {
		if err := lockByte(fd, unix.F_RDLCK, at); err != nil {
			return lockError(at, perm, name, message(err))
		}
		return nil
	})
	if err == nil {
		err = add.each(func(at, opposite int64, perm int) error {
			held, err := heldElsewhere(fd, opposite)
			if err != nil {
				return lockError(at, perm, name, message(err))
			}
			if held {
				return lockError(at, perm, name, fmt.Errorf("Is another process using the image [%s]?", name))
			}
			return nil
		})
	}
	if err != nil {
		dropLocks(fd, add)
	}
	return err
}

func lockError(at int64, perm int, name string, cause error) error {
	shared := ""
	if at >= lockUnshared {
		shared = "shared "
	}
	return &block.Error{Kind: block.KindPermission, Op: block.OpGraph,
		Err: fmt.Errorf("Failed to get %s\"%s\" lock: %w", shared, block.PermNames[perm], cause)}
}

// dropLocks takes locks off. The kernel cannot refuse that.
func dropLocks(fd int, drop locks) {
	_ = drop.each(func(at, _ int64, _ int) error { return lockByte(fd, unix.F_UNLCK, at) })
}

// SetPermissions locks the image for what the users of the node need and do not share, and with AutoReadOnly opens it
// for writing for as long as somebody writes.
func (f *File) SetPermissions(need, share block.Perm) error {
	const writes = block.PermWrite | block.PermWriteUnchanged | block.PermResize
	writable := f.writable
	if f.options.AutoReadOnly && !f.options.ReadOnly {
		writable = need&writes != 0
	}
	was := f.writable
	if writable && !was {
		if err := f.changeAccess(true); err != nil {
			return fmt.Errorf("Could not reopen '%s' for writing: %w", f.options.Filename, message(err))
		}
	}
	if !f.noLocks {
		want := locks{need, block.PermAll &^ share}
		if err := takeLocks(f.fd, want.without(f.held), f.options.Filename); err != nil {
			if f.writable != was {
				_ = f.changeAccess(was) // to stay writable is harmless
			}
			return err
		}
		dropLocks(f.fd, f.held.without(want))
		f.held = want
	}
	if !writable && f.writable {
		_ = f.changeAccess(false)
	}
	return nil
}

// changeAccess puts a description of the file with other access in the place of the present one, under the same
// descriptor, so that requests need not be stopped: each uses the one or the other. The locks are never let go.
func (f *File) changeAccess(writable bool) error {
	fd, err := f.reopen(f.openFlags(writable))
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	err = f.held.each(func(at, _ int64, _ int) error { return lockByte(fd, unix.F_RDLCK, at) })
	for err == nil {
		if err = unix.Dup3(fd, f.fd, unix.O_CLOEXEC); err != unix.EINTR && err != unix.EBUSY {
			break
		}
		err = nil
	}
	if err == nil {
		f.writable = writable
	}
	return err
}
