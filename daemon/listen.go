// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"errors"
	"fmt"
	"net"
	"strconv"

	"github.com/blkmirror/blkmirror/block/export/nbdserver"
	"github.com/blkmirror/blkmirror/daemon/sockets"
	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
	"github.com/blkmirror/blkmirror/qmp/server"
)

// listen makes the listener of a monitor, and says how its clients prove who they are.
func (d *Daemon) listen(o *api.ChardevSocketOptions) (l net.Listener, how server.ListenerOptions, err error) {
	access, err := sockets.ParseAccess(o.Mode, o.Group, o.AllowUids)
	if err != nil {
		return nil, how, err
	}
	switch {
	case access.OnPath() && o.Path == nil:
		return nil, how, errors.New("'mode' and 'group' are for sockets with 'path'")
	case o.Path != nil:
		l, err = server.Listen(*o.Path)
	case o.Fd != nil:
		if fd, bad := strconv.Atoi(*o.Fd); bad == nil {
			l, err = server.ListenFD(fd)
		} else { // of systemd
			l, err = nbdserver.ListenInherited(*o.Fd)
		}
	default:
		l, err = server.ListenTCP(qmp.Or(o.Host, "localhost"), *o.Port)
	}
	if err != nil {
		return nil, how, err
	}
	if o.Path != nil {
		err = access.Apply(*o.Path)
	}
	if err == nil {
		how, err = d.proof(o, l.Addr())
	}
	if err != nil {
		return nil, how, errors.Join(err, l.Close())
	}
	return d.hold(access.Guard(l, func(err error) { d.log.WithField("err", err).Warn("monitor refused a client") })), how, nil
}

// proof is what clients of a monitor at an address must show. Whoever reaches a monitor can read and write every disk, so
// nothing but a local socket goes without.
func (d *Daemon) proof(o *api.ChardevSocketOptions, at net.Addr) (how server.ListenerOptions, err error) {
	tcp, remote := at.(*net.TCPAddr)
	switch {
	case !remote && (o.TLSCreds != nil || o.TLSAuthz != nil || qmp.Or(o.Loopback, false)):
		return how, errors.New("'tls-creds', 'tls-authz' and 'loopback' are for TCP: a local socket has 'mode', 'group' and 'allow-uids'")
	case remote && o.AllowUids != nil:
		return how, errors.New("'allow-uids' is for local sockets: on TCP use 'tls-creds' and 'tls-authz'")
	case o.TLSCreds != nil && o.Loopback != nil:
		return how, errors.New("'tls-creds' and 'loopback' exclude each other")
	case o.TLSCreds == nil && o.TLSAuthz != nil:
		return how, errors.New("'tls-authz' needs 'tls-creds'")
	case o.TLSCreds != nil:
		how.Secure, err = d.handlers.SecureMonitor(*o.TLSCreds, o.TLSAuthz)
		return how, err
	case !remote:
		return how, nil
	case !qmp.Or(o.Loopback, false):
		return how, fmt.Errorf("a monitor on TCP ('%s') is open to everybody who can reach it: give 'tls-creds' with verify-peer=on, "+
			"or 'loopback=on' to take every user of this host, or use a socket with 'path'", at)
	case !tcp.IP.IsLoopback():
		return how, fmt.Errorf("'loopback=on' needs an address such as 127.0.0.1 that only this host can reach, and '%s' is none: "+
			"give 'tls-creds' instead", at)
	}
	return how, nil
}
