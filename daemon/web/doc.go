// SPDX-License-Identifier: Apache-2.0

// Package web serves a page that shows what the daemon does: its graph, its exports and jobs, and for each mirror the map of the disk.
//
//	browser ──► listener ──► guard ──► mux ──┬── /            the page, from the binary
//	            (bounded)    (hosts,         ├── /api/stream  state, history, events and the map, as they change
//	                          headers)       ├── /api/control what --web-control allows, for who has the token
//	                                         └── …            what others hang in, see [Server.Handle]
//
// The server is a client of the daemon's own monitor, over a connection within the process. So the page sees what any client of
// a monitor can ask for, its commands wait for their turn as others' do, and nothing here touches a disk, a job or a lock of
// theirs. One goroutine asks, once a second, however many browsers look: they share what it found. A browser that
// does not read gets what is new when it does, or is dropped; nothing is queued for it.
//
// Whoever reaches the page can see names of nodes, files and clients, and nothing of what is on disks. docs/threat-model.md says
// who can reach it.
package web
