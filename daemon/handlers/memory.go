// SPDX-License-Identifier: Apache-2.0

package handlers

import (
	"context"

	"github.com/blkmirror/blkmirror/block/budget"
	"github.com/blkmirror/blkmirror/qmp/api"
)

// XQueryMemory tells how the memory for data is used.
func (h *Handlers) XQueryMemory(context.Context) (list []api.MemoryUse, err error) {
	for _, part := range []struct {
		purpose api.MemoryPurpose
		budget  *budget.Budget
	}{{api.MemoryPurposeRequests, h.config.Memory}, {api.MemoryPurposeCopies, h.config.Copies}} {
		u := part.budget.Use()
		list = append(list, api.MemoryUse{Purpose: part.purpose, Limit: u.Limit, Used: u.Held, Users: int64(u.Accounts),
			Waiting: int64(u.Waiting)})
	}
	return list, nil
}

// positive is n if it is a number above 0.
func positive(n int64) *int64 {
	if n > 0 {
		return &n
	}
	return nil
}
