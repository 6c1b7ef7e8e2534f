// SPDX-License-Identifier: Apache-2.0

//go:build race

package mirror

// someSchedules is how many random schedules the tests run; the race detector makes each take ten times as long.
const someSchedules = 80

// raceEnabled: the race detector has pools drop what they are given.
const raceEnabled = true
