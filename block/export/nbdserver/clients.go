// SPDX-License-Identifier: Apache-2.0

package nbdserver

import "slices"

// Clients are the addresses of those who use the export now, in order: "" for a local socket, which has none.
func (e *Export) Clients() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	var list []string
	for s := range e.mu.sessions {
		address := ""
		if a := s.conn.RemoteAddr(); a != nil && a.Network() != "unix" {
			address = a.String()
		}
		list = append(list, address)
	}
	slices.Sort(list)
	return list
}
