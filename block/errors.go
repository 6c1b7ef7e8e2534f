// SPDX-License-Identifier: Apache-2.0

package block

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"
)

// Kind classifies a failure once; protocols map it to their own codes (a QMP class, an NBD errno).
type Kind uint8

// The kinds of failure.
const (
	KindIO           Kind = iota // the medium or the transport failed
	KindNoSpace                  // no space left where the data should go
	KindInvalid                  // the request makes no sense for this node: range, alignment, value
	KindReadOnly                 // a write to something that is read-only
	KindNotSupported             // the node cannot do this at all
	KindPermission               // another user of the node or the file forbids it
	KindNotFound                 // no such node, file or object
	KindExists                   // the name is taken
	KindBusy                     // in use, so it cannot be changed or removed now
	KindNoMemory                 // a buffer or table of that size cannot be had
	KindShutdown                 // the user of the node is going away
)

var kindNames = [...]string{
	KindIO: "Input/output error", KindNoSpace: "No space left on device", KindInvalid: "Invalid argument",
	KindReadOnly: "Read-only", KindNotSupported: "Operation not supported", KindPermission: "Operation not permitted",
	KindNotFound: "Not found", KindExists: "Already exists", KindBusy: "Busy", KindNoMemory: "Cannot allocate memory",
	KindShutdown: "Shutting down",
}

func (k Kind) String() string { return kindNames[k] }

// Op names the operation that failed.
type Op string

// The operations that errors name.
const (
	OpOpen   Op = "open"
	OpRead   Op = "read"
	OpWrite  Op = "write"
	OpZero   Op = "write-zeroes"
	OpTrim   Op = "discard"
	OpFlush  Op = "flush"
	OpStatus Op = "block-status"
	OpResize Op = "resize"
	OpGraph  Op = "graph"
)

// Error is a failure of the block layer. Node, Off and Len say where, Err why; each fact is printed once.
type Error struct {
	Kind Kind
	Op   Op
	Node string // node name, "" when no node is concerned
	Off  int64  // bytes; meaningful when Len > 0
	Len  int64  // bytes
	Err  error  // cause, may be nil
}

func (e *Error) Error() string {
	text := e.Kind.String()
	if e.Err != nil {
		text = e.Err.Error()
	}
	if e.Op == OpGraph || e.Op == OpOpen {
		return text
	}
	where := string(e.Op)
	if e.Node != "" {
		where += fmt.Sprintf(" of node '%s'", e.Node)
	}
	if e.Len > 0 {
		where += fmt.Sprintf(" at offset %d, length %d", e.Off, e.Len)
	}
	return where + ": " + text
}

func (e *Error) Unwrap() error { return e.Err }

// KindOf returns the kind of err: that of the [Error] in its chain, else what its errno or context error says.
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return kindOfErrno(errno)
	}
	switch {
	case errors.Is(err, context.Canceled):
		return KindShutdown
	case errors.Is(err, fs.ErrNotExist):
		return KindNotFound
	case errors.Is(err, fs.ErrPermission):
		return KindPermission
	}
	return KindIO
}

func kindOfErrno(errno syscall.Errno) Kind {
	switch errno {
	case syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG:
		return KindNoSpace
	case syscall.EINVAL:
		return KindInvalid
	case syscall.EROFS, syscall.EBADF:
		return KindReadOnly
	case syscall.EOPNOTSUPP, syscall.ENOSYS, syscall.ENOTTY:
		return KindNotSupported
	case syscall.EPERM, syscall.EACCES:
		return KindPermission
	case syscall.ENOENT:
		return KindNotFound
	case syscall.EEXIST:
		return KindExists
	case syscall.EBUSY:
		return KindBusy
	case syscall.ENOMEM:
		return KindNoMemory
	case syscall.ESHUTDOWN:
		return KindShutdown
	}
	return KindIO
}

// graphError makes an error of a change of the graph.
func graphError(kind Kind, format string, args ...any) error {
	return &Error{Kind: kind, Op: OpGraph, Err: fmt.Errorf(format, args...)}
}

// NotSupported is what a driver returns for a request that it cannot carry out but that can be done another way; the
// node then takes that way unless [NoFallback] forbids it.
var NotSupported error = &Error{Kind: KindNotSupported, Op: OpGraph}
