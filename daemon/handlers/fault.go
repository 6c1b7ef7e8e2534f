// SPDX-License-Identifier: Apache-2.0

package handlers

import (
	"syscall"
	"time"

	"github.com/blkmirror/blkmirror/block/filter/fault"
	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
)

var faultTypes = map[api.BlkdebugIOType]fault.IOType{
	"":                            fault.DefaultTypes,
	api.BlkdebugIOTypeRead:        fault.Read,
	api.BlkdebugIOTypeWrite:       fault.Write,
	api.BlkdebugIOTypeWriteZeroes: fault.WriteZeroes,
	api.BlkdebugIOTypeDiscard:     fault.Discard,
	api.BlkdebugIOTypeFlush:       fault.Flush,
	api.BlkdebugIOTypeBlockStatus: fault.BlockStatus,
}

// faultOptions turns the options of a blkdebug node into those of its driver.
func faultOptions(o *api.BlockdevOptionsBlkdebug) (fault.Options, error) {
	var f fault.Options
	switch {
	case o.Config != nil:
		return f, qmp.Errorf("Parameter 'config' is not supported: give the rules as 'inject-error' and 'set-state'")
	case len(o.TakeChildPerms) > 0:
		return f, qmp.Errorf("Parameter 'take-child-perms' is not supported")
	case len(o.UnshareChildPerms) > 0:
		return f, qmp.Errorf("Parameter 'unshare-child-perms' is not supported")
	}
	f.Align, f.MaxTransfer = qmp.Or(o.Align, 0), int64(qmp.Or(o.MaxTransfer, 0))
	for _, r := range o.InjectError {
		errno := qmp.Or(r.Errno, int64(syscall.EIO))
		if errno < 0 || errno > 4095 {
			return f, qmp.Errorf("Parameter 'errno' expects the number of an error, not %d", errno)
		}
		f.Rules = append(f.Rules, fault.Rule{Event: string(r.Event), State: int(qmp.Or(r.State, 0)), Types: faultTypes[r.Iotype],
			Sector: qmp.Or(r.Sector, -1), Errno: syscall.Errno(errno), Delay: time.Duration(qmp.Or(r.DelayNS, 0)),
			Once: qmp.Or(r.Once, false)})
	}
	for _, s := range o.SetState {
		f.States = append(f.States, fault.SetState{Event: string(s.Event), State: int(qmp.Or(s.State, 0)),
			NewState: int(s.NewState)})
	}
	return f, nil
}
