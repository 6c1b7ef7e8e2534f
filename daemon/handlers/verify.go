// SPDX-License-Identifier: Apache-2.0

package handlers

import (
	"github.com/blkmirror/blkmirror/job/mirror"
	"github.com/blkmirror/blkmirror/qmp/api"
)

// tellOfVerification has a mirror tell monitors what its comparison finds.
func (h *Handlers) tellOfVerification(o *mirror.Options) {
	id := o.JobID
	o.OnDifference = func(d mirror.Difference) {
		h.config.Emit(&api.MirrorDifferenceEvent{Device: id, Offset: d.Off, Length: d.Len, DifferingBytes: d.Bytes})
	}
	o.OnVerified = func(differing int64) {
		h.config.Emit(&api.MirrorVerifiedEvent{Device: id, DifferingBytes: differing})
	}
}
