// SPDX-License-Identifier: Apache-2.0

// Package daemon is one running storage daemon: it starts what the command line says, in its order, serves monitors, and
// takes everything down again.
//
//	command line ─► objects, nodes, NBD server, exports, monitors      (one after the other; the first failure ends it)
//	monitors     ─► commands, one at a time ─► handlers
//	quit, signal ─► no more commands ─► jobs ─► exports ─► nodes ─► reply ─► connections
//
// What commands do is in daemon/handlers; how option arguments are read in daemon/options.
package daemon
