// SPDX-License-Identifier: Apache-2.0

// Package metrics shows Prometheus what a daemon does.
//
//	nodes, jobs, exports, … ──(read when asked)──► collector ──► /metrics
//	events, commands        ──(counted)─────────►    ▲
//
// Nothing is collected in advance: a scrape reads the counters that the parts of the daemon keep anyway. It takes short locks only,
// none of which is held while anything waits, so that a daemon whose disks hang can be looked at. What has no counter of its
// own, as it is an event, is counted by [Counts] when it happens.
//
// Names follow Prometheus' conventions: base units, and _total for what only grows. Labels have names that the operator chose (nodes, exports,
// jobs) and numbers of connections; the series of each end when it is gone. Nodes without a name of their own are left out.
// docs/monitoring/README.md lists all of them.
package metrics
