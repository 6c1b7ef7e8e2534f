// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"
)

// The same seed gives the same plan; another one another.
func TestPlanFollowsFromSeed(t *testing.T) {
	can := abilities{qcow2: true, qemuNBD: true, mounts: true}
	seen := map[string]bool{}
	for seed := range uint64(200) {
		a, b := newPlan(seed, can).String(), newPlan(seed, can).String()
		if a != b {
			t.Fatalf("one seed, two plans:\n%s\n%s", a, b)
		}
		seen[a] = true
	}
	if len(seen) < 200 {
		t.Errorf("200 seeds gave %d plans", len(seen))
	}
}

// Every fault that steps can have comes up, and none that the machine or the round has no means for.
func TestPlansHaveAllFaults(t *testing.T) {
	remote := []fault{killTarget, killBoth, freezeTarget, cutLine, cutLate, silentLine, orphans}
	all := append([]fault{killDaemon, stopDaemon, dropGuest, fullTarget, fullState, truncateTarget, deleteTarget, missingTarget, pauseJob,
		changeSpeed, changeMode}, remote...)
	for _, can := range []abilities{{}, {qcow2: true, qemuNBD: true, mounts: true}} {
		seen, ends := map[fault]bool{}, map[string]bool{}
		for seed := range uint64(2000) {
			p := newPlan(seed, can)
			text := p.String()
			if !can.qcow2 && strings.Contains(text, "qcow2") || !can.qemuNBD && p.target == targetQEMU {
				t.Fatalf("this needs what is not there: %s", text)
			}
			for _, st := range append(p.steps, p.after...) {
				seen[st.what] = true
				if st.what == deleteTarget && p.medium == mediumLoop || st.what == fullTarget && p.medium == mediumPlain || st.what == fullState && !p.smallState || st.what == missingTarget && p.target != targetFile {
					t.Fatalf("%s makes no sense: %s", st.what, text)
				}
			}
			ends[p.end] = true
		}
		for _, f := range all {
			if possible := can.mounts || f != fullTarget && f != fullState; seen[f] != possible {
				t.Errorf("with %+v: %s came up: %v", can, f, seen[f])
			}
		}
		if len(ends) != 5 {
			t.Errorf("mirrors end in %d ways", len(ends))
		}
	}
}
