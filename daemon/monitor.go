// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"fmt"
	"io"
	"net"
	"os"

	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
	"github.com/blkmirror/blkmirror/qmp/server"
)

// addChannel makes a channel that a monitor may be put on. A socket listens from now on.
func (d *Daemon) addChannel(o *api.ChardevOptions) error {
	id := ""
	var made channel
	if o.Stdio != nil {
		id = o.Stdio.ID
	} else {
		id = o.Socket.ID
		var err error
		if made.listener, made.how, err = d.listen(o.Socket); err != nil {
			return err
		}
	}
	if _, taken := d.channels[id]; taken {
		if made.listener != nil {
			_ = made.listener.Close()
		}
		return fmt.Errorf("Chardev with id '%s' already exists", id)
	}
	d.channels[id] = made
	return nil
}

// addMonitor serves QMP on a channel.
func (d *Daemon) addMonitor(o *api.MonitorOptions) error {
	c, ok := d.channels[o.Chardev]
	switch {
	case !ok:
		return fmt.Errorf("chardev '%s' not found", o.Chardev)
	case c.used:
		return fmt.Errorf("chardev '%s' has a monitor already", o.Chardev)
	case o.Mode == api.MonitorModeReadline:
		return fmt.Errorf("mode 'readline' is not available, only 'control'")
	}
	c.used = true
	d.channels[o.Chardev] = c
	how := c.how
	how.Pretty = qmp.Or(o.Pretty, false)
	if c.listener == nil {
		// Reading standard input cannot be interrupted, so nobody waits for this one at the end.
		go func() {
			<-d.started
			_ = d.server.ServeConn(standardIO{}, how)
		}()
		return nil
	}
	d.serve(c.listener, how)
	return nil
}

// addQMP serves QMP on a unix socket.
func (d *Daemon) addQMP(o *api.ChardevOptions) error {
	l, how, err := d.listen(o.Socket)
	if err != nil {
		return err
	}
	d.serve(l, how)
	return nil
}

func (d *Daemon) serve(l net.Listener, how server.ListenerOptions) {
	d.serving.Add(1)
	go func() {
		defer d.serving.Done()
		if err := d.server.Serve(l, how); err != nil && err != server.ErrClosed {
			d.log.WithField("err", err).Error("monitor ended")
		}
	}()
}

// standardIO is a monitor's connection on standard input and output.
type standardIO struct{}

var _ io.ReadWriteCloser = standardIO{}

func (standardIO) Read(p []byte) (int, error)  { return os.Stdin.Read(p) }
func (standardIO) Write(p []byte) (int, error) { return os.Stdout.Write(p) }
func (standardIO) Close() error                { return nil }
