// SPDX-License-Identifier: Apache-2.0

package images

import (
	"bytes"
	"compress/flate"
	"errors"
	"io"
	"os"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/lima-vm/go-qcow2reader"
	"github.com/lima-vm/go-qcow2reader/image"
	"github.com/lima-vm/go-qcow2reader/image/qcow2"
	"github.com/lima-vm/go-qcow2reader/log"
)

func init() {
	qcow2.SetDecompressor(qcow2.CompressionTypeZlib, func(r io.Reader) (io.ReadCloser, error) {
		return whole{flate.NewReader(r)}, nil
	})
	qcow2.SetDecompressor(qcow2.CompressionTypeZstd, func(r io.Reader) (io.ReadCloser, error) {
		d, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, err
		}
		return whole{d.IOReadCloser()}, nil
	})
	log.SetWarnFunc(func(string) {}) // what is experimental there is not what is tested here
}

// whole gives as much as it is asked for: the reader of images takes the end of a cluster for an error if it comes with data.
type whole struct{ io.ReadCloser }

func (w whole) Read(p []byte) (int, error) { return io.ReadFull(w.ReadCloser, p) }

// readElsewhere reads an image with go-qcow2reader, if it can read it: it knows no external data files.
func readElsewhere(t *testing.T, path string, want []byte) {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	i, err := qcow2reader.OpenWithType(padded{f}, qcow2.Type)
	must(t, err)
	defer func() { _ = i.Close() }()
	switch err := i.Readable(); {
	case errors.Is(err, qcow2.ErrUnsupportedFeature):
		return
	case err != nil:
		t.Fatalf("go-qcow2reader: %v", err)
	}
	got, err := all(i)
	must(t, err)
	same(t, "go-qcow2reader", got, want)
}

// padded is a file that goes on with zeroes: an image may end within its last cluster.
type padded struct{ *os.File }

func (p padded) ReadAt(b []byte, off int64) (int, error) {
	n, err := p.File.ReadAt(b, off)
	if err == io.EOF {
		clear(b[n:])
		n, err = len(b), nil
	}
	return n, err
}

func all(i image.Image) ([]byte, error) {
	var b bytes.Buffer
	_, err := io.Copy(&b, io.NewSectionReader(i, 0, i.Size()))
	return b.Bytes(), err
}
