// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"
	"slices"
)

// stepsOfContext is how many steps are shown before one that differs.
const stepsOfContext = 2

// Compare gives the differences between the recorded outcome and that of a
// run, one element per step carried out, in the manner of a unified diff. It
// is empty if every line is as recorded, or as good.
func Compare(s *Scenario, outcomes [][]Outcome) []string {
	var lines []string
	shown := 0 // steps before this one are printed or passed over
	for i, step := range s.Steps {
		if i >= len(outcomes) {
			lines = append(lines, fmt.Sprintf("@@ line %d: this step and those behind it were not run @@", step.Line))
			break
		}
		difference, same := compareStep(step, outcomes[i])
		if same {
			continue
		}
		first := max(shown, i-stepsOfContext)
		if first > shown || shown == 0 {
			lines = append(lines, fmt.Sprintf("@@ line %d @@", s.Steps[first].Line))
		}
		for _, before := range s.Steps[first:i] {
			lines = append(lines, " "+before.Text)
			for _, outcome := range before.Expected {
				lines = append(lines, " < "+outcome.String())
			}
		}
		lines = append(lines, " "+step.Text)
		lines = append(lines, difference...)
		shown = i + 1
	}
	if len(lines) == 0 {
		return nil
	}
	return slices.Concat([]string{"--- " + s.Name + " (recorded)", "+++ " + s.Name + " (this run)"}, lines)
}

// compareStep aligns recorded and actual lines so that as many as possible
// match, and marks the others.
func compareStep(step Step, actual []Outcome) (lines []string, same bool) {
	expected := step.Expected
	// common[i][j] is how many lines of expected[i:] and actual[j:] match.
	common := make([][]int, len(expected)+1)
	for i := range common {
		common[i] = make([]int, len(actual)+1)
	}
	allows := func(i, j int) bool { return expected[i].Allows(actual[j], step.Filters.Exact) }
	for i := len(expected) - 1; i >= 0; i-- {
		for j := len(actual) - 1; j >= 0; j-- {
			common[i][j] = max(common[i+1][j], common[i][j+1])
			if allows(i, j) {
				common[i][j] = max(common[i][j], common[i+1][j+1]+1)
			}
		}
	}
	same = true
	for i, j := 0, 0; i < len(expected) || j < len(actual); {
		switch {
		case i < len(expected) && j < len(actual) && allows(i, j) && common[i][j] == common[i+1][j+1]+1:
			lines = append(lines, " < "+expected[i].String())
			i, j = i+1, j+1
			continue
		case j == len(actual) || i < len(expected) && common[i+1][j] >= common[i][j+1]:
			lines = append(lines, "-< "+expected[i].String())
			i++
		default:
			lines = append(lines, "+< "+actual[j].String())
			j++
		}
		same = false
	}
	return lines, same
}
