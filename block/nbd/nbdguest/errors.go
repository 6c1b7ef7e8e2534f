// SPDX-License-Identifier: Apache-2.0

package nbdguest

import (
	"errors"
	"fmt"
)

// ErrProtocol is wrapped by every error that means that the server broke the
// protocol.
var ErrProtocol = errors.New("NBD protocol violation")

// ErrClosed is what requests end with that were in flight when Close or
// Disconnect ended the connection, or were submitted afterwards.
var ErrClosed = errors.New("NBD connection closed")

func violation(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrProtocol, fmt.Sprintf(format, args...))
}

// Errno is an error number as it travels in NBD replies. The values are the
// protocol's own, whatever the platform's are.
type Errno uint32

// The error numbers that the protocol knows.
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
	EPERM: "EPERM", EIO: "EIO", ENOMEM: "ENOMEM", EINVAL: "EINVAL", ENOSPC: "ENOSPC",
	EOVERFLOW: "EOVERFLOW", ENOTSUP: "ENOTSUP", ESHUTDOWN: "ESHUTDOWN",
}

// Error gives the name, or the number of an errno that the protocol does not
// know.
func (e Errno) Error() string {
	if name, ok := errnoNames[e]; ok {
		return name
	}
	return fmt.Sprintf("errno %d", uint32(e))
}

// ReplyError says that the server refused or failed a request. It unwraps to
// its Errno.
type ReplyError struct {
	Command Command // without its data
	Errno   Errno
	Message string  // the server's words; may be empty
	Offset  *uint64 // where it went wrong, if the server said so
}

func (e *ReplyError) Error() string {
	text := fmt.Sprintf("NBD %s of %d bytes at %d: %v", e.Command.Type, e.Command.Length, e.Command.Offset, e.Errno)
	if e.Offset != nil {
		text += fmt.Sprintf(" at %d", *e.Offset)
	}
	if e.Message != "" {
		text += fmt.Sprintf(" (%s)", e.Message)
	}
	return text
}

func (e *ReplyError) Unwrap() error { return e.Errno }

// OptionErrno is the kind of error a server answers an option with.
type OptionErrno uint32

// Kinds of option errors, without the bit that marks them as errors.
const (
	OptErrUnsupported  OptionErrno = 1
	OptErrPolicy       OptionErrno = 2
	OptErrInvalid      OptionErrno = 3
	OptErrPlatform     OptionErrno = 4
	OptErrTLSRequired  OptionErrno = 5
	OptErrUnknown      OptionErrno = 6 // no such export
	OptErrShutdown     OptionErrno = 7
	OptErrBlockSizeReq OptionErrno = 8
	OptErrTooBig       OptionErrno = 9
)

var optionErrnoNames = map[OptionErrno]string{
	OptErrUnsupported: "unsupported", OptErrPolicy: "forbidden by policy", OptErrInvalid: "invalid",
	OptErrPlatform: "not on this platform", OptErrTLSRequired: "TLS required", OptErrUnknown: "unknown export",
	OptErrShutdown: "server is shutting down", OptErrBlockSizeReq: "block sizes must be asked for",
	OptErrTooBig: "too big",
}

func (e OptionErrno) Error() string {
	if name, ok := optionErrnoNames[e]; ok {
		return name
	}
	return fmt.Sprintf("option error %d", uint32(e))
}

// OptionError says that the server refused an option. It unwraps to its
// OptionErrno. After it the handshake can go on.
type OptionError struct {
	Option  Option
	Errno   OptionErrno
	Message string // the server's words; may be empty
}

func (e *OptionError) Error() string {
	if e.Message != "" {
		return fmt.Sprintf("NBD %v refused: %v (%s)", e.Option, e.Errno, e.Message)
	}
	return fmt.Sprintf("NBD %v refused: %v", e.Option, e.Errno)
}

func (e *OptionError) Unwrap() error { return e.Errno }
