// SPDX-License-Identifier: Apache-2.0

//go:build !invariants

package invariants

// On is whether invariants are checked.
const On = false
