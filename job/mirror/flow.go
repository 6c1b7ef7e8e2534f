// SPDX-License-Identifier: Apache-2.0

package mirror

// Flow is what guests and the copy did since the job began, for those who watch it over time.
type Flow struct {
	Dirtied  int64 // bytes that guests made dirty
	Mirrored int64 // bytes that guests' writes took to the target themselves
	Silent   bool  // the target gives no answer: guests do without it
}

// Flow is a snapshot.
func (m *Mirror) Flow() Flow {
	m.mu.Lock()
	defer m.mu.Unlock()
	return Flow{Dirtied: m.flow.dirtied, Mirrored: m.flow.mirrored, Silent: m.planner.silent}
}
