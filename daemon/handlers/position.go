// SPDX-License-Identifier: Apache-2.0

package handlers

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/daemon/state"
	"github.com/blkmirror/blkmirror/job/mirror/intent"
	"github.com/blkmirror/blkmirror/job/verify"
)

// keepPosition records how far a comparison has come.
func (h *Handlers) keepPosition(ctx context.Context, k *keptJob) {
	reached, err := h.compared(k)
	if err == nil {
		var undone error
		err = h.graph.Change(ctx, func(tx *block.Tx) error {
			was := k.reached
			k.reached = reached
			tx.OnRollBack(func() { k.reached = was })
			if !h.kept.on {
				return nil
			}
			return h.record(tx, nil, &undone)
		})
		err = errors.Join(err, undone)
	}
	if err != nil && ctx.Err() == nil && !k.ill {
		h.kept.Trouble(fmt.Errorf("job '%s': how far it has come is not known after a crash: %w", k.id, err))
	}
	k.ill = err != nil
}

// compared is how far a comparison has come, nil if that is of no use.
func (h *Handlers) compared(k *keptJob) (*state.Compared, error) {
	p := k.verify.Position()
	if p.End == 0 || k.digest {
		return nil, nil
	}
	now, err := h.identify(k.disks[0], k.disks[1], k.size, k.size)
	if err != nil {
		return nil, err
	}
	return &state.Compared{End: p.End, Differing: p.Differing, First: p.First, Source: identityText(now.Source), Target: identityText(now.Target),
		Boot: hex.EncodeToString(now.Boot[:])}, nil
}

func identityText(i intent.Identity) string {
	if i.Device == 0 && i.Inode == 0 {
		return fmt.Sprintf("%x %d", i.Name, i.Size)
	}
	return fmt.Sprintf("%x:%d %d %d", i.Device, i.Inode, i.Size, i.Modified.UnixNano())
}

// comparedBefore is how far a comparison came, if the disks are still what they were.
func (h *Handlers) comparedBefore(j *resumption, size int64) (from verify.Position) {
	c := j.Compared
	if c == nil {
		h.goesOn(j.id, size, "")
		return from
	}
	e := &j.expect
	e.Source.Size, e.Target.Size = size, size
	reason := ""
	switch {
	case c.Boot != hex.EncodeToString(e.Boot[:]):
		reason = "the host was started since, and what was compared may not have been durable"
	case c.Source != identityText(e.Source):
		reason = fmt.Sprintf("'%s' is another disk than it was, or was written", j.Source)
	case c.Target != identityText(e.Target):
		reason = fmt.Sprintf("'%s' is another disk than it was, or was written", j.Target)
	default:
		from = verify.Position{End: c.End, Differing: c.Differing, First: c.First}
	}
	h.goesOn(j.id, size-from.End, reason)
	return from
}
