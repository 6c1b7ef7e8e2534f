// SPDX-License-Identifier: Apache-2.0

package web

import (
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/spf13/pflag"

	"github.com/blkmirror/blkmirror/daemon/sockets"
	"github.com/blkmirror/blkmirror/qmp/server"
)

// Options are those of the command line that say where the page is served, and for whom.
type Options struct {
	Address string   // host:port, or the path of a socket; "" for no page
	Remote  bool     // Address may be one that other hosts reach
	Hosts   []string // names, besides those of this host, by which browsers may call it
	Mode    string   // permissions of a local socket
	Group   string   // its group
	Control bool     // jobs can be controlled
	Token   string   // path of the file with the token for that
}

// AddTo adds the options to those of a command line.
func (o *Options) AddTo(flags *pflag.FlagSet) {
	flags.StringVar(&o.Address, "web", "", "show what the daemon does on a web page at `ADDR`: 127.0.0.1:PORT, [::1]:PORT, or the PATH of a socket")
	flags.BoolVar(&o.Remote, "web-remote", false, "let ADDR be one that other hosts reach: they see names of nodes, files and clients")
	flags.StringArrayVar(&o.Hosts, "web-host", nil, "let browsers call the page by `NAME`, too; for a proxy in front of it")
	flags.StringVar(&o.Mode, "web-mode", "", "permissions of the page's socket, in octal; 0600 without")
	flags.StringVar(&o.Group, "web-group", "", "`GROUP` of the page's socket")
	flags.BoolVar(&o.Control, "web-control", false, "let who has the token pause, resume, limit, complete and cancel jobs on the page")
	flags.StringVar(&o.Token, "web-token", "", "keep the token in `FILE`, which is made if it is not there; without, it is logged once")
}

// OnPath says whether the page is served on a local socket.
func (o *Options) OnPath() bool { return strings.Contains(o.Address, "/") }

// Check says what is wrong with the options.
func (o *Options) Check() error {
	if o.Address == "" {
		if o.Remote || o.Control || len(o.Hosts) > 0 || o.Mode+o.Group+o.Token != "" {
			return errors.New("--web-remote, --web-host, --web-mode, --web-group, --web-control and --web-token need --web")
		}
		return nil
	}
	if o.Token != "" && !o.Control {
		return errors.New("--web-token needs --web-control")
	}
	for _, name := range o.Hosts {
		if name == "" || strings.ContainsAny(name, ":/@ ") {
			return fmt.Errorf("--web-host %s: expects the name of a host, without a port", name)
		}
	}
	if o.OnPath() {
		if o.Remote {
			return errors.New("--web-remote is for TCP")
		}
		_, err := o.access()
		return err
	}
	if o.Mode+o.Group != "" {
		return errors.New("--web-mode and --web-group are for a socket with a path")
	}
	host, _, err := net.SplitHostPort(o.Address)
	switch ip := net.ParseIP(host); {
	case err != nil:
		return fmt.Errorf("--web %s: expects HOST:PORT, or the path of a socket with a / in it", o.Address)
	case o.Remote && o.Control:
		return errors.New("--web-control is not for --web-remote: the token would cross the network in the clear; put a proxy with TLS " +
			"in front of a loopback address, and name it with --web-host")
	case o.Remote || host == "localhost" || ip != nil && ip.IsLoopback():
		return nil
	}
	return fmt.Errorf("--web %s: expects an address that only this host reaches, such as 127.0.0.1 or [::1]; --web-remote takes any", o.Address)
}

func (o *Options) access() (sockets.Access, error) {
	given := func(s string) *string {
		if s == "" {
			return nil
		}
		return &s
	}
	a, err := sockets.ParseAccess(given(o.Mode), given(o.Group), nil)
	if err != nil {
		return a, fmt.Errorf("--web: %w", err)
	}
	return a, nil
}

// listen makes the listener.
func (o *Options) listen() (net.Listener, error) {
	if o.OnPath() {
		access, err := o.access()
		if err != nil {
			return nil, err
		}
		l, err := server.Listen(o.Address)
		if err != nil {
			return nil, fmt.Errorf("--web: %w", err)
		}
		if err := access.Apply(o.Address); err != nil {
			return nil, errors.Join(fmt.Errorf("--web: %w", err), l.Close())
		}
		return l, nil
	}
	host, port, err := net.SplitHostPort(o.Address)
	if err != nil {
		return nil, fmt.Errorf("--web %s: %w", o.Address, err)
	}
	l, err := server.ListenTCP(host, port)
	if err != nil {
		return nil, fmt.Errorf("--web: %w", err)
	}
	if at, ok := l.Addr().(*net.TCPAddr); !o.Remote && (!ok || !at.IP.IsLoopback()) {
		return nil, errors.Join(fmt.Errorf("--web %s: '%s' is not an address that only this host reaches", o.Address, l.Addr()), l.Close())
	}
	return l, nil
}
