// SPDX-License-Identifier: Apache-2.0

// Package throttle slows requests down: a [Group] has limits and any number of 'throttle' nodes share them.
//
// Each limit is a bucket that leaks: a request pours its bytes, or one operation, in, and the bucket empties at the
// average rate. A request passes when the buckets of its direction and those of the total are not overfull; it looks
// only at what went before it, so that the first always passes, however long it is.
//
//	no burst:    the bucket holds what a tenth of a second of the average rate brings
//	with -max:   it holds what -max brings in -max-length seconds; with a length above one second a second bucket, which
//	             leaks at -max, keeps the burst itself at that rate
//
// Reads and writes wait in a line of their own each, first come first served over all nodes of the group. Writes of
// zeroes count as if the zeroes were sent. Discards and flushes never wait, and
// while a node is drained none of its requests does. Time is that of package time alone.
package throttle
