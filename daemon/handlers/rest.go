// SPDX-License-Identifier: Apache-2.0

package handlers

import (
	"context"
	"errors"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/daemon/state"
)

// keepJobs has the jobs come back that run now. Guests end before: their writes would pass by when mirrors end.
func (h *Handlers) keepJobs(ctx context.Context) error {
	if !h.keeps() {
		return nil
	}
	running := 0
	if err := h.eachKept(ctx, func(*picture, *keptJob) { running++ }); err != nil || running == 0 {
		return err
	}
	var err error
	if h.nbd.Running() {
		err = h.nbd.Stop(ctx)
	}
	unknown := h.eachKept(ctx, func(p *picture, k *keptJob) {
		still, cannot := k.now(p)
		if cannot != nil {
			return // that was told
		}
		k.still = &still
		if k.log == nil {
			return
		}
		k.log.Keep()
		if err != nil { // guests may still write
			err = errors.Join(err, k.log.Invalidate(err))
		}
	})
	return errors.Join(err, unknown)
}

func (h *Handlers) eachKept(ctx context.Context, f func(*picture, *keptJob)) error {
	return h.graph.Change(ctx, func(*block.Tx) error {
		p := &picture{State: &state.State{}, knowledge: h.knowledge(), graph: h.graph, trouble: h.kept.Trouble}
		for _, k := range h.kept.jobs {
			if !k.gone {
				f(p, k)
			}
		}
		return nil
	})
}

// restJobs records what the disks are when nobody has them open any more.
func (h *Handlers) restJobs(last *state.State) error {
	var errs []error
	for _, k := range h.kept.jobs {
		switch {
		case k.still == nil:
		case k.verify != nil && last != nil:
			for i := range last.Jobs {
				if string(last.Jobs[i].Definition) == string(k.still.Definition) {
					var err error
					last.Jobs[i].Compared, err = h.compared(k)
					errs = append(errs, err)
				}
			}
		case k.log != nil:
			e, err := h.identify(k.still.Source, k.still.Target, k.size, k.size)
			if err == nil {
				err = k.log.Rest(e.Source, e.Target)
			}
			errs = append(errs, err, k.close())
		}
	}
	if h.kept.jobs = nil; last != nil {
		errs = append(errs, h.kept.Dir.Save(last))
	}
	return errors.Join(errs...)
}
