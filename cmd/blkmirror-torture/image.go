// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"syscall"
)

// makeSource makes the source's image and notes in the journal what is in it.
func makeSource(ctx context.Context, s *settings, p *plan, path string, m *model, random *rand.Rand) error {
	raw := path
	if p.sourceFormat != "raw" {
		raw += ".raw"
		defer os.Remove(raw)
	}
	if err := makeRaw(raw, p.size, p.fill, m, random); err != nil {
		return err
	}
	if p.sourceFormat == "raw" {
		return nil
	}
	return tool(ctx, s.qemuImg, "convert", "-q", "-f", "raw", "-O", p.sourceFormat, raw, path)
}

func makeRaw(path string, size int64, fill string, m *model, random *rand.Rand) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		return err
	}
	sectors := size / sectorSize
	write := func(s span) error {
		c := m.fresh()
		data := make([]byte, s.bytes())
		m.fill(data, s.first, c)
		m.wrote(s, c)
		_, err := f.WriteAt(data, s.offset())
		return err
	}
	switch fill {
	case "full":
		return errors.Join(write(span{0, sectors}), f.Close())
	case "thin":
		for range 20 {
			first := random.Int64N(sectors)
			if err := write(span{first, min(sectors, first+1+random.Int64N(512))}); err != nil {
				return err
			}
		}
	}
	return f.Close()
}

// makeTarget makes an empty image.
func makeTarget(ctx context.Context, s *settings, format, path string, size int64) error {
	if format != "raw" {
		return tool(ctx, s.qemuImg, "create", "-q", "-f", format, path, fmt.Sprint(size))
	}
	return makeHole(path, size)
}

// makeHole makes a file that has nothing but its size.
func makeHole(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Close())
}

// reading gives a file with the content of an image that nobody uses any more, and looks whether the image is in order.
func reading(ctx context.Context, s *settings, format, path, scratch string) (*os.File, error) {
	if format == "raw" {
		return os.Open(path)
	}
	err := tool(ctx, s.qemuImg, "check", "-q", "-f", format, path)
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == 3 {
		err = nil // clusters that nobody uses: what a crash may leave
	}
	if err == nil {
		err = tool(ctx, s.qemuImg, "convert", "-q", "-f", format, "-O", "raw", path, scratch)
	}
	if err != nil {
		return nil, err
	}
	return os.Open(scratch)
}

// pieces calls each with the content of a file, piece by piece, and fails if the file is not as long as it must be.
func pieces(f *os.File, size int64, each func(data []byte, off int64) error) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Size() != size {
		return fmt.Errorf("%s has %d bytes in place of %d", f.Name(), info.Size(), size)
	}
	buffer := make([]byte, 1<<20)
	for off := int64(0); off < size; off += int64(len(buffer)) {
		n := min(int64(len(buffer)), size-off)
		if _, err := io.ReadFull(io.NewSectionReader(f, off, n), buffer[:n]); err != nil {
			return err
		}
		if err := each(buffer[:n], off); err != nil {
			return fmt.Errorf("%s: %w", f.Name(), err)
		}
	}
	return nil
}

// tool runs a program to its end.
func tool(ctx context.Context, program string, arguments ...string) error {
	cmd := exec.CommandContext(ctx, program, arguments...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %v: %w: %s", program, arguments, err, out)
	}
	return nil
}
