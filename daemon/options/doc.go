// SPDX-License-Identifier: Apache-2.0

// Package options reads the arguments of the daemon's options, in the two
// notations that qemu-storage-daemon has:
//
//	--blockdev driver=raw,node-name=r,file.driver=file,file.filename=/a,,b
//	--blockdev '{"driver": "raw", "node-name": "r", "file": "f"}'
//
// The first is a list of keys and values. A dot in a key goes into an object,
// a number after it into a list (x.0=a,x.1=b); two commas are a comma in the
// value. The key of the first item may be left out where an option says so.
// Every value is a string here; what it becomes is up to the schema, which
// knows numbers, sizes (64K) and on and off.
//
// The second is JSON, for everything the first cannot express; it is taken as
// strictly as a command.
//
// Both end in the same generated types as commands do, with the same checks.
// The package opens nothing and knows no defaults.
package options
