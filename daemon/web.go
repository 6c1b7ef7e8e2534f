// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"net"

	"github.com/blkmirror/blkmirror/daemon/metrics"
	"github.com/blkmirror/blkmirror/daemon/web"
	"github.com/blkmirror/blkmirror/qmp/server"
)

// startWeb serves the web page, if there is to be one.
func (d *Daemon) startWeb(line *commandLine) (err error) {
	if line.web.Address == "" {
		return nil
	}
	if d.web, err = web.New(web.Config{Options: line.web, Dial: d.dial, Log: d.log}); err != nil {
		return err
	}
	d.web.Handle("GET "+metrics.Path, d.metricsHandler())
	return d.web.Start()
}

// dial makes a connection to the monitor, within the process. Its session ends with the connection, or with the server.
func (d *Daemon) dial() net.Conn {
	ours, theirs := net.Pipe()
	d.serving.Add(1)
	go func() {
		defer d.serving.Done()
		_ = d.server.ServeConn(theirs, server.ListenerOptions{}) // it fails when the server ends
	}()
	return ours
}
