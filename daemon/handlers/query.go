// SPDX-License-Identifier: Apache-2.0

package handlers

import (
	"context"
	"slices"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/filter/throttle"
	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
)

// QueryNamedBlockNodes describes all nodes.
func (h *Handlers) QueryNamedBlockNodes(_ context.Context, a *api.QueryNamedBlockNodesArguments) ([]api.BlockDeviceInfo, error) {
	var list []api.BlockDeviceInfo
	flat := a != nil && qmp.Or(a.Flat, false)
	for _, n := range h.graph.Nodes() {
		list = append(list, describe(n, flat))
	}
	return list, nil
}

func describe(n *block.Node, flat bool) api.BlockDeviceInfo {
	name, o := n.Name(), n.Options()
	info := api.BlockDeviceInfo{
		NodeName: &name, Drv: n.DriverName(), Ro: o.ReadOnly, File: n.FileName(), Active: true,
		DetectZeroes: api.BlockdevDetectZeroesOptions(o.DetectZeroes.String()),
		Cache:        api.BlockdevCacheInfo{Writeback: true, Direct: o.Direct, NoFlush: o.NoFlush},
		Image:        describeImage(n, flat),
	}
	if info.BackingFile, info.BackingFileDepth = chainDepth(n); flat {
		info.BackingFileDepth = 0 // as there: what is flat has no depth
	}
	for _, e := range slices.Backward(n.Children()) {
		info.Children = append(info.Children, api.BlockdevChild{Child: e.Name(), NodeName: e.Node().Name()})
	}
	info.WriteThreshold = n.WriteThreshold()
	var bitmaps []block.BitmapInfo
	for _, b := range slices.Backward(n.Bitmaps()) { // the newest first, as everything here
		bitmaps = append(bitmaps, b.Info())
	}
	if reporter, ok := n.Driver().(block.BitmapReporter); ok {
		bitmaps = append(bitmaps, reporter.Bitmaps()...)
	}
	for _, b := range bitmaps {
		described := api.BlockDirtyInfo{Name: nonEmpty(b.Name), Count: b.Count, Granularity: uint32(b.Granularity),
			Recording: b.Recording, Busy: b.Busy, Persistent: b.Persistent}
		if b.Inconsistent {
			described.Inconsistent = &b.Inconsistent
		}
		info.DirtyBitmaps = append(info.DirtyBitmaps, described)
	}
	if t, ok := n.Driver().(*throttle.Throttle); ok {
		describeThrottle(&info, t.Group())
	}
	return info
}

func describeLimits(l block.Limits) *api.BlockLimitsInfo {
	if l.RequestAlign <= 1 && l.MaxTransfer == 0 {
		return nil
	}
	info := &api.BlockLimitsInfo{RequestAlignment: uint32(l.RequestAlign), MinMemAlignment: uint64(l.MemoryAlign),
		OptMemAlignment: block.BufferAlign, MaxIov: 1}
	if l.MaxTransfer > 0 {
		most := uint32(l.MaxTransfer)
		info.MaxTransfer = &most
	}
	return info
}

func describeThrottle(info *api.BlockDeviceInfo, g *throttle.Group) {
	l, name := g.Limits(), g.Name()
	info.Group = &name
	info.BPS, info.BPSRd, info.BPSWr = l.BPSTotal.Average, l.BPSRead.Average, l.BPSWrite.Average
	info.IOPS, info.IOPSRd, info.IOPSWr = l.IOPSTotal.Average, l.IOPSRead.Average, l.IOPSWrite.Average
}

func nonEmpty(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// QueryBlock lists devices of a virtual machine; a storage daemon has none.
func (h *Handlers) QueryBlock(context.Context) ([]api.BlockInfo, error) { return nil, nil }

// QueryBlockstats tells the counters of all nodes, if nodes are asked for.
func (h *Handlers) QueryBlockstats(_ context.Context, args *api.QueryBlockstatsArguments) ([]api.BlockStats, error) {
	var list []api.BlockStats
	if args.QueryNodes == nil || !*args.QueryNodes {
		return nil, nil
	}
	for _, n := range h.graph.Nodes() {
		name, s := n.Name(), n.Stats()
		list = append(list, api.BlockStats{NodeName: &name, Stats: api.BlockDeviceStats{
			RdBytes: s.ReadBytes.Load(), RdOperations: s.Reads.Load(), FailedRdOperations: s.FailedReads.Load(),
			WrBytes:      s.WriteBytes.Load() + s.ZeroBytes.Load(),
			WrOperations: s.Writes.Load() + s.Zeroes.Load(), FailedWrOperations: s.FailedWrites.Load(),
			UnmapBytes: s.TrimBytes.Load(), UnmapOperations: s.Trims.Load(),
			FlushOperations: s.Flushes.Load(), FailedFlushOperations: s.FailedFlushes.Load(),
			RdTotalTimeNS:    int64(s.ReadTime.Total()),
			WrTotalTimeNS:    int64(s.WriteTime.Total() + s.ZeroTime.Total()),
			UnmapTotalTimeNS: int64(s.TrimTime.Total()), FlushTotalTimeNS: int64(s.FlushTime.Total()),
			FailedUnmapOperations: s.FailedTrims.Load(),
			WrHighestOffset:       s.WriteHighest.Load()}})
	}
	return list, nil
}
