// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"fmt"

	"github.com/blkmirror/blkmirror/block"
)

// Errno is an error as it goes over the wire. It is an error value itself, but for zero, which means success.
type Errno uint32

// The errors that the protocol knows.
const (
	EPERM     Errno = 1
	EIO       Errno = 5
	ENOMEM    Errno = 12
	EINVAL    Errno = 22
	ENOSPC    Errno = 28
	EOVERFLOW Errno = 75
	ENOTSUP   Errno = 95
	ESHUTDOWN Errno = 108
)

var errnoNames = map[Errno]string{
	EPERM: "EPERM", EIO: "EIO", ENOMEM: "ENOMEM", EINVAL: "EINVAL", ENOSPC: "ENOSPC", EOVERFLOW: "EOVERFLOW",
	ENOTSUP: "ENOTSUP", ESHUTDOWN: "ESHUTDOWN",
}

func (e Errno) Error() string {
	if name := errnoNames[e]; name != "" {
		return name
	}
	return fmt.Sprintf("NBD error %d", uint32(e))
}

// kinds is the one table between kinds of failure and errors on the wire. The first row with an error is what it means
// when it comes back.
var kinds = []struct {
	kind  block.Kind
	errno Errno
}{
	{block.KindIO, EIO},
	{block.KindNoSpace, ENOSPC},
	{block.KindInvalid, EINVAL},
	{block.KindPermission, EPERM},
	{block.KindReadOnly, EPERM},
	{block.KindNotSupported, ENOTSUP},
	{block.KindNotFound, EIO},
	{block.KindExists, EIO},
	{block.KindBusy, EIO},
	{block.KindNoMemory, ENOMEM},
	{block.KindShutdown, ESHUTDOWN},
}

// ErrnoOf is the error on the wire for err, 0 for nil.
func ErrnoOf(err error) Errno {
	if err == nil {
		return 0
	}
	kind := block.KindOf(err)
	for _, row := range kinds {
		if row.kind == kind {
			return row.errno
		}
	}
	return EIO
}

// Kind is the kind of failure that a peer told with e. Errors that the protocol does not know are I/O errors.
func (e Errno) Kind() block.Kind {
	if e == EOVERFLOW {
		return block.KindInvalid
	}
	for _, row := range kinds {
		if row.errno == e {
			return row.kind
		}
	}
	return block.KindIO
}
