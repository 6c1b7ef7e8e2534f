// SPDX-License-Identifier: Apache-2.0

package state

import (
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// folder is what a Dir does with its directory, a step at a time.
type folder interface {
	// create makes or empties a file, writes to it and makes it durable.
	create(name string, content []byte) error
	read(name string, most int64) ([]byte, error)
	// link gives a file a second name, which may be taken by another file.
	link(name, second string) error
	rename(from, to string) error
	remove(name string) error
	names() ([]string, error)
	// sync makes what happened to names durable.
	sync() error
}

// realFolder is a directory of the host.
type realFolder struct {
	path string
	dir  *os.File
}

func (f realFolder) at(name string) string { return f.path + "/" + name }

func (f realFolder) create(name string, content []byte) (err error) {
	file, err := os.OpenFile(f.at(name), os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if closed := file.Close(); err == nil {
			err = closed
		}
	}()
	if _, err := file.Write(content); err != nil {
		return err
	}
	return file.Sync()
}

func (f realFolder) read(name string, most int64) ([]byte, error) {
	file, err := os.OpenFile(f.at(name), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return io.ReadAll(io.LimitReader(file, most+1))
}

func (f realFolder) link(name, second string) error {
	if err := f.remove(second); err != nil && !os.IsNotExist(err) {
		return err
	}
	return os.Link(f.at(name), f.at(second))
}

func (f realFolder) rename(from, to string) error { return os.Rename(f.at(from), f.at(to)) }
func (f realFolder) remove(name string) error     { return os.Remove(f.at(name)) }
func (f realFolder) sync() error                  { return f.dir.Sync() }

func (f realFolder) names() ([]string, error) {
	entries, err := os.ReadDir(f.path)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, err
}
