// SPDX-License-Identifier: Apache-2.0

package handlers

import (
	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/driver/qcow2"
	"github.com/blkmirror/blkmirror/qmp/api"
)

// describeImage describes the image behind a node and, unless the answer is to be flat, those below it.
func describeImage(n *block.Node, flat bool) api.ImageInfo {
	no := false
	i := api.ImageInfo{Filename: n.FileName(), Format: n.DriverName(), VirtualSize: n.Size(), DirtyFlag: &no,
		Limits: describeLimits(n.Limits())}
	if bytes, known := n.AllocatedBytes(); known {
		i.ActualSize = &bytes
	}
	if g := n.Limits().Granularity; g > 0 {
		i.ClusterSize = &g
	}
	if disk, ok := n.Driver().(imageTeller); ok {
		describeQcow2(&i, disk.Info())
	}
	if backing := n.Backing(); backing != nil && !flat {
		below := describeImage(backing.Unfiltered(), false)
		i.BackingImage = &below
	}
	return i
}

func describeQcow2(i *api.ImageInfo, q *qcow2.Info) {
	i.DirtyFlag = &q.Dirty
	if q.BackingFile != "" {
		i.BackingFilename, i.BackingFilenameFormat = &q.BackingFile, nonEmpty(q.BackingFormat)
		if full, err := fullName(q.BackingFile, i.Filename); err == nil {
			i.FullBackingFilename = &full
		}
	}
	for _, s := range q.Snapshots {
		info := api.SnapshotInfo{ID: s.ID, Name: s.Name, VmStateSize: s.VMStateSize, DateSec: int64(s.DateSec),
			DateNsec: int64(s.DateNsec), VmClockSec: s.VMClockNsec / 1e9, VmClockNsec: s.VMClockNsec % 1e9}
		if s.ICount >= 0 {
			info.Icount = &s.ICount
		}
		i.Snapshots = append(i.Snapshots, info)
	}
	specific := api.ImageInfoSpecificQCow2{Compat: "0.10", RefcountBits: int64(q.RefcountBits),
		CompressionType: api.Qcow2CompressionType(q.CompressionType), DataFile: nonEmpty(q.DataFile)}
	if q.Version >= 3 {
		specific.Compat = "1.1"
		specific.LazyRefcounts, specific.Corrupt, specific.ExtendedL2 = &q.LazyRefcounts, &q.Corrupt, &q.ExtendedL2
	}
	if q.HasDataFile {
		specific.DataFileRaw = &q.DataFileRaw
	}
	for _, b := range q.Bitmaps {
		info := api.Qcow2BitmapInfo{Name: b.Name, Granularity: uint32(b.Granularity), Flags: []api.Qcow2BitmapInfoFlags{}}
		if b.InUse {
			info.Flags = append(info.Flags, api.Qcow2BitmapInfoFlagsInUse)
		}
		if b.Auto {
			info.Flags = append(info.Flags, api.Qcow2BitmapInfoFlagsAuto)
		}
		specific.Bitmaps = append(specific.Bitmaps, info)
	}
	i.FormatSpecific = &api.ImageInfoSpecific{Type: api.ImageInfoSpecificKindQcow2,
		Qcow2: &api.ImageInfoSpecificQCow2Wrapper{Data: specific}}
}

// chainDepth is the file name of the backing node of n, nil if it has none, and the number of images below n.
func chainDepth(n *block.Node) (backing *string, depth int64) {
	for at := n.Backing(); at != nil; at = at.Backing() {
		if depth++; depth == 1 {
			name := at.FileName()
			backing = &name
		}
	}
	return backing, depth
}
