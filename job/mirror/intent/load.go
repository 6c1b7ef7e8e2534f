// SPDX-License-Identifier: Apache-2.0

package intent

import (
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/blkmirror/blkmirror/block/bitmap"
)

// Expect is what a file has to agree with.
type Expect struct {
	Boot           [16]byte
	Source, Target Identity
}

// Found is what a file says.
type Found struct {
	Phase      Phase // Scanning if nothing can be trusted
	Durability Durability
	// Dirty are the regions that may differ. Nil stands for everything.
	Dirty *bitmap.Bitmap
	// Pass is how far the last comparison of the disks was, with Dirty; nil if there was none.
	Pass *Pass
	// Whys are the reasons why more is dirty than the file's writer said, each with the name of the file. None for a file that is
	// in order, in whatever phase.
	Whys []error
}

// Lost is what a file says that cannot be opened: everything may differ.
func Lost(name string, err error) *Found {
	return &Found{Phase: Scanning, Whys: []error{fmt.Errorf("intent file '%s': %w", name, bare(err))}}
}

// bare is an error of package os without the name of its file.
func bare(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

// Load reads a file, of the name that errors call it. It is never wrong on the side of too little being dirty.
func Load(name string, f io.ReaderAt, want Expect) *Found {
	found := &Found{Phase: Scanning}
	why := func(format string, args ...any) {
		found.Whys = append(found.Whys, fmt.Errorf("intent file '%s': %w", name, fmt.Errorf(format, args...)))
	}
	var b [sector]byte
	if n, err := f.ReadAt(b[:], 0); n < sector {
		if n == 0 && err == io.EOF {
			why("it is empty")
		} else {
			why("its header at offset 0 cannot be read: %w", err)
		}
		return found
	}
	var h header
	if err := h.decode(&b); err != nil {
		why("%w", err)
		return found
	}
	found.Durability = h.durability
	if h.phase == Pivoted || h.phase == Ended {
		found.Phase = h.phase
		return found
	}
	for _, disk := range []struct {
		name     string
		now, was *Identity
	}{{"source", &want.Source, &h.source}, {"target", &want.Target, &h.target}} {
		if d := disk.now.differs(disk.was, h.orderly); d != "" {
			why("the %s %s", disk.name, d)
		}
	}
	if h.size != want.Source.Size {
		why("it is of a disk of %d bytes", h.size)
	}
	if h.durability == Process && h.boot != want.Boot {
		why("the host was started anew since, and durability 'process' does not survive that")
	}
	if len(found.Whys) > 0 || h.phase == Scanning {
		return found
	}
	found.Phase = h.phase
	found.Dirty, _ = bitmap.New(h.size, 1<<h.shift)
	regions := found.Dirty.All().End
	words := make([]uint64, recordWords)
	for i := range recordsFor(regions) {
		first := i * perRecord
		last := min(first+perRecord, regions)
		_, err := f.ReadAt(b[:], recordAt(i))
		if err == nil || err == io.EOF && i == recordsFor(regions)-1 {
			err = decodeRecord(&b, h.id, i, words)
		}
		if err != nil {
			off, n := found.Dirty.Bytes(bitmap.Chunks{First: first, End: last})
			why("its record at offset %d is damaged, so that %d bytes of the disk from %d on count as dirty: %w", recordAt(i), n, off, err)
			found.Dirty.Set(bitmap.Chunks{First: first, End: last})
			continue
		}
		for region := first; region < last; region++ {
			if words[(region-first)/64]>>(uint(region-first)%64)&1 != 0 {
				found.Dirty.Set(bitmap.Chunks{First: region, End: region + 1})
			}
		}
	}
	found.Pass = h.loadPass(f, found.Dirty)
	return found
}
