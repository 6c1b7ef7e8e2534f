// SPDX-License-Identifier: Apache-2.0

package handlers

import (
	"context"
	"sync"

	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/server"
)

// news are events of the start, which are kept until somebody is there: they come after the reply to the first command.
type news struct {
	mu struct {
		sync.Mutex
		waiting []qmp.Event
		heard   bool // a command came
	}
}

func (h *Handlers) tell(e qmp.Event) {
	h.news.mu.Lock()
	defer h.news.mu.Unlock()
	if h.news.mu.heard {
		h.config.Emit(e)
		return
	}
	h.news.mu.waiting = append(h.news.mu.waiting, e)
}

// announce tells what has happened before the first command.
func (h *Handlers) announce(ctx context.Context) {
	h.news.mu.Lock()
	waiting := h.news.mu.waiting
	h.news.mu.waiting, h.news.mu.heard = nil, true
	h.news.mu.Unlock()
	if len(waiting) > 0 {
		server.AfterReply(ctx, func() {
			for _, e := range waiting {
				h.config.Emit(e)
			}
		})
	}
}
