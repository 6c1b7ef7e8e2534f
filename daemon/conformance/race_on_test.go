// SPDX-License-Identifier: Apache-2.0

//go:build race

package conformance

// underRace tells whether the tests, and so the daemon, have the race detector.
const underRace = true
