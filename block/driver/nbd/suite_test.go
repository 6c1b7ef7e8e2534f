// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"testing"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/blocktest"
)

func TestSuiteWithOurServer(t *testing.T) {
	for _, c := range []struct {
		name string
		mem  blocktest.MemOptions
		o    Options
	}{
		{name: "plain"},
		{name: "many connections", o: Options{Connections: 4}},
		{name: "reconnecting", o: Options{ReconnectDelay: patience}},
		{name: "server without zeroes", mem: blocktest.MemOptions{NoZeroes: true, NoDiscard: true, NoStatus: true}},
		{name: "garbage behind discards", mem: blocktest.MemOptions{OnDiscard: blocktest.DiscardGarbage}},
		{name: "small extents", mem: blocktest.MemOptions{StatusMost: 3000}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var h *house
			blocktest.TestDriver(t, blocktest.Suite{
				Open: func(t *testing.T, size int64) block.Driver {
					c.mem.Size = size
					h = newHouse(t, c.mem)
					return open(t, h.with(c.o))
				},
				Reopen: func(t *testing.T) block.Driver { return open(t, h.with(c.o)) },
			})
		})
	}
}

// with is the way to the house with other options.
func (h *house) with(o Options) Options {
	o.Server, o.Export = h.options().Server, "d"
	return o
}
