// SPDX-License-Identifier: Apache-2.0

// Package progress shows how far a job is: as a live bar on a terminal, as
// plain lines where lines are wanted (a log, a pipe), or as JSON lines.
//
// All three are a Display, which is an observer of package follow. A Meter
// turns the samples into figures: a rate and the time left. What counts for
// both is work, that is bytes copied and zeroed; ranges that were skipped
// since the target reads as zeroes there cost nothing, and a rate that counts
// them would promise far too much.
package progress
