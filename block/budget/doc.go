// SPDX-License-Identifier: Apache-2.0

// Package budget divides memory for buffers between those who need it: connections of clients, and jobs.
//
// A [Budget] is a number of bytes. Whoever uses buffers has an [Account] in it, takes bytes from it before a buffer is
// taken, and gives them back when the buffer is.
//
//	Budget ─┬─ own part of account A   ▓▓░░      never waited for
//	        ├─ own part of account B   ░░░░
//	        └─ shared                  ▓▓▓▓▓▓░░  first come, first served
//
// Every account has a part of its own, large enough for its smallest piece of work. What fits there is granted at once,
// whatever others do, so that nobody waits for somebody who may be waiting for him. What goes beyond comes out of what is
// shared. Two rules divide that:
//
//   - Nobody takes more than is left for others. One account gets half of what is shared at most, two get a third
//     each, and so on; something is always left for one that comes later. Only an account that holds nothing
//     may take all that is left for one request.
//   - Those who must wait are served in the order in which they came. Only an account that waits because it holds
//     too much itself is passed over.
//
// What pools keep of buffers that were given back is not counted; the garbage collector frees it.
package budget
