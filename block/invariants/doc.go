// SPDX-License-Identifier: Apache-2.0

// Package invariants says whether this build checks its own invariants: `go test -tags invariants ./...` does. The checks
// are as dear as they need to be; without the tag [On] is a false constant, so that the compiler leaves them out.
//
//	if invariants.On {
//		p.check()
//	}
package invariants
