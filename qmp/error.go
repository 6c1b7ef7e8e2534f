// SPDX-License-Identifier: Apache-2.0

package qmp

import (
	"errors"
	"fmt"
)

// ErrorClass is the part of an error that clients may rely on.
type ErrorClass string

// The classes. Nearly everything is a GenericError.
const (
	GenericError    ErrorClass = "GenericError"
	CommandNotFound ErrorClass = "CommandNotFound"
	DeviceNotActive ErrorClass = "DeviceNotActive"
	DeviceNotFound  ErrorClass = "DeviceNotFound"
	KVMMissingCap   ErrorClass = "KVMMissingCap"
)

// Error is an error as it goes over the wire.
type Error struct {
	Class ErrorClass
	Desc  string
}

// Error returns the text for people.
func (e *Error) Error() string { return e.Desc }

// Errorf returns a GenericError.
func Errorf(format string, args ...any) *Error {
	return ClassErrorf(GenericError, format, args...)
}

// ClassErrorf returns an error of a class.
func ClassErrorf(class ErrorClass, format string, args ...any) *Error {
	return &Error{Class: class, Desc: fmt.Sprintf(format, args...)}
}

// ErrCommandNotFound returns the error for a command that does not exist.
func ErrCommandNotFound(command string) *Error {
	return ClassErrorf(CommandNotFound, "The command %s has not been found", command)
}

// AsError returns err as it should go over the wire: the *Error inside it, or
// else a GenericError with its text.
func AsError(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		if text := err.Error(); text != e.Desc {
			// Somebody wrapped it, to say more.
			return &Error{Class: e.Class, Desc: text}
		}
		return e
	}
	return &Error{Class: GenericError, Desc: err.Error()}
}
