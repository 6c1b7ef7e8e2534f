// SPDX-License-Identifier: Apache-2.0

//go:build !race

package mirror

// someSchedules is how many random schedules the tests run.
const someSchedules = 250

// raceEnabled: the race detector has pools drop what they are given.
const raceEnabled = false
