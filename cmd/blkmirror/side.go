// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/blkmirror/blkmirror/block/driver/nbd"
	"github.com/blkmirror/blkmirror/cmd/blkmirror/bytesize"
	"github.com/blkmirror/blkmirror/cmd/blkmirror/follow"
	"github.com/blkmirror/blkmirror/cmd/blkmirror/internal/engine"
	"github.com/blkmirror/blkmirror/qmp/api"
)

// side is what a copy is made from or to.
type side struct {
	name   string // as the user wrote it
	node   string
	kind   sideKind
	path   string // of a file or device, else ""
	tlsDir string
	format api.BlockdevDriver
	size   int64  // of the disk, once it is open
	window bool   // there is more behind that
	before *int64 // bytes allocated before, nil if that cannot be known

	created bool // by this copy
	touched bool // this copy may have written to it
}

type sideKind uint8

const (
	sideMissing sideKind = iota // a file that is not there
	sideFile
	sideDevice
	sideNBD
)

func newSide(node, name string, format api.BlockdevDriver, tlsDir string) (side, error) {
	s := side{name: name, node: node, format: format, tlsDir: tlsDir, kind: sideNBD}
	if nbd.IsURI(name) {
		if _, err := nbd.ParseURI(name); err != nil {
			return s, usage("%v", err)
		}
		if s.format == "" {
			s.format = formatRaw
		}
		return s, nil
	}
	if name == "" {
		return s, usage("the name of the %s is empty", node)
	}
	s.path = name
	if s.format == "" {
		s.format = formatOf(name)
	}
	info, err := os.Stat(name)
	switch {
	case errors.Is(err, os.ErrNotExist):
		if _, err := os.Lstat(name); err == nil {
			return s, fmt.Errorf("'%s' is a symbolic link that leads nowhere", name)
		}
		s.kind, s.before = sideMissing, new(int64)
		return s, nil
	case err != nil:
		return s, err
	case info.Mode().IsRegular():
		s.kind = sideFile
	case info.Mode()&os.ModeDevice != 0 && info.Mode()&os.ModeCharDevice == 0:
		s.kind = sideDevice
	default:
		return s, fmt.Errorf("'%s' is neither a file nor a block device", name)
	}
	s.before = s.allocated()
	return s, nil
}

// checkFormat refuses a source that was taken for raw by its name and begins as a qcow2 image.
func (s *side) checkFormat(said bool) error {
	if s.path == "" || s.format != formatRaw || said {
		return nil
	}
	looks, err := looksLike(s.path)
	if err != nil {
		return err
	}
	if looks == formatQcow2 {
		return usage("'%s' begins as a qcow2 image does: say --source-format qcow2, or raw to copy it as it is", s.name)
	}
	return nil
}

// options are those of the node.
func (s *side) options() *api.BlockdevOptions {
	if s.kind != sideNBD {
		o := imageOptions(s.node, s.path, s.format)
		if s.window {
			o.Raw.Size = &s.size
		}
		return o
	}
	remote := &api.BlockdevOptionsNbd{URI: &s.name}
	if s.tlsDir != "" && s.secure() {
		remote.TLSCreds = ptr(tlsObject)
	}
	below := &api.BlockdevOptions{Driver: api.BlockdevDriverNBD, NBD: remote}
	o := imageOptions(s.node, "", s.format)
	if s.format == formatQcow2 {
		o.Qcow2.File.Definition = below
	} else {
		o.Raw.File.Definition = below
		if s.window {
			o.Raw.Size = &s.size
		}
	}
	return o
}

// readOptions are those of the node for reading alone.
func (s *side) readOptions() *api.BlockdevOptions {
	o := s.options()
	o.ReadOnly = ptr(true)
	return o
}

const tlsObject = "tls0"

func (s *side) secure() bool { return strings.HasPrefix(s.name, "nbds") }

// addSecrets tells an engine of the certificates for a server.
func (s *side) addSecrets(ctx context.Context, e *engine.Engine) error {
	if s.kind != sideNBD || s.tlsDir == "" || !s.secure() {
		return nil
	}
	var there []struct{ Name string }
	if err := e.Execute(ctx, "qom-list", map[string]string{"path": "/objects"}, &there); err != nil {
		return err
	}
	for _, o := range there {
		if o.Name == tlsObject {
			return nil
		}
	}
	return e.Execute(ctx, "object-add", map[string]any{"qom-type": "tls-creds-x509", "id": tlsObject, "dir": s.tlsDir, "endpoint": "client"}, nil)
}

func (s *side) add(ctx context.Context, e *engine.Engine, o *api.BlockdevOptions) (size int64, err error) {
	if err := s.addSecrets(ctx, e); err != nil {
		return 0, fmt.Errorf("'%s': %w", s.name, err)
	}
	if err := e.Execute(ctx, "blockdev-add", o, nil); err != nil {
		return 0, fmt.Errorf("'%s': %w", s.name, err)
	}
	nodes, err := queryNodes(ctx, e)
	if err != nil {
		return 0, err
	}
	n, _ := nodes.find(s.node)
	return n.Image.VirtualSize, nil
}

// openSource opens the node, and returns how large it is.
func (s *side) openSource(ctx context.Context, e *engine.Engine) (int64, error) {
	var err error
	s.size, err = s.add(ctx, e, s.readOptions())
	return s.size, err
}

// openTarget opens the node, makes it first where that is wanted, and tells whether it reads as zeroes.
func (s *side) openTarget(ctx context.Context, e *engine.Engine, size int64, f *copyFlags) (zero bool, err error) {
	if s.kind == sideMissing || s.kind == sideFile {
		return true, s.makeTarget(ctx, e, size, f)
	}
	if s.format != formatRaw {
		return false, usage("'%s' is no file: only raw images are written to it", s.name)
	}
	there, err := s.add(ctx, e, s.options())
	if err != nil {
		return false, err
	}
	if there < size {
		return false, fmt.Errorf("'%s' is too small: it has %s, and %s are needed", s.name, bytesize.Format(there), bytesize.Format(size))
	}
	s.size = size
	if there > size {
		s.window = true
		if err := e.Execute(ctx, "blockdev-del", &api.BlockdevDelArguments{NodeName: s.node}, nil); err != nil {
			return false, err
		}
		if _, err := s.add(ctx, e, s.options()); err != nil {
			return false, err
		}
	}
	r, err := e.Reader(ctx, s.node)
	if err != nil {
		return false, err
	}
	zero, err = r.Zero(ctx)
	if err = errors.Join(err, r.Close(context.WithoutCancel(ctx))); err != nil {
		return false, fmt.Errorf("'%s': %w", s.name, err)
	}
	if !zero && !f.force {
		return false, fmt.Errorf("'%s' may have data in it: --force overwrites them", s.name)
	}
	return zero, nil
}

// makeTarget makes a file, or takes one without data as it is.
func (s *side) makeTarget(ctx context.Context, e *engine.Engine, size int64, f *copyFlags) error {
	fits := false
	if s.kind == sideFile {
		length, data, err := hasData(s.path)
		if err != nil {
			return err
		}
		if data && !f.force {
			return fmt.Errorf("'%s' has data in it: --force overwrites them", s.name)
		}
		fits = !data && length == size && s.format == formatRaw && f.preallocation == ""
	}
	if !fits {
		s.created, s.touched = s.kind == sideMissing, true
		image := newImage{path: s.path, format: s.format, size: size, preallocation: f.preallocation}
		if err := image.create(ctx, follow.Monitor(e)); err != nil {
			return fmt.Errorf("'%s' cannot be made: %w", s.name, err)
		}
	}
	s.kind = sideFile
	o := s.options()
	if !f.offload { // nobody looks at data that the file system copies
		o.DetectZeroes = api.BlockdevDetectZeroesOptionsOn // the target reads as zeroes, so they need not be written
	}
	var err error
	s.size, err = s.add(ctx, e, o)
	return err
}

// hasData tells how long a file is, and whether there is anything but holes in it.
func hasData(path string) (length int64, data bool, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, false, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return 0, false, err
	}
	_, err = unix.Seek(int(f.Fd()), 0, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return info.Size(), false, nil
	}
	return info.Size(), true, nil // or the file system does not tell
}

// allocated is how much space a file takes, nil if that cannot be known.
func (s *side) allocated() *int64 {
	var st unix.Stat_t
	if s.path == "" || s.kind == sideDevice || unix.Stat(s.path, &st) != nil {
		return nil
	}
	return ptr(st.Blocks * 512)
}

// settle makes the name of a new file durable.
func (s *side) settle() error {
	if !s.created {
		return nil
	}
	folder, err := os.Open(filepath.Dir(s.path))
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}

// discard removes a file that the copy made and that is not complete.
func (s *side) discard() error {
	if !s.created {
		return nil
	}
	if err := os.Remove(s.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// freeSpace is what users may still write to the file system of a path, or of the folder that it is to be in.
func freeSpace(path string) (int64, error) {
	var st unix.Statfs_t
	err := unix.Statfs(path, &st)
	if errors.Is(err, unix.ENOENT) {
		err = unix.Statfs(filepath.Dir(path), &st)
	}
	return int64(st.Bavail) * st.Bsize, err
}

// warnOfSpace tells of a target that may not have room. It is no error: what the source has allocated may be zeroes.
func (r *copyRun) warnOfSpace(size int64) {
	if r.dst.path == "" || r.dst.kind == sideDevice {
		return
	}
	need := size
	if a := r.src.allocated(); a != nil {
		need = min(need, *a)
	}
	free, err := freeSpace(r.dst.path)
	if before := r.dst.before; before != nil {
		free += *before
	}
	if err == nil && free < need {
		fmt.Fprintf(r.cli.stderr, "blkmirror: the copy may take %s, and there are %s for it\n", bytesize.Format(need), bytesize.Format(free))
	}
}
