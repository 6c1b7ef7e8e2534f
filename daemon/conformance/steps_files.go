// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
)

// atLeast splits a step's words and complains if there are too few.
func atLeast(count int, rest, usage string) ([]string, error) {
	found := strings.Fields(rest)
	if len(found) < count {
		return nil, fmt.Errorf("usage: %s", usage)
	}
	return found, nil
}

// doImage makes a raw file.
func doImage(_ context.Context, r *run, rest string) ([]Outcome, error) {
	words, err := atLeast(2, rest, "image NAME SIZE [falloc|full] [OFFSET,LENGTH=BYTE ...]")
	if err != nil {
		return nil, err
	}
	size, err := parseSize(words[1])
	if err != nil {
		return nil, err
	}
	file, err := os.Create(r.path(words[0]))
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if err := file.Truncate(size); err != nil {
		return nil, err
	}
	for _, word := range words[2:] {
		if err := fillImage(file, size, word); err != nil {
			return nil, fmt.Errorf("image %s: %w", words[0], err)
		}
	}
	return nil, file.Close()
}

func fillImage(file *os.File, size int64, word string) error {
	switch word {
	case "falloc":
		return syscall.Fallocate(int(file.Fd()), 0, 0, size)
	case "full":
		return fill(file, filledExtent{extent{0, size}, 0})
	}
	part, err := parseFilledExtent(word)
	if err != nil {
		return err
	}
	return fill(file, part)
}

func fill(file *os.File, part filledExtent) error {
	const piece = 1 << 20
	block := bytes.Repeat([]byte{part.fill}, int(min(piece, part.length)))
	for part.length > 0 {
		n, err := file.WriteAt(block[:min(piece, part.length)], part.offset)
		if err != nil {
			return err
		}
		part.offset, part.length = part.offset+int64(n), part.length-int64(n)
	}
	return nil
}

// doQcow2 makes a qcow2 file with QEMU's own programs.
func doQcow2(ctx context.Context, r *run, rest string) ([]Outcome, error) {
	words, err := atLeast(2, rest, "qcow2 NAME SIZE [backing=NAME:FORMAT] [OFFSET,LENGTH=BYTE ...]")
	if err != nil {
		return nil, err
	}
	size, err := parseSize(words[1])
	if err != nil {
		return nil, err
	}
	image, parts := r.path(words[0]), words[2:]
	create := []string{"create", "-q", "-f", "qcow2"}
	if len(parts) > 0 && strings.HasPrefix(parts[0], "backing=") {
		backing, format, ok := strings.Cut(strings.TrimPrefix(parts[0], "backing="), ":")
		if !ok {
			return nil, fmt.Errorf("not backing=NAME:FORMAT: %q", parts[0])
		}
		create, parts = append(create, "-b", r.path(backing), "-F", format), parts[1:]
	}
	if err := tool(ctx, "qemu-img", append(create, image, strconv.FormatInt(size, 10))...); err != nil {
		return nil, err
	}
	for _, word := range parts {
		part, err := parseFilledExtent(word)
		if err != nil {
			return nil, err
		}
		write := fmt.Sprintf("write -P %d %d %d", part.fill, part.offset, part.length)
		if err := tool(ctx, "qemu-io", "-f", "qcow2", "-c", write, image); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

func tool(ctx context.Context, name string, arguments ...string) error {
	output, err := exec.CommandContext(ctx, name, arguments...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(arguments, " "), err, bytes.TrimSpace(output))
	}
	return nil
}

// doContent describes the bytes of a file, or of a part of it.
func doContent(_ context.Context, r *run, rest string) ([]Outcome, error) {
	args, err := atLeast(1, rest, "content NAME [OFFSET,LENGTH]")
	if err != nil {
		return nil, err
	}
	where := extent{0, 1 << 62}
	if len(args) > 1 {
		if where, err = parseExtent(args[1]); err != nil {
			return nil, err
		}
	}
	data, err := readPart(r.path(args[0]), where)
	if err != nil {
		return nil, err
	}
	return []Outcome{words("content %s %s", args[0], describeRuns(data, where.offset))}, nil
}

// readPart reads what there is of a range of a file.
func readPart(path string, where extent) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return io.ReadAll(io.NewSectionReader(file, where.offset, where.length))
}

// doAlloc tells how much of a file is allocated, to the next 64 KiB.
func doAlloc(_ context.Context, r *run, name string) ([]Outcome, error) {
	info, err := os.Stat(r.path(name))
	if err != nil {
		return nil, err
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return nil, fmt.Errorf("no allocated size of %s", name)
	}
	const unit = 64 << 10
	used := (stat.Blocks*512 + unit/2) / unit * unit
	return []Outcome{words("alloc %s %s of %s", name, formatSize(used), formatSize(info.Size()))}, nil
}

// doSame tells whether two files are equal.
func doSame(_ context.Context, r *run, rest string) ([]Outcome, error) {
	args, err := atLeast(2, rest, "same NAME NAME")
	if err != nil {
		return nil, err
	}
	equal, err := sameFiles(r.path(args[0]), r.path(args[1]))
	if err != nil {
		return nil, err
	}
	verdict := "no"
	if equal {
		verdict = "yes"
	}
	return []Outcome{words("same %s %s %s", args[0], args[1], verdict)}, nil
}

func sameFiles(first, second string) (bool, error) {
	a, err := os.Open(first)
	if err != nil {
		return false, err
	}
	defer a.Close()
	b, err := os.Open(second)
	if err != nil {
		return false, err
	}
	defer b.Close()
	bufA, bufB := make([]byte, 1<<20), make([]byte, 1<<20)
	for {
		nA, errA := io.ReadFull(a, bufA)
		nB, errB := io.ReadFull(b, bufB)
		for _, err := range []error{errA, errB} {
			if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
				return false, err
			}
		}
		if !bytes.Equal(bufA[:nA], bufB[:nB]) {
			return false, nil
		}
		if errA != nil { // both ended, as both gave equally much
			return true, nil
		}
	}
}

// doExists tells whether a file is there, and its size.
func doExists(_ context.Context, r *run, name string) ([]Outcome, error) {
	info, err := os.Stat(r.path(name))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return []Outcome{words("exists %s no", name)}, nil
	case err != nil:
		return nil, err
	}
	return []Outcome{words("exists %s %s", name, formatSize(info.Size()))}, nil
}
