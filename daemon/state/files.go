// SPDX-License-Identifier: Apache-2.0

package state

import (
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Folder is the directory that a state is kept in. What happens to names is durable after its Sync, what is written to a file after
// that of the file.
type Folder interface {
	// Create makes a file to be written, or empties it.
	Create(name string) (File, error)
	// Make makes a file to be written where none is.
	Make(name string) (File, error)
	// Open opens a file to be read.
	Open(name string) (File, error)
	// Link gives a file a second name, which no file may have.
	Link(name, second string) error
	// Rename gives a file another name, which another file may have had.
	Rename(from, to string) error
	Remove(name string) error
	Names() ([]string, error)
	Sync() error
	Close() error
}

// File is an open file of a [Folder].
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Truncate(size int64) error
	Sync() error
}

// realFolder is a directory of the host.
type realFolder struct {
	path string
	dir  *os.File
}

func (f realFolder) at(name string) string { return f.path + "/" + name }

func (f realFolder) open(name string, flags int) (File, error) {
	file, err := os.OpenFile(f.at(name), flags|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err // not a File of a nil *os.File
	}
	return file, nil
}

func (f realFolder) Create(name string) (File, error) {
	return f.open(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC)
}

func (f realFolder) Make(name string) (File, error) {
	return f.open(name, os.O_RDWR|os.O_CREATE|os.O_EXCL)
}

func (f realFolder) Open(name string) (File, error) {
	return f.open(name, os.O_RDONLY|unix.O_NONBLOCK)
}

func (f realFolder) Link(name, second string) error { return os.Link(f.at(name), f.at(second)) }
func (f realFolder) Rename(from, to string) error   { return os.Rename(f.at(from), f.at(to)) }
func (f realFolder) Remove(name string) error       { return os.Remove(f.at(name)) }
func (f realFolder) Sync() error                    { return f.dir.Sync() }
func (f realFolder) Close() error                   { return f.dir.Close() }

func (f realFolder) Names() ([]string, error) {
	entries, err := os.ReadDir(f.path)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, err
}

// create makes or empties a file, writes to it and makes it durable.
func (d *Dir) create(name string, content []byte) (err error) {
	file, err := d.files.Create(name)
	if err != nil {
		return err
	}
	defer func() {
		if closed := file.Close(); err == nil {
			err = closed
		}
	}()
	if _, err := file.WriteAt(content, 0); err != nil {
		return err
	}
	return file.Sync()
}

// read is what is in a file, or of a longer one most bytes and one more.
func (d *Dir) read(name string, most int64) ([]byte, error) {
	file, err := d.files.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return io.ReadAll(io.NewSectionReader(file, 0, most+1))
}

// relink gives a file a second name, which another file may have.
func (d *Dir) relink(name, second string) error {
	if err := d.files.Remove(second); err != nil && !os.IsNotExist(err) {
		return err
	}
	return d.files.Link(name, second)
}
