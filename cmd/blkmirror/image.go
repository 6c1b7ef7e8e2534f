// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/blkmirror/blkmirror/cmd/blkmirror/follow"
	"github.com/blkmirror/blkmirror/qmp/api"
)

// The formats of images.
const (
	formatRaw   = api.BlockdevDriverRaw
	formatQcow2 = api.BlockdevDriverQcow2
)

var formats = []api.BlockdevDriver{formatRaw, formatQcow2}

// formatOf is the format that a file's name promises. What the file begins with is not asked: whoever can write to a raw disk
// could make it look like an image that names other files.
func formatOf(path string) api.BlockdevDriver {
	switch strings.ToLower(filepath.Ext(path)) {
	case ".qcow2", ".qcow", ".qc2":
		return formatQcow2
	}
	return formatRaw
}

// looksLike is the format that the first bytes of an image stand for.
func looksLike(path string) (api.BlockdevDriver, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	start := make([]byte, 4)
	if _, err := io.ReadFull(f, start); err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		return "", fmt.Errorf("'%s': %w", path, err)
	}
	if bytes.Equal(start, []byte("QFI\xfb")) {
		return formatQcow2, nil
	}
	return formatRaw, nil
}

// newImage describes an image that is to be made.
type newImage struct {
	path          string
	format        api.BlockdevDriver
	size          int64
	preallocation api.PreallocMode
	clusterSize   *int64
	backing       string // "" for none
	backingFormat api.BlockdevDriver
}

// create makes the image by jobs of m: the file, and then what the format has in it. A file that is there is emptied; one that
// was not may be left after a failure.
func (i *newImage) create(ctx context.Context, m follow.Monitor) error {
	file := &api.BlockdevCreateOptionsFile{Filename: i.path}
	if i.format == formatRaw {
		file.Size, file.Preallocation = uint64(i.size), i.preallocation
	}
	if err := createJob(ctx, m, api.BlockdevCreateOptions{Driver: api.BlockdevDriverFile, File: file}); err != nil {
		return err
	}
	if i.format == formatRaw {
		return nil
	}
	q := &api.BlockdevCreateOptionsQcow2{Size: uint64(i.size), Preallocation: i.preallocation, BackingFmt: i.backingFormat,
		File: api.BlockdevRef{Definition: fileOptions(i.path)}}
	if i.backing != "" {
		q.BackingFile = &i.backing
	}
	if i.clusterSize != nil {
		q.ClusterSize = ptr(uint64(*i.clusterSize))
	}
	return createJob(ctx, m, api.BlockdevCreateOptions{Driver: formatQcow2, Qcow2: q})
}

// createJob runs a job of type create to its end.
func createJob(ctx context.Context, m follow.Monitor, options api.BlockdevCreateOptions) error {
	id := fmt.Sprintf("create-%d-%d", os.Getpid(), time.Now().UnixNano())
	if err := m.Execute(ctx, "blockdev-create", &api.BlockdevCreateArguments{JobID: id, Options: options}, nil); err != nil {
		return err
	}
	outcome, err := follow.Job(ctx, m, id, follow.Options{Goal: follow.UntilEnd}, nobody{})
	if err != nil {
		return err
	}
	if err := m.Execute(ctx, "job-dismiss", &api.JobDismissArguments{ID: id}, nil); err != nil {
		return err
	}
	if outcome.Result != follow.Completed {
		return errors.New(outcome.Error)
	}
	return nil
}

// nobody observes a job.
type nobody struct{}

func (nobody) Progressed(follow.Sample)                        {}
func (nobody) RequestFailed(time.Time, api.BlockJobErrorEvent) {}

// fileOptions are those of a node for a file or a device.
func fileOptions(path string) *api.BlockdevOptions {
	file := &api.BlockdevOptionsFile{Filename: path}
	if info, err := os.Stat(path); err == nil && info.Mode()&os.ModeDevice != 0 {
		return &api.BlockdevOptions{Driver: api.BlockdevDriverHostDevice, HostDevice: file}
	}
	return &api.BlockdevOptions{Driver: api.BlockdevDriverFile, File: file}
}

// imageOptions are those of a node for an image in a file, with what every thin disk wants.
func imageOptions(node, path string, format api.BlockdevDriver) *api.BlockdevOptions {
	o := &api.BlockdevOptions{Driver: format, NodeName: &node, Discard: api.BlockdevDiscardOptionsUnmap}
	file := api.BlockdevRef{Definition: fileOptions(path)}
	if format == formatQcow2 {
		o.Qcow2 = &api.BlockdevOptionsQcow2{BlockdevOptionsGenericCOWFormat: api.BlockdevOptionsGenericCOWFormat{
			BlockdevOptionsGenericFormat: api.BlockdevOptionsGenericFormat{File: file}}}
	} else {
		o.Raw = &api.BlockdevOptionsRaw{BlockdevOptionsGenericFormat: api.BlockdevOptionsGenericFormat{File: file}}
	}
	return o
}
