// SPDX-License-Identifier: Apache-2.0

// Package state keeps in a directory what a restart of the daemon brings back. It knows files, not what the definitions in
// them mean.
//
//	state             what there is: one document behind a header with a checksum
//	state.new         the next one while it is written; of no meaning after a crash
//	state.previous    the one before, for the way back; of no meaning after a crash
//	state.ignored-N   one that the operator wanted to be left out, never read again
//	bitmaps-N-I       contents of a dirty bitmap, written at an orderly stop and named by the state that goes with it
//	intent-N          what one mirror or commit has left to do, see package intent
//	lock              locked by the one daemon that uses the directory, with its process id
//
// A state is replaced as a whole: the next one is written beside it, made durable, and given its name, and then the directory is
// made durable. Whatever happens in between leaves the old one or the new one.
package state
