// SPDX-License-Identifier: Apache-2.0

// Package result holds what a benchmark measured, and shows it.
//
// A Case is one thing that was measured, such as "1 GiB of random data through the page cache". It has one Row for each
// contender, and a row has one Sample for each run: a value for each Metric. Runs on a machine that does other things,
// too, are disturbed in one direction only, so the best of them is nearest to what the contender can do, and the median
// tells what to expect. Both are shown, and ratios are of the best values unless said otherwise.
//
// The first contender of a report is ours. A ratio is always ours divided by theirs: below 1 is good where less is
// better, above 1 where more is.
package result
