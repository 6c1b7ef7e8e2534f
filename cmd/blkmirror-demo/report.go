// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"

	"github.com/blkmirror/blkmirror/cmd/blkmirror/bytesize"
	"github.com/blkmirror/blkmirror/cmd/blkmirror/progress"
)

// report compares the target with the model, and prints what happened. The
// numbers come first: they help when the copy is wrong.
func (d *demo) report() error {
	d.say("\nThe mirror: %s.", progress.Work(d.final.JobWork))
	for _, f := range []struct{ name, path string }{{"source", d.paths.source}, {"target", d.paths.target}} {
		n, err := allocated(f.path)
		if err != nil {
			return err
		}
		d.say("Allocated by the %s: %s of %s.", f.name, bytesize.Format(n), bytesize.Format(int64(d.size)))
	}
	var counts []string
	for i := range numOps {
		counts = append(counts, fmt.Sprintf("%d %s", d.guest.counts[i].Load(), opNames[i]))
	}
	d.say("The guest: %s; %s written. Its latency:", strings.Join(counts, ", "), bytesize.Format(d.guest.written.Load()))
	if err := d.guest.latencies.print(d.out); err != nil {
		return err
	}
	if err := verify(d.paths.target, d.model); err != nil {
		return err
	}
	d.say("\nThe copy is right: all %d bytes of the target are what the guest wrote, or what was there before;\n"+
		"the source has not changed since the switch.", int64(d.size))
	return nil
}
