// SPDX-License-Identifier: Apache-2.0

// Package qcow2 reads and writes disk images in the format qcow2, versions 2 and 3.
//
// The source of everything here is the specification that QEMU publishes as docs/interop/qcow2; names of fields are those
// of that text. docs/qcow2.md lists what of it is supported.
package qcow2
