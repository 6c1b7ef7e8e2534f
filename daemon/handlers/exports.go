// SPDX-License-Identifier: Apache-2.0

package handlers

import (
	"context"
	"errors"
	"net"
	"slices"
	"time"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/export/nbdserver"
	"github.com/blkmirror/blkmirror/daemon/sockets"
	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
)

const (
	defaultMaxConnections   = 100
	defaultHandshakeSeconds = 10
)

// NBDServerStart starts the NBD server.
func (h *Handlers) NBDServerStart(ctx context.Context, a *api.NbdServerOptionsLegacy) error {
	var addr api.SocketAddress
	switch l := a.Addr; {
	case l.Inet != nil:
		addr = api.SocketAddress{Type: l.Type, Inet: &l.Inet.Data}
	case l.Unix != nil:
		addr = api.SocketAddress{Type: l.Type, Unix: &l.Unix.Data}
	case l.Fd != nil:
		addr = api.SocketAddress{Type: l.Type, Fd: &l.Fd.Data}
	case l.Vsock != nil:
		addr = api.SocketAddress{Type: l.Type, Vsock: &l.Vsock.Data}
	}
	return h.StartNBD(ctx, &api.NbdServerOptions{NbdServerOptionsBase: a.NbdServerOptionsBase, Addr: addr})
}

// StartNBD starts the NBD server as the command line describes it.
func (h *Handlers) StartNBD(ctx context.Context, o *api.NbdServerOptions) error {
	secure, authorize, err := h.serverTLS(o.TLSCreds, o.TLSAuthz)
	if err != nil {
		return err
	}
	held := func() (net.Listener, error) {
		l, err := listen(ctx, &o.Addr, h.config.Refused)
		if err != nil {
			return nil, err
		}
		return h.config.Hold(l), nil
	}
	err = h.nbd.Start(held, nbdserver.Options{
		MaxConnections:   int(qmp.Or(o.MaxConnections, defaultMaxConnections)),
		HandshakeTimeout: time.Duration(qmp.Or(o.HandshakeMaxSeconds, defaultHandshakeSeconds)) * time.Second,
		MaxRequests:      h.config.Limits.Requests, MaxRequest: h.config.Limits.Request, Budget: h.config.Memory,
		TLS: secure, Authorize: authorize})
	if err != nil {
		return err
	}
	h.kept.server = absoluteServer(o)
	if err := h.note(ctx, func() { h.kept.server = nil }); err != nil {
		return errors.Join(err, h.nbd.Stop(ctx))
	}
	return nil
}

// Busy says whether clients of the NBD server have work done for them right now.
func (h *Handlers) Busy() bool { return h.nbd.Busy() }

// absoluteServer is o with the path of its socket as it leads there from everywhere.
func absoluteServer(o *api.NbdServerOptions) *api.NbdServerOptions {
	if o.Addr.Unix == nil || qmp.Or(o.Addr.Unix.Abstract, false) {
		return o
	}
	server, unix := *o, *o.Addr.Unix
	unix.Path = absolute(unix.Path, workingFolder())
	server.Addr.Unix = &unix
	return &server
}

func listen(ctx context.Context, a *api.SocketAddress, refused func(error)) (net.Listener, error) {
	switch {
	case a.Unix != nil:
		return listenUnix(a.Unix, refused)
	case a.Inet != nil:
		return listenInet(ctx, a.Inet)
	case a.Fd != nil:
		return nbdserver.ListenInherited(a.Fd.Str)
	}
	return nil, qmp.Errorf("Sockets of type '%s' are not available: use 'inet', 'unix' or 'fd'", a.Type)
}

// listenUnix listens on a local socket for those whom its options let in. refused is told about others.
func listenUnix(a *api.UnixSocketAddress, refused func(error)) (net.Listener, error) {
	access, err := sockets.ParseAccess(a.Mode, a.Group, a.AllowUids)
	if err != nil {
		return nil, qmp.Errorf("Parameter %s", err)
	}
	var l net.Listener
	if abstract := qmp.Or(a.Abstract, false); abstract && access.OnPath() {
		return nil, qmp.Errorf("Parameters 'mode' and 'group' are for sockets with a path: with 'abstract' use 'allow-uids'")
	} else if abstract {
		l, err = nbdserver.ListenAbstract(a.Path, qmp.Or(a.Tight, true))
	} else {
		l, err = nbdserver.ListenUnix(a.Path, 0)
	}
	if err != nil {
		return nil, err
	}
	if err := access.Apply(a.Path); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return access.Guard(l, refused), nil
}

func listenInet(ctx context.Context, a *api.InetSocketAddress) (net.Listener, error) {
	network := "tcp"
	switch v4, v6 := qmp.Or(a.IPv4, a.IPv6 == nil || !*a.IPv6), qmp.Or(a.IPv6, a.IPv4 == nil || !*a.IPv4); {
	case !v4 && !v6:
		return nil, qmp.Errorf("Cannot disable IPv4 and IPv6 at same time")
	case !v6:
		network = "tcp4"
	case !v4:
		network = "tcp6"
	}
	switch {
	case qmp.Or(a.Numeric, false) && a.Host != "" && net.ParseIP(a.Host) == nil:
		return nil, qmp.Errorf("Parameter 'addr.host' is '%s', which is no numeric address", a.Host)
	case qmp.Or(a.Mptcp, false):
		return nil, qmp.Errorf("Parameter 'addr.mptcp' is not supported")
	case a.To != nil:
		return nbdserver.ListenTCPRange(ctx, network, a.Host, a.Port, *a.To)
	}
	return nbdserver.ListenTCP(ctx, network, a.Host, a.Port)
}

// NBDServerStop stops the NBD server. That cannot be taken back, so it is recorded first.
func (h *Handlers) NBDServerStop(ctx context.Context) error {
	server, exports := h.kept.server, h.kept.exports
	h.kept.server, h.kept.exports = nil, nil
	if err := h.note(ctx, func() { h.kept.server, h.kept.exports = server, exports }); err != nil {
		return err
	}
	return h.nbd.Stop(ctx)
}

// BlockExportAdd makes an export.
func (h *Handlers) BlockExportAdd(ctx context.Context, o *api.BlockExportOptions) error {
	n, err := h.graph.Node(o.NodeName)
	if err != nil {
		return err
	}
	if most := h.config.Limits.Exports; most > 0 && len(h.exports.List()) >= most {
		return qmp.Errorf("There are %d exports, and --max-exports lets no more be made", most)
	}
	if o.NBD == nil {
		return qmp.Errorf("Exports of type '%s' are not available", o.Type)
	}
	var bitmaps []*block.DirtyBitmap
	for _, wanted := range o.NBD.Bitmaps {
		b, err := h.exportedBitmap(n, wanted)
		if err != nil {
			return err
		}
		bitmaps = append(bitmaps, b)
	}
	if err := h.checkIothreads(o.Iothread); err != nil {
		return err
	}
	err = h.nbd.AddExport(ctx, nbdserver.Config{ID: o.ID, Node: n, Name: qmp.Or(o.NBD.Name, ""),
		Description: qmp.Or(o.NBD.Description, ""), Writable: qmp.Or(o.Writable, false),
		WriteThrough: qmp.Or(o.Writethrough, false), AllocationDepth: qmp.Or(o.NBD.AllocationDepth, false), Bitmaps: bitmaps})
	if err != nil {
		return err
	}
	was := h.kept.exports
	h.kept.exports = append(slices.Clone(was), o)
	if err := h.note(ctx, func() { h.kept.exports = was }); err != nil {
		return errors.Join(err, h.exports.Remove(ctx, o.ID, true))
	}
	return nil
}

// exportedBitmap finds a bitmap of an export of n: a local one may lie on a node below.
func (h *Handlers) exportedBitmap(n *block.Node, wanted api.BlockDirtyBitmapOrStr) (*block.DirtyBitmap, error) {
	if wanted.Local != nil {
		return n.FindBitmapBelow(*wanted.Local)
	}
	_, b, err := h.bitmap(wanted.External.Node, wanted.External.Name)
	return b, err
}

// checkIothreads sees to it that named iothreads exist; they have no effect.
func (h *Handlers) checkIothreads(t *api.BlockExportIothreads) error {
	if t == nil {
		return nil
	}
	names := t.Multi
	if t.Single != nil {
		names = []string{*t.Single}
	} else if len(names) > 1 {
		return qmp.Errorf("NBD export does not support multi-threading")
	}
	for _, name := range names {
		if h.objects[name].iothread == nil {
			return qmp.Errorf("iothread \"%s\" not found", name)
		}
	}
	return nil
}

// BlockExportDel removes an export. That cannot be taken back once it has begun, so it is recorded first; what is refused then is
// recorded as being there again.
func (h *Handlers) BlockExportDel(ctx context.Context, a *api.BlockExportDelArguments) error {
	was := h.kept.exports
	back := func() { h.kept.exports = was }
	h.kept.exports = slices.DeleteFunc(slices.Clone(was), func(o *api.BlockExportOptions) bool { return o.ID == a.ID })
	if err := h.note(ctx, back); err != nil {
		return err
	}
	err := h.exports.Remove(ctx, a.ID, a.Mode == api.BlockExportRemoveModeHard)
	if err != nil {
		back()
		err = errors.Join(err, h.note(ctx, func() {}))
	}
	return err
}

// QueryBlockExports lists the exports.
func (h *Handlers) QueryBlockExports(context.Context) ([]api.BlockExportInfo, error) {
	var list []api.BlockExportInfo
	for _, e := range h.exports.List() {
		list = append(list, api.BlockExportInfo{ID: e.ID(), Type: api.BlockExportType(e.Type()),
			NodeName: h.graph.Shown(e.Node()).Name(), ShuttingDown: e.ShuttingDown()})
	}
	return list, nil
}
