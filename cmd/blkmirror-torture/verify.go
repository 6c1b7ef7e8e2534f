// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"regexp"
)

// panics is what a Go program prints when it ends as it should not.
var panics = regexp.MustCompile(`(?m)^(panic: |fatal error: |goroutine \d+ |WARNING: DATA RACE|unexpected fault address)`)

// verify reads the images when nobody uses them any more, and what the daemons said.
func (r *round) verify(ctx context.Context) error {
	for _, log := range []string{r.path("daemon.log"), r.path("server.log")} {
		text, err := os.ReadFile(log)
		if err != nil && !os.IsNotExist(err) {
			return err
		}
		if at := panics.FindIndex(text); at != nil {
			return fmt.Errorf("%s has: %s", log, text[at[0]:min(len(text), at[0]+300)])
		}
	}
	source, err := reading(ctx, r.settings, r.sourceFormat, r.path("source"), r.path("source.read"))
	if err != nil {
		return err
	}
	defer source.Close()
	image := r.image
	if r.medium == mediumLoop { // what counts is not in a cache
		if err := r.space.detach(); err != nil {
			return err
		}
		image = r.space.blocks()
	}
	target, err := reading(ctx, r.settings, r.targetFormat, image, r.path("target.read"))
	if err != nil {
		return err
	}
	defer target.Close()
	disk := source
	if r.onTarget {
		disk = target
	}
	check := func(data []byte, off int64) error { return r.model.check(data, off/sectorSize) }
	if err := pieces(disk, r.size, check); err != nil {
		return err
	}
	if r.copied {
		return r.compare(source, target)
	}
	return nil
}

// compare sees that source and target are equal where no guest wrote after the mirror had been told to end.
func (r *round) compare(source, target *os.File) error {
	other := make([]byte, 1<<20)
	compared := int64(0)
	err := pieces(source, r.size, func(data []byte, off int64) error {
		other := other[:len(data)]
		if _, err := io.ReadFull(io.NewSectionReader(target, off, int64(len(other))), other); err != nil {
			return err
		}
		for i := 0; i < len(data); i += sectorSize {
			sector := (off + int64(i)) / sectorSize
			if r.model.marked(sector) {
				continue
			}
			compared += sectorSize
			if !bytes.Equal(data[i:i+sectorSize], other[i:i+sectorSize]) {
				return fmt.Errorf("byte %d: the target is not as the source, and no guest wrote there after the mirror was told to end",
					off+int64(i))
			}
		}
		return nil
	})
	r.counts.add("bytes of copies compared", compared)
	return err
}
