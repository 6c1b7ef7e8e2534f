// SPDX-License-Identifier: Apache-2.0

// Package stream brings into an image what it has from the layers below it, and takes those out of its backing chain.
//
//	before   guest ──► device ──► middle ──► bottom ──► base
//	after    guest ──► device ────────────────────────► base        device has what middle and bottom had
//
// While the job runs, a filter stands above the device. The job goes over the disk once, piece by piece: where the device has
// nothing of its own and a layer above base has something, it is read and written to the device. Guests go on writing; a
// piece and a guest's write that overlap take turns, and what the device got meanwhile is left alone, so no write is lost.
//
// Each step leaves what the device reads as unchanged. A stream that is cancelled or fails leaves the chain as it was, with more
// of it in the device.
package stream
