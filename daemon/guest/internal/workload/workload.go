// SPDX-License-Identifier: Apache-2.0

// Package workload says what a guest writes to its disk. It is a function of a seed alone, so that the guest and whoever
// looks at the disk afterwards agree on it without a word about what was written where.
//
// The disk is a row of sectors of 512 bytes. A sector either reads as zeroes or holds the record of the operation that wrote
// it. Operations are numbered; the number is the sector's version, and version 0 is a sector of zeroes. Operations come in
// groups whose ranges do not overlap, so that those of one group may be carried out in any order and at the same time.
package workload

import (
	"fmt"
	"math/rand/v2"
	"slices"
)

const (
	// SectorBytes is the size of a sector.
	SectorBytes = 512
	// GroupSize is the number of operations between two flushes.
	GroupSize = 16
	// Initial is the version of all data that was on the disk before the guest's first operation.
	Initial Version = 1

	sectorsPerMiB = 1 << 20 / SectorBytes
	// alignDiscard is in sectors. A discard is a hint, and what it leaves of a file system's block is not defined.
	alignDiscard = 8
	maxWrite     = 64 << 10 / SectorBytes
	maxClear     = 256 << 10 / SectorBytes
	// hot is the part of the disk that takes half of the operations, so that sectors are written again and again.
	hot = 8 * sectorsPerMiB
)

// Version numbers operations from Initial+1 on.
type Version uint32

// Kind is what an operation does.
type Kind int

// Kinds of operations. All but Write leave zeroes: Discard does where the storage below it frees what it is told to.
const (
	Write   Kind = iota
	Zero         // zeroes that stay allocated
	Punch        // zeroes that need not be allocated
	Discard      // the content is no longer needed
)

// Op is one operation; First and Count are in sectors.
type Op struct {
	Kind         Kind
	Version      Version
	First, Count int64
}

func (o Op) overlaps(p Op) bool { return o.First < p.First+p.Count && p.First < o.First+o.Count }

// Disk is the state of a disk after some groups of operations.
type Disk struct {
	random  *rand.Rand
	sectors []Version
	done    Version
}

// New is a disk before the first operation: every other MiB has data. The size is in bytes, a multiple of 1 MiB and 16 MiB
// at least.
func New(seed uint64, size int64) *Disk {
	d := &Disk{random: rand.New(rand.NewPCG(seed, 0)), sectors: make([]Version, size/SectorBytes), done: Initial}
	for i := range d.sectors {
		if i/sectorsPerMiB%2 == 0 {
			d.sectors[i] = Initial
		}
	}
	return d
}

// Done is the version of the last operation.
func (d *Disk) Done() Version { return d.done }

// Sectors is the size of the disk.
func (d *Disk) Sectors() int64 { return int64(len(d.sectors)) }

// At is the version of a sector.
func (d *Disk) At(sector int64) Version { return d.sectors[sector] }

// Next takes the disk one group of operations further and returns them.
func (d *Disk) Next() []Op {
	group := make([]Op, 0, GroupSize)
	for len(group) < GroupSize {
		op := d.draw()
		if !slices.ContainsFunc(group, op.overlaps) {
			d.done++
			op.Version = d.done
			group = append(group, op)
		}
	}
	for _, op := range group {
		version := op.Version
		if op.Kind != Write {
			version = 0
		}
		for i := range op.Count {
			d.sectors[op.First+i] = version
		}
	}
	return group
}

func (d *Disk) draw() Op {
	op := Op{Count: 1 + d.random.Int64N(maxWrite)}
	if d.random.IntN(4) == 0 {
		op = Op{Kind: Zero + Kind(d.random.IntN(3)), Count: 1 + d.random.Int64N(maxClear)}
	}
	within := d.Sectors()
	if d.random.IntN(2) == 0 {
		within = hot
	}
	op.First = d.random.Int64N(within - maxClear)
	if op.Kind == Discard {
		op.First -= op.First % alignDiscard
		op.Count += alignDiscard - op.Count%alignDiscard
	}
	return op
}

// Check compares what is read from some sectors with the disk.
func (d *Disk) Check(data []byte, first int64) error {
	for i := range int64(len(data)) / SectorBytes {
		got, err := Identify(data[i*SectorBytes:][:SectorBytes], first+i)
		if err != nil {
			return err
		}
		if want := d.sectors[first+i]; got != want {
			return fmt.Errorf("sector %d has version %d, not %d", first+i, got, want)
		}
	}
	return nil
}
