// SPDX-License-Identifier: Apache-2.0

package file

import (
	"bytes"
	"os"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/blkmirror/blkmirror/block"
)

const (
	exportNeeds  = block.PermConsistentRead | block.PermWrite
	exportShares = block.PermAll &^ block.PermResize
)

// lockedBytes lists the lock bytes that anybody holds on a file.
func lockedBytes(t testing.TB, name string) []int64 {
	t.Helper()
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd)
	var held []int64
	for _, base := range []int64{lockUsed, lockUnshared} {
		for i := range int64(len(block.PermNames)) {
			yes, err := heldElsewhere(fd, base+i)
			must(t, err)
			if yes {
				held = append(held, base+i)
			}
		}
	}
	return held
}

func expectLocks(t testing.TB, name string, want ...int64) {
	t.Helper()
	got := lockedBytes(t, name)
	if len(got) != len(want) {
		t.Fatalf("locked bytes %v, want %v", got, want)
	}
	for i := range got {
		if got[i] != want[i] {
			t.Fatalf("locked bytes %v, want %v", got, want)
		}
	}
}

func TestPermissionsBecomeLocks(t *testing.T) {
	name := newImage(t, t.TempDir(), 4096)
	f := mustOpen(t, Options{Filename: name, Locking: LockingOn})
	expectLocks(t, name)
	must(t, f.SetPermissions(block.PermConsistentRead, exportShares))
	expectLocks(t, name, 100, 203)
	must(t, f.SetPermissions(exportNeeds, exportShares))
	expectLocks(t, name, 100, 101, 203)
	must(t, f.SetPermissions(block.PermWrite, block.PermWriteUnchanged)) // a mirror's target
	expectLocks(t, name, 101, 200, 201, 203)
	must(t, f.SetPermissions(block.PermAll, 0))
	expectLocks(t, name, 100, 101, 102, 103, 200, 201, 202, 203)
	must(t, f.SetPermissions(0, block.PermAll))
	expectLocks(t, name)
	must(t, f.SetPermissions(exportNeeds, exportShares))
	must(t, f.Close())
	expectLocks(t, name)
}

func TestLocksAreNotTakenWhenNotWanted(t *testing.T) {
	name := newImage(t, t.TempDir(), 4096)
	holder := mustOpen(t, Options{Filename: name})
	must(t, holder.SetPermissions(block.PermWrite, 0))
	for _, o := range []Options{{Locking: LockingOff}, {ForceShare: true, ReadOnly: true}} {
		o.Filename = name
		f := mustOpen(t, o)
		must(t, f.SetPermissions(block.PermConsistentRead, 0))
		expectLocks(t, name, 101, 200, 201, 202, 203)
	}
}

// Every need of one conflicts with the same permission unshared by another, in both directions, and the loser keeps
// what it had.
func TestLockConflicts(t *testing.T) {
	name := newImage(t, t.TempDir(), 4096)
	a, b := mustOpen(t, Options{Filename: name}), mustOpen(t, Options{Filename: name})
	for i, permName := range block.PermNames {
		perm := block.Perm(1 << i)
		must(t, b.SetPermissions(0, block.PermAll))
		must(t, a.SetPermissions(0, block.PermAll&^perm))
		err := b.SetPermissions(block.PermAll, block.PermAll)
		want := `Failed to get "` + permName + `" lock: Is another process using the image [` + name + `]?`
		if err == nil || err.Error() != want || block.KindOf(err) != block.KindPermission {
			t.Errorf("%v (%v), want %s", err, block.KindOf(err), want)
		}
		expectLocks(t, name, lockUnshared+int64(i))

		must(t, a.SetPermissions(perm, block.PermAll))
		err = b.SetPermissions(0, 0)
		want = `Failed to get shared "` + permName + `" lock: Is another process using the image [` + name + `]?`
		if err == nil || err.Error() != want {
			t.Errorf("%v, want %s", err, want)
		}
		expectLocks(t, name, lockUsed+int64(i))
		if other := block.PermAll &^ perm; b.SetPermissions(other, block.PermAll) != nil {
			t.Errorf("%s kept others out", permName)
		}
	}
	must(t, a.SetPermissions(0, block.PermAll))
	must(t, b.SetPermissions(block.PermAll, 0))
}

func TestAutoReadOnlyFollowsTheWriters(t *testing.T) {
	name := newImage(t, t.TempDir(), 64<<10)
	f := mustOpen(t, Options{Filename: name, AutoReadOnly: true})
	data := bytes.Repeat([]byte{1}, 512)
	write := func(wantErr bool) {
		t.Helper()
		if err := f.WriteAt(bg, data, 0, 0); (err != nil) != wantErr {
			t.Fatalf("write: %v", err)
		}
	}
	write(true)
	must(t, f.SetPermissions(block.PermConsistentRead, exportShares))
	write(true)
	must(t, os.Rename(name, name+".moved")) // the image is opened again, not its name
	must(t, os.WriteFile(name, nil, 0o600))
	must(t, f.SetPermissions(exportNeeds, exportShares))
	expectLocks(t, name+".moved", 100, 101, 203)
	write(false)
	must(t, f.SetPermissions(block.PermConsistentRead, exportShares))
	expectLocks(t, name+".moved", 100, 203)
	write(true)
	got := make([]byte, 512)
	must(t, f.ReadAt(bg, got, 0))
	if !bytes.Equal(got, data) {
		t.Error("what was written is gone")
	}
	// With both options it stays read-only, and says so.
	ro := mustOpen(t, Options{Filename: name + ".moved", ReadOnly: true, AutoReadOnly: true})
	must(t, ro.SetPermissions(exportNeeds, exportShares))
	if err := ro.WriteAt(bg, data, 0, 0); block.KindOf(err) != block.KindReadOnly {
		t.Errorf("write to a read-only image: %v", err)
	}
}

func TestAutoReadOnlyGoesBackWhenTheLockIsRefused(t *testing.T) {
	name := newImage(t, t.TempDir(), 4096)
	holder, f := mustOpen(t, Options{Filename: name}), mustOpen(t, Options{Filename: name, AutoReadOnly: true})
	must(t, f.SetPermissions(block.PermConsistentRead, exportShares))
	must(t, holder.SetPermissions(0, block.PermAll&^block.PermWrite))
	if err := f.SetPermissions(exportNeeds, exportShares); block.KindOf(err) != block.KindPermission {
		t.Errorf("error %v", err)
	}
	expectLocks(t, name, 100, 201, 203)
	if f.writable {
		t.Error("still open for writing")
	}
}

func TestAutoReadOnlyOnAnImmutableImage(t *testing.T) {
	f := mustOpen(t, Options{Filename: "/proc/self/exe", AutoReadOnly: true}) // a program that runs cannot be written
	must(t, f.SetPermissions(block.PermConsistentRead, exportShares))
	err := f.SetPermissions(exportNeeds, exportShares)
	if err == nil || !strings.HasPrefix(err.Error(), "Could not reopen '/proc/self/exe' for writing: ") {
		t.Fatalf("error %v", err)
	}
	must(t, f.ReadAt(bg, make([]byte, 512), 0))
	if f.held.used != block.PermConsistentRead || f.writable {
		t.Errorf("held %+v, writable %v", f.held, f.writable)
	}
}

// Requests go on while the access changes.
func TestAccessChangesUnderRequests(t *testing.T) {
	f := mustOpen(t, Options{Filename: newImage(t, t.TempDir(), 64<<10), AutoReadOnly: true})
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			b := make([]byte, 4096)
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := f.ReadAt(bg, b, 4096); err != nil {
					t.Error(err)
					return
				}
				if _, err := f.BlockStatus(bg, 0, 4096); err != nil {
					t.Error(err)
					return
				}
				if err := f.Flush(bg); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 200 {
		must(t, f.SetPermissions(exportNeeds, exportShares))
		must(t, f.WriteAt(bg, make([]byte, 512), 0, 0))
		must(t, f.SetPermissions(block.PermConsistentRead, exportShares))
	}
	close(stop)
	wg.Wait()
}
