// SPDX-License-Identifier: Apache-2.0

// Package trace records single requests in a file, and reads such files. docs/tracing.md has the format.
//
//	requests ──► buffer (bounded) ──► file        a request never waits for the file:
//	               └─ full: counted, and told in the file
//
// A [Recorder] has two buffers: requests fill one while the other is written. The lock that they share is held for a copy of 48 bytes.
package trace
