// SPDX-License-Identifier: Apache-2.0

//go:build race

package main

// underRace tells whether the tests, and so the programs, have the race
// detector.
const underRace = true
