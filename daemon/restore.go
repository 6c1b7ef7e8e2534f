// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"errors"
	"fmt"

	"github.com/sirupsen/logrus"

	"github.com/blkmirror/blkmirror/daemon/handlers"
	"github.com/blkmirror/blkmirror/daemon/options"
	"github.com/blkmirror/blkmirror/daemon/state"
	"github.com/blkmirror/blkmirror/qmp/api"
)

// restoreMode says what becomes of a state at the start.
type restoreMode string

const (
	restoreStrict     restoreMode = "strict"      // all of it comes back, or the daemon does not start
	restoreBestEffort restoreMode = "best-effort" // what cannot come back is logged
	restoreIgnore     restoreMode = "ignore"      // it is set aside
)

// restore carries out the options of the command line that make something which the state may have, too, and brings back the rest
// of the state. It returns the other options.
func (d *Daemon) restore(ctx context.Context, line *commandLine) (rest []step, err error) {
	if d.state, err = state.Open(line.stateDir); err != nil {
		return nil, err
	}
	given, rest, err := givenBy(line.steps)
	if err != nil {
		return nil, err
	}
	old, err := d.loadState(line.restore)
	if err != nil {
		return nil, err
	}
	d.command.Lock()
	defer d.command.Unlock()
	trouble := func(err error) {
		d.counts.StateFailed()
		d.log.WithField("err", err).Warn("state directory")
	}
	record := handlers.Record{Dir: d.state, Trouble: trouble, Durability: line.durability, Resumed: d.resumed}
	failed, err := d.handlers.Restore(ctx, record, given, old, line.restore == restoreStrict)
	switch {
	case err != nil:
		return nil, errors.Join(append([]error{err}, failed...)...)
	case len(failed) > 0 && line.restore == restoreStrict:
		return nil, fmt.Errorf("--state-dir %s: the state cannot be restored (--restore=best-effort leaves out what fails):\n%w",
			line.stateDir, errors.Join(failed...))
	}
	d.counts.NotRestored(len(failed))
	for _, f := range failed {
		d.log.WithFields(logrus.Fields{"err": f}).Error("not restored")
	}
	return rest, nil
}

// resumed logs that a job goes on.
func (d *Daemon) resumed(job string, left int64, reason string) {
	log := d.log.WithField("job", job)
	if left >= 0 {
		log = log.WithField("left", left)
	}
	if reason != "" {
		log.WithField("reason", reason).Warn("job goes on, and does more than was left")
		return
	}
	log.Info("job goes on")
}

func (d *Daemon) loadState(mode restoreMode) (*state.State, error) {
	if mode != restoreIgnore {
		old, err := d.state.Load()
		if err == nil || mode == restoreStrict {
			return old, err
		}
		d.log.WithField("err", err).Error("nothing is restored")
	}
	name, err := d.state.SetAside(false)
	if name != "" {
		d.log.WithField("file", name).Warn("the state was set aside")
	}
	return &state.State{}, err
}

// givenBy takes the definitions out of the command line.
func givenBy(steps []step) (given []handlers.Given, rest []step, err error) {
	for _, s := range steps {
		g := handlers.Given{Option: s.String()}
		switch s.option {
		case "blockdev":
			err = with(options.Blockdev, s.text, func(o *api.BlockdevOptions) error { g.Node = o; return nil })
		case "object":
			err = with(options.Object, s.text, func(o *api.ObjectOptions) error { g.Object = o; return nil })
		case "nbd-server":
			err = with(options.NBDServer, s.text, func(o *api.NbdServerOptions) error { g.Server = o; return nil })
		case "export":
			err = with(options.Export, s.text, func(o *api.BlockExportOptions) error { g.Export = o; return nil })
		default:
			rest = append(rest, s)
			continue
		}
		if err != nil {
			return nil, nil, s.explain(err)
		}
		given = append(given, g)
	}
	return given, rest, nil
}

// closeState gives the state directory free.
func (d *Daemon) closeState() error {
	if d.state == nil {
		return nil
	}
	return d.state.Close()
}
