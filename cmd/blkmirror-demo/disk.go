// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"syscall"
)

// chunk is how much of a file is read at once.
const chunk = 1 << 20

// makeSource makes a thin file with pieces of data of random sizes at random
// places, and notes them in the model. It returns how many bytes they have.
func makeSource(path string, m *model, pieces int, data int64, rng *rand.Rand) (int64, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	sectors := int64(len(m.sectors))
	if err := f.Truncate(sectors * sectorSize); err != nil {
		return 0, err
	}
	// Each piece has a slot of the disk, so that none overlap.
	slot := sectors / int64(pieces)
	mean := data / int64(pieces) / sectorSize
	if mean < 1 || mean > slot {
		return 0, fmt.Errorf("%d pieces of %d bytes in all do not fit on a disk of %d bytes", pieces, data, sectors*sectorSize)
	}
	spread := min(mean, slot-mean+1) // sizes are mean-spread+1 to mean+spread-1
	var written int64
	buf := make([]byte, slot*sectorSize)
	for i := range int64(pieces) {
		length := mean - spread + 1 + rng.Int64N(2*spread-1)
		first := i*slot + rng.Int64N(slot-length+1)
		s := span{first, first + length}
		c := m.fresh()
		m.fill(buf[:s.bytes()], s.first, c)
		if _, err := f.WriteAt(buf[:s.bytes()], s.offset()); err != nil {
			return 0, err
		}
		m.wrote(s, c)
		written += s.bytes()
	}
	return written, f.Close()
}

// makeTarget makes an empty thin file.
func makeTarget(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		return err
	}
	return f.Close()
}

// verify compares a file with the model, all of it.
func verify(path string, m *model) error {
	size := int64(len(m.sectors)) * sectorSize
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if info.Size() != size {
		return fmt.Errorf("%s has %d bytes in place of %d", path, info.Size(), size)
	}
	err = readAll(path, func(data []byte, off int64) error { return m.check(data, off/sectorSize) })
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// fingerprint is a hash over the content of a file, where zeroes count for
// nothing, written or not.
func fingerprint(path string) ([sha256.Size]byte, error) {
	h := sha256.New()
	var zeroes [chunk]byte
	err := readAll(path, func(data []byte, off int64) error {
		if bytes.Equal(data, zeroes[:len(data)]) {
			return nil
		}
		if err := binary.Write(h, binary.LittleEndian, off); err != nil {
			return err
		}
		_, err := h.Write(data)
		return err
	})
	var sum [sha256.Size]byte
	h.Sum(sum[:0])
	return sum, err
}

// readAll reads a file from its beginning to its end.
func readAll(path string, each func(data []byte, off int64) error) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, chunk)
	for off := int64(0); ; {
		n, err := io.ReadFull(f, buf)
		if n > 0 {
			if err := each(buf[:n], off); err != nil {
				return err
			}
			off += int64(n)
		}
		switch err {
		case nil:
		case io.EOF, io.ErrUnexpectedEOF:
			return nil
		default:
			return err
		}
	}
}

// allocated is how many bytes a file takes on its filesystem.
func allocated(path string) (int64, error) {
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		return 0, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return st.Blocks * 512, nil
}
