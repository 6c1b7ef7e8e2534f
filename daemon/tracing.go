// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"errors"
	"fmt"
	"sync"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/trace"
	"github.com/blkmirror/blkmirror/daemon/handlers"
	"github.com/blkmirror/blkmirror/daemon/logging"
)

// tracer is the trace of a daemon, if there is one.
type tracer struct {
	mu struct {
		sync.Mutex
		recorder *trace.Recorder
		before   trace.Totals // of traces that were ended
	}
}

var _ handlers.Operator = (*Daemon)(nil)

// SetLogLevel changes which messages are logged.
func (d *Daemon) SetLogLevel(level string) error {
	l, err := logging.ParseLevel(level)
	if err == nil {
		d.log.Logger.SetLevel(l)
	}
	return err
}

// StartTrace begins to record requests in a new file.
func (d *Daemon) StartTrace(path string, o trace.Options) error {
	d.trace.mu.Lock()
	defer d.trace.mu.Unlock()
	if d.trace.mu.recorder != nil {
		return errors.New("There is a trace already: end it with x-trace-stop")
	}
	r, err := trace.Start(path, o)
	if err != nil {
		return fmt.Errorf("Cannot record a trace: %w", err)
	}
	d.trace.mu.recorder = r
	block.SetTrace(r)
	return nil
}

// StopTrace ends the trace.
func (d *Daemon) StopTrace() (trace.Totals, error) {
	d.trace.mu.Lock()
	defer d.trace.mu.Unlock()
	r := d.trace.mu.recorder
	if r == nil {
		return trace.Totals{}, errors.New("There is no trace")
	}
	block.SetTrace(nil)
	d.trace.mu.recorder = nil
	totals, err := r.Stop() // under the lock: whoever waits for it wants it over
	d.trace.mu.before.Recorded += totals.Recorded
	d.trace.mu.before.Dropped += totals.Dropped
	return totals, err
}

// endTrace ends the trace, if there is one, at the end of the daemon.
func (d *Daemon) endTrace() error {
	d.trace.mu.Lock()
	on := d.trace.mu.recorder != nil
	d.trace.mu.Unlock()
	if !on {
		return nil
	}
	_, err := d.StopTrace()
	return err
}

// traced is how many requests were recorded and dropped since the start.
func (d *Daemon) traced() (recorded, dropped int64) {
	d.trace.mu.Lock()
	defer d.trace.mu.Unlock()
	t := d.trace.mu.before
	if r := d.trace.mu.recorder; r != nil {
		now := r.Totals()
		t.Recorded += now.Recorded
		t.Dropped += now.Dropped
	}
	return t.Recorded, t.Dropped
}
