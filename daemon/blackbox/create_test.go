// SPDX-License-Identifier: Apache-2.0

package blackbox

import (
	"os"
	"testing"
)

// A job that makes an image can be paused while it is at it, and then goes on, or is cancelled.
func TestPausedCreation(t *testing.T) {
	for _, end := range []string{"job-resume", "job-cancel"} {
		t.Run(end, func(t *testing.T) {
			d := start(t)
			const size = 128 << 20 // long enough to be overtaken by the next command
			d.do("blockdev-create", args{"job-id": "c", "options": args{"driver": "file", "filename": d.path("new.img"), "size": size,
				"preallocation": "full"}})
			if err := d.try("job-pause", args{"id": "c"}); err != nil {
				t.Skipf("too late for a pause: %v", err)
			}
			d.wait("JOB_STATUS_CHANGE", args{"id": "c", "status": "paused"})
			d.do(end, args{"id": "c"})
			d.wait("JOB_STATUS_CHANGE", args{"id": "c", "status": "concluded"})
			var jobs []struct{ Error string }
			must(t, d.query("query-jobs", nil, &jobs))
			if len(jobs) != 1 || (jobs[0].Error == "") != (end == "job-resume") {
				t.Errorf("after %s: %+v", end, jobs)
			}
			d.do("job-dismiss", args{"id": "c"})
			if info, err := os.Stat(d.path("new.img")); end == "job-resume" && (err != nil || info.Size() != size) {
				t.Errorf("the image: %v, %v", info, err)
			}
		})
	}
}
