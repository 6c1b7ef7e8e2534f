// SPDX-License-Identifier: Apache-2.0

package state

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	current  = "state"
	next     = "state.new"
	previous = "state.previous"
	ignored  = "state.ignored-"
	contents = "bitmaps-"
	intents  = "intent-"
	lockName = "lock"
)

// Dir is a state directory that this process alone uses. Its methods are not to be called at once.
type Dir struct {
	path     string
	files    Folder
	lock     *os.File // nil if nobody else can have it
	sequence uint64
	body     []byte // of the current state, nil if there is none
	before   []byte // body of the one before it, valid with revert
	revert   bool   // there is a way back to before
	doubtful bool   // it is not known which state a crash would leave
}

// Open locks a state directory, which it makes if it is not there.
func Open(path string) (*Dir, error) {
	path, err := filepath.Abs(path) // the daemon leaves its working directory
	if err != nil {
		return nil, err
	}
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	dir, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	lock, err := takeLock(filepath.Join(path, lockName))
	if err != nil {
		return nil, fmt.Errorf("state directory '%s': %w", path, errors.Join(err, dir.Close()))
	}
	return &Dir{path: path, files: realFolder{path, dir}, lock: lock}, nil
}

// In uses a folder that nobody else has, by the path that errors call it.
func In(path string, f Folder) *Dir { return &Dir{path: path, files: f} }

func takeLock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}); err != nil {
		holder := "another process"
		var pid int
		if text, bad := io.ReadAll(io.LimitReader(f, 32)); bad == nil {
			if _, bad := fmt.Sscan(string(text), &pid); bad == nil {
				holder = fmt.Sprintf("the process %d", pid)
			}
		}
		_ = f.Close()
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
			return nil, fmt.Errorf("it is in use by %s", holder)
		}
		return nil, fmt.Errorf("it cannot be locked: %w", err)
	}
	if err := f.Truncate(0); err == nil {
		_, _ = fmt.Fprintf(f, "%d\n", os.Getpid()) // it is for the error above only; the disk may be full
	}
	return f, nil
}

// Close gives the directory free.
func (d *Dir) Close() error {
	var err error
	if d.lock != nil {
		err = d.lock.Close()
	}
	return errors.Join(err, d.files.Close())
}

// Load reads the state, an empty one if there is none, and makes it durable: if the last process died in the middle of a Save, a host
// that loses power later must not bring back the one before.
func (d *Dir) Load() (*State, error) {
	if err := d.Sync(); err != nil {
		return nil, err
	}
	file, err := d.read(current, maxSize)
	if errors.Is(err, fs.ErrNotExist) {
		return &State{}, nil
	}
	var s *State
	if err == nil && len(file) > maxSize {
		err = fmt.Errorf("it has more than %d bytes", maxSize)
	}
	if err == nil {
		d.sequence, d.body, s, err = decode(file)
	}
	if err != nil {
		return nil, fmt.Errorf("state file '%s/%s': %w", d.path, current, err)
	}
	return s, nil
}

// Save makes s the state, durably, unless it is that already. After an error the state is as before; if even that is not known,
// the error says so, and the next Save writes whatever it is given.
func (d *Dir) Save(s *State) (err error) {
	d.revert = false
	body, err := json.Marshal(s)
	if err != nil {
		return err
	}
	switch {
	case !d.doubtful && (bytes.Equal(body, d.body) || d.body == nil && string(body) == "{}"):
		return nil
	case len(body) > maxSize-1024:
		return fmt.Errorf("cannot record this in '%s': the state would have %d bytes", d.path, len(body))
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("cannot record this in the state directory '%s': %w", d.path, err)
		}
	}()
	if err := d.create(next, encode(d.sequence+1, body)); err != nil {
		_ = d.files.Remove(next) // give a full disk its space back
		return err
	}
	if d.body != nil {
		if err := d.relink(current, previous); err != nil {
			return errors.Join(err, d.files.Remove(next))
		}
	}
	if err := d.files.Rename(next, current); err != nil {
		return errors.Join(err, d.files.Remove(next))
	}
	d.before, d.body, d.revert = d.body, body, !d.doubtful // with a doubtful one there is nothing to go back to
	d.sequence++
	if err := d.files.Sync(); err != nil {
		return errors.Join(err, d.Revert())
	}
	d.doubtful = false
	return nil
}

// Revert takes the last Save back, if that wrote anything. It needs no space on the disk.
func (d *Dir) Revert() error {
	if !d.revert {
		return nil
	}
	d.revert = false
	var err error
	if d.before == nil {
		err = d.files.Remove(current)
	} else {
		err = d.files.Rename(previous, current)
	}
	if err == nil {
		err = d.files.Sync()
	}
	if d.doubtful = err != nil; d.doubtful {
		return fmt.Errorf("and what was recorded before could not be brought back: %w", err)
	}
	d.body = d.before
	return nil
}

// SetAside gives the state another name, under which nobody reads it, and returns that; "" if there is none. With keep, the state
// also stays.
func (d *Dir) SetAside(keep bool) (string, error) {
	names, err := d.files.Names()
	if err != nil {
		return "", err
	}
	taken := map[string]bool{}
	for _, n := range names {
		taken[n] = true
	}
	if !taken[current] {
		return "", nil
	}
	n := 1
	for taken[fmt.Sprint(ignored, n)] {
		n++
	}
	name := fmt.Sprint(ignored, n)
	if keep {
		err = d.relink(current, name)
	} else {
		err = d.files.Rename(current, name)
		d.body = nil
	}
	if err == nil {
		err = d.files.Sync()
	}
	if err != nil {
		return "", fmt.Errorf("state directory '%s': cannot set the state aside: %w", d.path, err)
	}
	return filepath.Join(d.path, name), nil
}

// SaveContents makes a file with the bits of the i-th bitmap, for the next Save to refer to.
func (d *Dir) SaveContents(i int, bits []byte) (*Contents, error) {
	name := fmt.Sprintf("%s%d-%d", contents, d.sequence+1, i)
	if err := d.create(name, bits); err != nil {
		_ = d.files.Remove(name)
		return nil, fmt.Errorf("state directory '%s': %w", d.path, err)
	}
	return &Contents{File: name, Length: int64(len(bits)), CRC32C: crc32.Checksum(bits, castagnoli)}, nil
}

// LoadContents reads the bits of a bitmap.
func (d *Dir) LoadContents(c *Contents) ([]byte, error) {
	fail := func(format string, args ...any) ([]byte, error) {
		return nil, fmt.Errorf("file '%s/%s': %w", d.path, c.File, fmt.Errorf(format, args...))
	}
	if !strings.HasPrefix(c.File, contents) || strings.Contains(c.File, "/") || c.Length < 0 || c.Length > maxBitmap {
		return fail("it cannot be one with a bitmap of %d bytes", c.Length)
	}
	bits, err := d.read(c.File, c.Length)
	switch {
	case err != nil:
		return fail("%w", err)
	case int64(len(bits)) < c.Length:
		return fail("it is cut off: %d bytes of %d are there", len(bits), c.Length)
	case int64(len(bits)) > c.Length:
		return fail("it is damaged: something follows its end at %d", c.Length)
	}
	if crc := crc32.Checksum(bits, castagnoli); crc != c.CRC32C {
		return fail("it is damaged: its CRC32C is %08x and should be %08x", crc, c.CRC32C)
	}
	return bits, nil
}

// DropContents removes the files with bits when no state refers to them any more.
func (d *Dir) DropContents() error {
	names, err := d.files.Names()
	for _, n := range names {
		if strings.HasPrefix(n, contents) {
			err = errors.Join(err, d.files.Remove(n))
		}
	}
	return err
}

// NewIntent finds a name for an intent file that none has.
func (d *Dir) NewIntent() (string, error) {
	names, err := d.files.Names()
	if err != nil {
		return "", fmt.Errorf("state directory '%s': %w", d.path, err)
	}
	for n := 1; ; n++ {
		if name := fmt.Sprint(intents, n); !slices.Contains(names, name) {
			return name, nil
		}
	}
}

// IntentPath is where an intent file of a name is, which must be such a name.
func (d *Dir) IntentPath(name string) (string, error) {
	if !strings.HasPrefix(name, intents) || strings.Contains(name, "/") {
		return "", fmt.Errorf("'%s' is no name of an intent file", name)
	}
	return filepath.Join(d.path, name), nil
}

// MakeIntent makes an intent file of a name that none has.
func (d *Dir) MakeIntent(name string) (File, error) { return d.files.Make(name) }

// OpenIntent opens an intent file of a name to be read.
func (d *Dir) OpenIntent(name string) (File, error) { return d.files.Open(name) }

// DropIntents removes the intent files that are not to be kept, when no state refers to them any more.
func (d *Dir) DropIntents(keep []string) error {
	names, err := d.files.Names()
	for _, n := range names {
		if strings.HasPrefix(n, intents) && !slices.Contains(keep, n) {
			err = errors.Join(err, d.files.Remove(n))
		}
	}
	return err
}

// DropIntent removes one intent file.
func (d *Dir) DropIntent(name string) error { return d.files.Remove(name) }

// Sync makes the names of new files in the directory durable.
func (d *Dir) Sync() error {
	if err := d.files.Sync(); err != nil {
		return fmt.Errorf("state directory '%s': %w", d.path, err)
	}
	return nil
}
