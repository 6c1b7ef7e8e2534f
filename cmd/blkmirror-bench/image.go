// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	kib = int64(1) << 10
	mib = int64(1) << 20
	gib = int64(1) << 30
)

// makeSparse makes a file of holes.
func makeSparse(path string, size int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Close())
}

// makeImage makes a file of holes and lets fill write to it. What it wrote is on the disk at the end, so that no run is
// disturbed by the kernel's writing it back.
func makeImage(path string, size int64, fill func(f *os.File) error) error {
	if err := makeSparse(path, size); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(fill(f), f.Sync(), f.Close())
}

// randomData fills a range with data that does not repeat.
func randomData(ctx context.Context, f *os.File, offset, length int64, seed uint64) error {
	var key [32]byte
	copy(key[:], fmt.Appendf(nil, "%016x%016x", seed, offset))
	rng := rand.NewChaCha8(key)
	buf := make([]byte, min(length, mib))
	for length > 0 {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		piece := buf[:min(length, int64(len(buf)))]
		rng.Read(piece)
		if _, err := f.WriteAt(piece, offset); err != nil {
			return err
		}
		offset, length = offset+int64(len(piece)), length-int64(len(piece))
	}
	return nil
}

func makeRandom(ctx context.Context, path string, size int64) error {
	return makeImage(path, size, func(f *os.File) error { return randomData(ctx, f, 0, size, 1) })
}

// makeZeroes makes a file of zeroes that were written.
func makeZeroes(ctx context.Context, path string, size int64) error {
	return makeImage(path, size, func(f *os.File) error {
		zeroes := make([]byte, mib)
		for at := int64(0); at < size; at += mib {
			if err := context.Cause(ctx); err != nil {
				return err
			}
			if _, err := f.WriteAt(zeroes[:min(mib, size-at)], at); err != nil {
				return err
			}
		}
		return nil
	})
}

// makeThin makes a thin file: pieces of 64 KiB of data, one at a random place of each of as many equal parts.
func makeThin(ctx context.Context, path string, size int64, pieces int) error {
	const piece = 64 << 10
	rng := rand.New(rand.NewPCG(uint64(size), uint64(pieces)))
	stride := size / int64(pieces) / piece * piece
	if stride == 0 {
		return fmt.Errorf("%d pieces do not fit into %d bytes", pieces, size)
	}
	return makeImage(path, size, func(f *os.File) error {
		for i := range int64(pieces) {
			if err := randomData(ctx, f, i*stride+rng.Int64N(stride/piece)*piece, piece, uint64(i)); err != nil {
				return err
			}
		}
		return nil
	})
}

// allocated is how many bytes a file takes up on its file system.
func allocated(path string) (int64, error) {
	var s unix.Stat_t
	if err := unix.Stat(path, &s); err != nil {
		return 0, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return s.Blocks * 512, nil
}

// extent is a range of bytes.
type extent struct{ offset, end int64 }

// dataExtents are the ranges of a file that are not holes.
func dataExtents(f *os.File, size int64) (found []extent, err error) {
	for at := int64(0); at < size; {
		start, err := f.Seek(at, unix.SEEK_DATA)
		if errors.Is(err, syscall.ENXIO) { // a hole up to the end
			break
		}
		if err != nil {
			return nil, err
		}
		end, err := f.Seek(start, unix.SEEK_HOLE)
		if err != nil {
			return nil, err
		}
		found = append(found, extent{start, min(end, size)})
		at = end
	}
	return found, nil
}

// errDiffers is wrapped by the error for a target that does not read as its source.
var errDiffers = errors.New("THE TARGET DIFFERS FROM THE SOURCE")

// compareRaw reads two files of raw data, wherever one of them has data, and compares them.
func compareRaw(ctx context.Context, a, b string) error {
	fa, err := os.Open(a)
	if err != nil {
		return err
	}
	defer fa.Close()
	fb, err := os.Open(b)
	if err != nil {
		return err
	}
	defer fb.Close()
	sa, err := fa.Stat()
	if err != nil {
		return err
	}
	sb, err := fb.Stat()
	if err != nil {
		return err
	}
	size := sa.Size()
	if sb.Size() != size {
		return fmt.Errorf("%w: %d and %d bytes", errDiffers, size, sb.Size())
	}
	extents, err := dataExtents(fa, size)
	if err != nil {
		return err
	}
	more, err := dataExtents(fb, size)
	if err != nil {
		return err
	}
	extents = append(extents, more...)
	slices.SortFunc(extents, func(x, y extent) int {
		switch {
		case x.offset < y.offset:
			return -1
		case x.offset > y.offset:
			return 1
		default:
			return 0
		}
	})
	bufA, bufB := make([]byte, mib), make([]byte, mib)
	done := int64(0)
	for _, e := range extents {
		for at := max(e.offset, done); at < e.end; {
			if err := context.Cause(ctx); err != nil {
				return err
			}
			n := min(e.end-at, mib)
			if _, err := io.ReadFull(io.NewSectionReader(fa, at, n), bufA[:n]); err != nil {
				return err
			}
			if _, err := io.ReadFull(io.NewSectionReader(fb, at, n), bufB[:n]); err != nil {
				return err
			}
			if !bytes.Equal(bufA[:n], bufB[:n]) {
				return fmt.Errorf("%w: within %d bytes at offset %d", errDiffers, n, at)
			}
			at += n
		}
		done = max(done, e.end)
	}
	return nil
}
