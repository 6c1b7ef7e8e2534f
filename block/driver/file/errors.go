// SPDX-License-Identifier: Apache-2.0

package file

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/blkmirror/blkmirror/block"
)

// sysError is an errno as C's library words it, which is what users of QEMU look for: with a capital letter.
type sysError struct{ errno unix.Errno }

func (e sysError) Error() string {
	text := e.errno.Error()
	return strings.ToUpper(text[:1]) + text[1:]
}

func (e sysError) Unwrap() error { return e.errno }

func message(err error) error {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return sysError{errno}
	}
	return err
}

func couldNot(verb, name string, err error) error {
	return fmt.Errorf("Could not %s '%s': %w", verb, name, message(err))
}

func invalid(format string, args ...any) error {
	return &block.Error{Kind: block.KindInvalid, Op: block.OpOpen, Err: fmt.Errorf(format, args...)}
}

func notSupported(format string, args ...any) error {
	return &block.Error{Kind: block.KindNotSupported, Op: block.OpOpen, Err: fmt.Errorf(format, args...)}
}

// unsupported says that the kernel or the file system does not know an operation, or not with these arguments.
func unsupported(err error) bool {
	return err == unix.EOPNOTSUPP || err == unix.ENOSYS || err == unix.EINVAL || err == unix.ENOTTY || err == unix.ENODEV
}
