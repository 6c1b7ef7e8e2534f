// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"testing"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/blocktest"
)

func TestDriverPassesTheSuite(t *testing.T) {
	for name, c := range variants() {
		t.Run(name, func(t *testing.T) {
			var last *image
			blocktest.TestDriver(t, blocktest.Suite{
				Open: func(t *testing.T, size int64) block.Driver {
					c.Size = size
					last = newImage(t, c, Options{Unmap: true}, nil)
					i := last
					t.Cleanup(func() { i.settled(t) })
					return i.disk
				},
				Reopen: func(t *testing.T) block.Driver {
					data := last.dataMem
					if data != nil {
						data = data.Copy()
					}
					return over(t, last.mem.Copy(), data, Options{Unmap: true}, nil).disk
				},
			})
		})
	}
}
