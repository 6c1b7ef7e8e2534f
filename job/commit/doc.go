// SPDX-License-Identifier: Apache-2.0

// Package commit moves what the upper layers of a backing chain have into a lower one, and takes the upper ones out of the
// chain.
//
//	before   device ──► overlay ──► top ──► middle ──► base
//	after    device ──► overlay ──────────────────────► base        base has what top and middle had
//
// Both ways of doing so are mirrors of top onto base that copy what is allocated above base; package mirror does the work:
//
//   - If top is the device itself, guests write to it meanwhile: the job becomes ready, keeps up, and waits to be completed; then
//     the users of the device are given the base.
//   - If not, nobody writes to it. The job ends by itself; then the overlay gets base as its backing node, and its image the name
//     of base's.
//
// Data goes to base before the graph changes, so a commit that is cancelled or fails leaves a chain that reads as before.
// While the job runs, nothing but the chain above may look at the nodes from base up to below top: they show a mixture.
package commit
