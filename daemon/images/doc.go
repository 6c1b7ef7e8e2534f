// SPDX-License-Identifier: Apache-2.0

// Package images tests qcow2 images as users meet them: the built daemon opens, creates, writes, mirrors and shortens images,
// and programs that know nothing of this project say whether they are in order and hold what they should.
//
//	qemu-img makes an image ─┐                              ┌─ qemu-img check: in order, at most leaks after a kill
//	blockdev-create makes it ┴► daemon ◄── guest over NBD   ├─ qemu-img compare: it holds what the guest's model says
//	                              │ kill, stop, jobs        └─ go-qcow2reader: reads the same, where it can read it
//	                              ▼
//	                            image
//
// The options of images are a table of dimensions (matrix_test.go). `make test` covers every pair of the more telling values;
// `make interop` sets BLKMIRROR_INTEROP, which covers every pair of all of them, twice. PEER_ROOT names the root of a
// system with newer programs, which shares the folder of temporary files with this one; its qemu-img is one more dimension then.
//
// The guest (guest_test.go) knows for each sector which contents it may have: all since the last flush after a kill, and the
// last one otherwise. -images.seed repeats a run.
//
// The package has nothing but tests.
package images
