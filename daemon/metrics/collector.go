// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/budget"
	"github.com/blkmirror/blkmirror/block/export"
	"github.com/blkmirror/blkmirror/block/export/nbdserver"
	"github.com/blkmirror/blkmirror/block/nbd"
	"github.com/blkmirror/blkmirror/daemon/build"
	"github.com/blkmirror/blkmirror/job"
	"github.com/blkmirror/blkmirror/job/mirror"
	"github.com/blkmirror/blkmirror/job/verify"
	"github.com/blkmirror/blkmirror/qmp/api"
)

// Source is what a collector looks at. All of it must be safe to look at beside anything else.
type Source struct {
	Graph   *block.Graph
	Jobs    *job.Registry
	Exports *export.Registry
	NBD     *nbdserver.Server
	Memory  *budget.Budget
	Counts  *Counts
	Clients func() int // of monitors
	Trace   func() (recorded, dropped int64)
	State   bool // there is a state directory
	Build   build.Info
}

type collector struct{ Source }

var _ prometheus.Collector = collector{}

// Describe tells what there may be.
func (collector) Describe(to chan<- *prometheus.Desc) {
	for _, d := range families {
		to <- d
	}
}

// Collect reads everything.
func (c collector) Collect(to chan<- prometheus.Metric) {
	s := sink(to)
	nodes := c.Graph.Nodes()
	names := map[string]bool{}
	for _, n := range nodes {
		names[n.Name()] = true
	}
	counted := c.Counts.read(names)
	for _, n := range nodes {
		if !n.Implicit() {
			s.node(n, counted.nodes[n.Name()])
		}
	}
	for _, e := range c.Exports.List() {
		s.export(e)
	}
	for _, j := range c.Jobs.Jobs() {
		s.job(j, counted.jobs[j.ID()])
	}
	c.rest(s, &counted)
}

func (c collector) rest(s sink, counted *counted) {
	s.add(buildInfo, 1, c.Build.Version, c.Build.Revision, strconv.FormatBool(c.Build.Modified), c.Build.Go)
	s.flag(nbdUp, c.NBD.Running())
	clients, ever := c.NBD.Clients()
	s.count(nbdClients, int64(clients))
	s.count(nbdEver, int64(ever))
	if use := c.Memory.Use(); use.Limit > 0 {
		s.count(memoryLimit, use.Limit)
		s.count(memoryUsed, use.Held)
		s.count(memoryWaiting, int64(use.Waiting))
	}
	s.count(monitorClients, int64(c.Clients()))
	for name, o := range counted.commands {
		s.count(commands, o.ok, name, "ok")
		s.count(commands, o.failed, name, "error")
	}
	for name, n := range counted.events {
		s.count(events, n, name)
	}
	s.count(jobsFailed, counted.failed)
	s.count(jobsFinished, counted.completed)
	s.flag(stateOn, c.State)
	s.count(stateErrors, counted.state)
	s.count(stateMissing, counted.missing)
	recorded, dropped := c.Trace()
	s.count(traceRecorded, recorded)
	s.count(traceDropped, dropped)
}

func (s sink) node(n *block.Node, l link) {
	name, st := n.Name(), n.Stats()
	s.add(nodeInfo, 1, name, n.DriverName(), strconv.FormatBool(n.Options().ReadOnly))
	s.count(nodeSize, n.Size(), name)
	for _, o := range []struct {
		operation        string
		requests, amount int64
		time             *block.Latency
	}{
		{"read", st.Reads.Load(), st.ReadBytes.Load(), &st.ReadTime},
		{"write", st.Writes.Load(), st.WriteBytes.Load(), &st.WriteTime},
		{"zero", st.Zeroes.Load(), st.ZeroBytes.Load(), &st.ZeroTime},
		{"discard", st.Trims.Load(), st.TrimBytes.Load(), &st.TrimTime},
		{"flush", st.Flushes.Load(), -1, &st.FlushTime},
	} {
		s.count(nodeOperations, o.requests, name, o.operation)
		if o.amount >= 0 {
			s.count(nodeBytes, o.amount, name, o.operation)
		}
		s.latency(nodeLatency, o.time.Read(), name, o.operation)
	}
	s.count(nodeErrors, st.FailedReads.Load(), name, "read")
	s.count(nodeErrors, st.FailedWrites.Load(), name, "write")
	s.count(nodeErrors, st.FailedTrims.Load(), name, "discard")
	s.count(nodeErrors, st.FailedFlushes.Load(), name, "flush")
	if _, ok := n.Driver().(block.Reconnector); ok {
		s.flag(nodeConnected, l.state == "" || l.state == api.BlockNodeConnectionStateConnected, name)
		s.count(nodeReconnects, l.reconnects, name)
		s.count(nodeLosses, l.losses, name)
	}
	for _, b := range n.Bitmaps() {
		if i := b.Info(); i.Name != "" && !i.Inconsistent {
			s.count(bitmapDirty, i.Count, name, i.Name)
		}
	}
}

// latency is a histogram. Of what never happened there is none, which saves most of the series that there could be.
func (s sink) latency(f family, l block.Latencies, labels ...string) {
	total := l.Count()
	if total == 0 {
		return
	}
	buckets, below := make(map[float64]uint64, len(l.Buckets)-1), int64(0)
	for i, n := range l.Buckets[:len(l.Buckets)-1] {
		below += n
		buckets[block.LatencyBound(i).Seconds()] = uint64(below)
	}
	m, err := prometheus.NewConstHistogram(f.desc, uint64(total), l.Sum.Seconds(), buckets, labels...)
	if err != nil {
		m = prometheus.NewInvalidMetric(f.desc, err)
	}
	s <- m
}

// nbdOperations are the names of commands, as those of nodes where there are such.
var nbdOperations = [...]string{nbd.CmdRead: "read", nbd.CmdWrite: "write", nbd.CmdWriteZeroes: "zero", nbd.CmdTrim: "discard",
	nbd.CmdFlush: "flush", nbd.CmdCache: "cache", nbd.CmdBlockStatus: "status"}

func (s sink) export(e export.Export) {
	id := e.ID()
	s.add(exportInfo, 1, id, e.Type(), e.Node().Unfiltered().Name())
	served, ok := e.(*nbdserver.Export)
	if !ok {
		return
	}
	all, now := served.Observe()
	s.traffic(&all, exportOperations, exportBytes, exportErrors, id)
	for command, operation := range nbdOperations {
		if operation != "" {
			s.latency(exportLatency, all.Took[command], id, operation)
		}
	}
	s.count(exportClients, int64(len(now)), id)
	for i := range now {
		conn := strconv.FormatUint(now[i].ID, 10)
		s.traffic(&now[i].Traffic, connOperations, connBytes, connErrors, id, conn)
		s.count(connInFlight, int64(now[i].UnderWay), id, conn)
	}
}

func (s sink) traffic(t *nbdserver.Traffic, operations, amount, errors family, labels ...string) {
	with := func(label string) []string { return append(labels[:len(labels):len(labels)], label) }
	for command, operation := range nbdOperations {
		switch {
		case operation == "":
			continue
		case nbd.Command(command) == nbd.CmdRead, nbd.Command(command) == nbd.CmdWrite, nbd.Command(command) == nbd.CmdWriteZeroes,
			nbd.Command(command) == nbd.CmdTrim:
			s.count(amount, t.Bytes[command], with(operation)...)
		}
		s.count(operations, t.Took[command].Count(), with(operation)...)
	}
	s.count(errors, t.Failed, with("disk")...)
	s.count(errors, t.Refused, with("refused")...)
}

func (s sink) job(j *job.Job, met jobCounts) {
	i := j.Info()
	if i.Status == job.Null {
		return
	}
	s.add(jobStatus, 1, i.ID, i.Type, i.Status.String())
	s.count(jobDone, i.Current, i.ID, i.Type)
	s.count(jobTotal, i.Total, i.ID, i.Type)
	s.count(jobSpeed, i.Speed, i.ID, i.Type)
	s.flag(jobPaused, i.Paused, i.ID, i.Type)
	s.flag(jobFailing, i.IOStatus != job.IOOK, i.ID, i.Type)
	s.count(jobErrors, met.read, i.ID, i.Type, "read")
	s.count(jobErrors, met.write, i.ID, i.Type, "write")
	switch body := j.Body().(type) {
	case *mirror.Mirror:
		s.mirror(i.ID, body)
	case *verify.Verify:
		v := body.State()
		s.proof(i.ID, v.Verified, v.Left, v.Differing)
	}
}

func (s sink) proof(id string, equal, left, differing int64) {
	s.count(verifyEqual, equal, id)
	s.count(verifyLeft, left, id)
	s.count(verifyDiffering, differing, id)
}

func (s sink) mirror(id string, m *mirror.Mirror) {
	st, flow := m.State(), m.Flow()
	for _, class := range []struct {
		name  string
		bytes int64
	}{{"copied", st.Bytes.Copied}, {"zeroed", st.Bytes.Zeroed}, {"skipped", st.Bytes.Skipped}, {"offloaded", st.Bytes.Offloaded},
		{"mirrored", flow.Mirrored}} {
		s.count(mirrorBytes, class.bytes, id, class.name)
	}
	s.count(mirrorDirtied, flow.Dirtied, id)
	s.count(mirrorDirty, st.Dirty, id)
	s.count(mirrorRate, st.Rate, id)
	if st.SecondsLeft >= 0 {
		s.count(mirrorLeft, st.SecondsLeft, id)
	}
	s.flag(mirrorConverging, st.SecondsLeft >= 0, id)
	s.flag(mirrorSynced, st.Synced, id)
	s.add(mirrorMode, 1, id, st.Mode.String(), strconv.FormatBool(st.Auto))
	s.add(mirrorDelay, st.GuestDelay.Seconds(), id)
	s.flag(mirrorSilent, flow.Silent, id)
	if st.Proof.On {
		s.proof(id, st.Proof.Verified, st.Proof.Left, st.Proof.Differing)
	}
}
