// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"time"
)

// fault is what is done to a round at a moment.
type fault string

const (
	killDaemon     fault = "kill daemon"      // SIGKILL, and the same command line again
	stopDaemon     fault = "stop daemon"      // SIGTERM, and the same command line again
	orphans        fault = "kill daemon late" // and what it had sent is carried out when a mirror of its successor is ready
	killTarget     fault = "kill target"      // the server of the target, for a while
	killBoth       fault = "kill both"        // daemon and server
	freezeTarget   fault = "freeze target"    // SIGSTOP and SIGCONT of the server
	cutLine        fault = "cut line"         // between daemon and server, at once
	cutLate        fault = "cut line late"    // the same, and what was sent before is carried out after the next connection
	silentLine     fault = "silent line"      // nothing is carried for a while
	dropGuest      fault = "drop guest"       // a guest's connection ends under its requests
	fullTarget     fault = "full target"      // no space left where the target is, for a while
	fullState      fault = "full state"       // no space left where the state is, for a while
	truncateTarget fault = "truncate target"  // the image becomes shorter; the mirror begins anew
	deleteTarget   fault = "delete target"    // the image is gone; the mirror begins anew on a new one
	missingTarget  fault = "missing target"   // the image is gone when the daemon is started
	pauseJob       fault = "pause job"        // no fault, but it moves the moments of others
	changeSpeed    fault = "change speed"     // the same
	changeMode     fault = "change copy mode" // the same
	failTarget     fault = "target error"     // of a fault node; counted when a job sees it
	failSource     fault = "source error"     // the same
	failGuest      fault = "guest error"      // the same; counted when a guest sees it
	killCompleting fault = "kill completing"  // SIGKILL of the daemon soon after job-complete
)

// Ways in which a mirror ends.
const (
	endComplete = "complete"      // under guests' writes
	endHeld     = "complete held" // while guests hold still
	endKill     = "complete kill" // the daemon dies meanwhile
	endSoft     = "cancel soft"   // the target is a copy of that moment
	endForce    = "cancel force"
)

// step is a fault and its moment.
type step struct {
	after time.Duration // the one before, or the beginning
	ready bool          // but not before the mirror is ready
	what  fault
	lasts time.Duration
	pick  uint64 // which guest, which speed and the like
}

// plan is what a round does. It follows from its seed.
type plan struct {
	seed                       uint64
	size                       int64 // of the disk, bytes
	sourceFormat, targetFormat string
	fill                       string // of the source: thin, full or empty
	target                     string // kind
	connections                int    // to a target's server
	medium                     string // what the target's image lies on
	smallState                 bool   // the state lies on a small file system
	byQMP                      bool   // nodes and exports are made over QMP; else by the command line
	guests, lanes              int
	pause                      time.Duration
	hot                        bool // guests write to the same few places again and again
	mirror                     args
	targetRules, sourceRules   []args
	steps, after               []step
	end                        string
	killAfter                  time.Duration // the daemon, after job-complete
	stop                       string        // how the daemon ends: SIGTERM, quit
}

// A target that says nothing for longSilence keeps no guest waiting for longer than guestLimit while it is not the guest's disk:
// the daemon gives it two seconds, the rest is for a busy machine.
const (
	longSilence = 6 * time.Second
	guestLimit  = 5 * time.Second
)

func pick[T any](random *rand.Rand, from ...T) T { return from[random.IntN(len(from))] }

func between(random *rand.Rand, low, high time.Duration) time.Duration {
	return low + time.Duration(random.Int64N(int64(high-low)))
}

// newPlan makes the plan of a seed. What the machine lacks is left out of what it may draw from, so that the plan depends on
// that, too.
func newPlan(seed uint64, can abilities) *plan {
	random := rand.New(rand.NewPCG(seed, 0x746f7274757265))
	p := &plan{seed: seed}
	p.size = (1<<20 + random.Int64N(15<<20)) &^ (64<<10 - 1)
	p.sourceFormat, p.targetFormat = "raw", "raw"
	if can.qcow2 {
		if random.IntN(4) == 0 {
			p.sourceFormat = "qcow2"
		}
		if random.IntN(4) == 0 {
			p.targetFormat = "qcow2"
		}
	}
	if p.sourceFormat == "raw" && p.targetFormat == "raw" && random.IntN(4) == 0 {
		p.size += random.Int64N(128) * sectorSize
	}
	p.fill = pick(random, "thin", "thin", "full", "empty")
	p.target = pick(random, targetFile, targetOurs)
	if can.qemuNBD {
		p.target = pick(random, targetFile, targetFile, targetOurs, targetOurs, targetQEMU)
	}
	p.connections = 1 + random.IntN(3)
	p.medium = mediumPlain
	if can.mounts && random.IntN(3) == 0 {
		p.medium = pick(random, mediumTmpfs, mediumTmpfs, mediumExt4)
	}
	p.smallState = can.mounts && random.IntN(4) == 0
	p.byQMP = random.IntN(2) == 0
	p.guests, p.lanes = 1+random.IntN(3), 1+random.IntN(4)
	p.pause = between(random, 200*time.Microsecond, 4*time.Millisecond)
	if random.IntN(8) == 0 {
		p.targetRules = rules(random, p.size, "write", "write", "write", "write-zeroes", "flush")
	}
	if random.IntN(12) == 0 {
		p.sourceRules = rules(random, p.size, "read", "write", "flush")
	}
	// An error of its tables may be the end of an image in another format, and is not what is tried here.
	if p.sourceFormat != "raw" {
		p.sourceRules = nil
	}
	if p.targetFormat != "raw" {
		p.targetRules = nil
	}
	p.drawMirror(random)
	p.drawSteps(random)
	p.end = pick(random, endComplete, endComplete, endComplete, endHeld, endHeld, endKill, endKill, endSoft, endForce)
	p.killAfter = time.Duration(random.ExpFloat64() * float64(4*time.Millisecond))
	p.stop = pick(random, "SIGTERM", "quit")
	p.hot = random.IntN(3) == 0
	if p.medium != mediumPlain && p.targetFormat == "raw" && random.IntN(3) == 0 {
		p.medium = mediumLoop
		for i, st := range p.steps {
			switch st.what {
			case truncateTarget, deleteTarget, missingTarget: // of files
				p.steps[i].what = fullTarget
			}
		}
	}
	for i, st := range p.steps {
		if (st.what == freezeTarget || st.what == silentLine) && random.IntN(16) == 0 {
			p.steps[i].lasts = longSilence
		}
	}
	return p
}

// rules are errors of a fault node, each for the first request of its kind that touches a sector.
func rules(random *rand.Rand, size int64, kinds ...string) (r []args) {
	for range 1 + random.IntN(3) {
		rule := args{"event": "none", "iotype": pick(random, kinds...), "errno": 5, "once": true}
		if rule["iotype"] != "flush" {
			rule["sector"] = random.Int64N(size / sectorSize)
		}
		r = append(r, rule)
	}
	return r
}

func (p *plan) drawMirror(random *rand.Rand) {
	p.mirror = args{"job-id": jobID, "device": sourceNode, "target": targetNode, "sync": "full",
		"copy-mode": pick(random, "background", "background", "write-blocking", "write-blocking", "auto")}
	if random.IntN(3) > 0 {
		p.mirror["granularity"] = 512 << random.IntN(12)
	}
	if random.IntN(3) > 0 {
		p.mirror["speed"] = int64(float64(p.size) / between(random, 100*time.Millisecond, 500*time.Millisecond).Seconds())
	}
	if random.IntN(2) == 0 {
		p.mirror["buf-size"] = 64 << 10 << random.IntN(7)
	}
	p.mirror["on-target-error"] = pick(random, "report", "stop", "ignore", "enospc")
	p.mirror["on-source-error"] = pick(random, "report", "stop", "ignore")
	if random.IntN(3) == 0 {
		p.mirror["filter-node-name"] = filterNode
	}
}

// drawSteps draws faults that make sense for the target.
func (p *plan) drawSteps(random *rand.Rand) {
	kinds := []fault{killDaemon, killDaemon, killDaemon, stopDaemon, dropGuest, dropGuest, truncateTarget, deleteTarget, pauseJob, changeSpeed, changeMode}
	late := []fault{killDaemon, killDaemon, stopDaemon, dropGuest}
	if p.target == targetFile {
		kinds = append(kinds, missingTarget)
	} else {
		kinds = append(kinds, killTarget, killTarget, killTarget, killBoth, killBoth, freezeTarget, freezeTarget, cutLine, cutLine, cutLate, cutLate, silentLine, orphans)
		late = append(late, killTarget, killTarget, freezeTarget, cutLine)
	}
	if p.medium != mediumPlain {
		kinds = append(kinds, fullTarget, fullTarget, fullTarget, fullTarget, fullTarget)
	}
	if p.smallState {
		kinds = append(kinds, fullState, fullState, fullState, fullState)
	}
	draw := func(from []fault) step {
		return step{after: between(random, 5*time.Millisecond, 150*time.Millisecond), ready: random.IntN(4) == 0,
			what: pick(random, from...), lasts: between(random, 5*time.Millisecond, 250*time.Millisecond), pick: random.Uint64()}
	}
	for range 1 + random.IntN(4) {
		p.steps = append(p.steps, draw(kinds))
	}
	for range random.IntN(3) {
		p.after = append(p.after, draw(late))
	}
}

func (p *plan) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "seed %d: %d bytes, %s %s to %s on %s (%s)", p.seed, p.size, p.fill, p.sourceFormat, p.targetFormat, p.target, p.medium)
	if p.target != targetFile {
		fmt.Fprintf(&b, " by %d connections", p.connections)
	}
	if p.smallState {
		b.WriteString(", small state")
	}
	if p.hot {
		b.WriteString(", hot")
	}
	if p.byQMP {
		b.WriteString(", made over QMP")
	}
	fmt.Fprintf(&b, "; %d guests of %d lanes with %v; mirror %v", p.guests, p.lanes, p.pause.Round(time.Microsecond), p.mirror)
	if len(p.targetRules)+len(p.sourceRules) > 0 {
		fmt.Fprintf(&b, "; target errors %v, source errors %v", p.targetRules, p.sourceRules)
	}
	describe := func(steps []step) {
		for _, s := range steps {
			fmt.Fprintf(&b, "; %v later", s.after.Round(time.Millisecond))
			if s.ready {
				b.WriteString(" and ready")
			}
			fmt.Fprintf(&b, " %s (%v)", s.what, s.lasts.Round(time.Millisecond))
		}
	}
	describe(p.steps)
	fmt.Fprintf(&b, "; %s", p.end)
	if p.end == endKill {
		fmt.Fprintf(&b, " after %v", p.killAfter.Round(time.Microsecond))
	}
	describe(p.after)
	fmt.Fprintf(&b, "; %s", p.stop)
	return b.String()
}
