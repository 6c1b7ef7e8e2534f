// SPDX-License-Identifier: Apache-2.0

package block

import "strings"

// Perm is a set of permissions on a node. An edge needs some and shares some; everything that one edge needs must be
// shared by every other edge on the same node.
type Perm uint8

// The permissions. Their order is that of the lock bytes on image files.
const (
	PermConsistentRead Perm = 1 << iota // reads that must see a consistent disk
	PermWrite                           // writes that change what is read
	PermWriteUnchanged                  // writes that leave the visible content as it is
	PermResize                          // changes of the size

	PermAll = PermConsistentRead | PermWrite | PermWriteUnchanged | PermResize
)

// PermNames are the names of the permissions in the order of their bits.
var PermNames = [...]string{"consistent read", "write", "write unchanged", "resize"}

func (p Perm) String() string {
	var names []string
	for i, name := range PermNames {
		if p&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return strings.Join(names, ", ")
}
