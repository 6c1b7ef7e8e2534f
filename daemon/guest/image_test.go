// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/blkmirror/blkmirror/daemon/guest/internal/workload"
)

// pieceSectors is how much is read or written at a time.
const pieceSectors = 2048

// create makes the disk as it is before the guest's first operation.
func create(t *testing.T, path string, disk *workload.Disk) {
	t.Helper()
	f, err := os.Create(path)
	must(t, err)
	defer f.Close()
	must(t, f.Truncate(disk.Sectors()*workload.SectorBytes))
	data := make([]byte, pieceSectors*workload.SectorBytes)
	for first := int64(0); first < disk.Sectors(); first += pieceSectors {
		if version := disk.At(first); version != 0 { // data begins and ends at whole MiB
			workload.Fill(data, version, first)
			_, err := f.WriteAt(data, first*workload.SectorBytes)
			must(t, err)
		}
	}
	must(t, f.Sync())
}

// expectation is what may be on a disk that has all operations up to one version, and perhaps some of the later ones.
type expectation struct {
	*workload.Disk                              // with all operations that are certain
	later          map[int64][]workload.Version // further versions that a sector may have
}

// expect is about a disk that has everything up to version certain, and nothing after version possible.
func expect(t *testing.T, seed uint64, size int64, certain, possible workload.Version) expectation {
	t.Helper()
	reach := func(version workload.Version) *workload.Disk {
		disk := workload.New(seed, size)
		for disk.Done() < version {
			disk.Next()
		}
		if disk.Done() != version {
			t.Fatalf("version %d is not the end of a group", version)
		}
		return disk
	}
	e := expectation{reach(certain), map[int64][]workload.Version{}}
	for after := reach(certain); after.Done() < possible; {
		for _, op := range after.Next() {
			for sector := op.First; sector < op.First+op.Count; sector++ {
				e.later[sector] = append(e.later[sector], after.At(sector))
			}
		}
	}
	return e
}

// check reads the disk and compares every sector. It tells how many had one of the later versions.
func (e expectation) check(in io.ReaderAt) (later int, err error) {
	data := make([]byte, pieceSectors*workload.SectorBytes)
	var wrong []string
	total := 0
	for first := int64(0); first < e.Sectors(); first += pieceSectors {
		if _, err := in.ReadAt(data, first*workload.SectorBytes); err != nil {
			return 0, err
		}
		for i := range int64(pieceSectors) {
			version, fault := workload.Identify(data[i*workload.SectorBytes:][:workload.SectorBytes], first+i)
			switch want := e.At(first + i); {
			case fault == nil && version == want:
				continue
			case fault == nil && slices.Contains(e.later[first+i], version):
				later++
				continue
			case fault == nil:
				fault = fmt.Errorf("sector %d has version %d, not %d", first+i, version, want)
				if others := e.later[first+i]; others != nil {
					fault = fmt.Errorf("%w or one of %v", fault, others)
				}
			}
			if total++; len(wrong) < 10 {
				wrong = append(wrong, fault.Error())
			}
		}
	}
	if total > 0 {
		return later, fmt.Errorf("%d sectors are wrong:\n  %s", total, strings.Join(wrong, "\n  "))
	}
	return later, nil
}

// checkFile checks an image.
func (e expectation) checkFile(t *testing.T, what, path string) {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	if info, err := f.Stat(); err != nil || info.Size() != e.Sectors()*workload.SectorBytes {
		t.Errorf("%s: the image has not its size: %v, %v", what, info.Size(), err)
	}
	later, err := e.check(f)
	if err != nil {
		t.Errorf("%s: %v", what, err)
		return
	}
	t.Logf("%s: right up to version %d; %d of %d sectors that were written later have it already",
		what, e.Done(), later, len(e.later))
}

// memory is a disk for the tests of this file.
type memory []byte

func (m memory) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > int64(len(m)) {
		return 0, errors.New("beyond the end")
	}
	return copy(p, m[off:]), nil
}

// TestExpectation: the check accepts what may be, and nothing else.
func TestExpectation(t *testing.T) {
	const seed, size = 5, 32 << 20
	disk := workload.New(seed, size)
	for range 20 {
		disk.Next()
	}
	certain := disk.Done()
	next := disk.Next()
	e := expect(t, seed, size, certain, disk.Done())
	for _, c := range []struct {
		name  string
		spoil func(m memory)
		fault string
	}{
		{"all certain", func(memory) {}, ""},
		{"one later operation", func(m memory) {
			for sector := next[3].First; sector < next[3].First+next[3].Count; sector++ {
				workload.Fill(m[sector*workload.SectorBytes:][:workload.SectorBytes], disk.At(sector), sector)
			}
		}, ""},
		{"a lost write", func(m memory) {
			sector := lastWritten(e, certain)
			workload.Fill(m[sector*workload.SectorBytes:][:workload.SectorBytes], workload.Initial, sector)
		}, "1 sectors are wrong"},
		{"a lost discard", func(m memory) {
			sector := int64(0)
			for e.At(sector) != 0 {
				sector++
			}
			workload.Fill(m[sector*workload.SectorBytes:][:workload.SectorBytes], workload.Initial, sector)
		}, "1 sectors are wrong"},
		{"a torn sector", func(m memory) {
			clear(m[lastWritten(e, certain)*workload.SectorBytes:][:100])
		}, "no record"},
	} {
		m := make(memory, size)
		for sector := range e.Sectors() {
			workload.Fill(m[sector*workload.SectorBytes:][:workload.SectorBytes], e.At(sector), sector)
		}
		c.spoil(m)
		_, err := e.check(m)
		if c.fault == "" && err != nil || c.fault != "" && (err == nil || !strings.Contains(err.Error(), c.fault)) {
			t.Errorf("%s: error %v", c.name, err)
		}
	}
}

// lastWritten finds a sector that the last certain group wrote.
func lastWritten(e expectation, certain workload.Version) int64 {
	sector := int64(0)
	for e.At(sector) <= certain-workload.GroupSize {
		sector++
	}
	return sector
}
