// SPDX-License-Identifier: Apache-2.0

package handlers

import (
	"context"
	"errors"

	"github.com/blkmirror/blkmirror/block/driver/nbd"
	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
)

// To connect to another host takes as long as one attempt, or what open-timeout says, so it is done while the graph is free and other
// commands run. Which hosts a change needs shows when it is made: an image that it opens may name a backing file there. So a change
// that lacks a connection is taken back and made again when there is one.

// target is what a connection is made to. Nodes of equal targets can do with each other's connections.
type target struct {
	options               nbd.Options // without TLS, which the rest stands for
	uri, creds, tlsServer string
}

func targetOf(o *api.BlockdevOptionsNbd, options nbd.Options) target {
	options.TLS = nil
	return target{options, qmp.Or(o.URI, ""), qmp.Or(o.TLSCreds, ""), qmp.Or(o.TLSHostname, "")}
}

// connection is the driver of a node on another host, and stays when a change that made the node is taken back.
type connection struct {
	*nbd.Disk
	to      target
	options nbd.Options
	failed  error // why there is no disk
	taken   bool  // a node has it
	lent    bool  // the command that runs closes it, not the node
}

// Close gives a connection back that is lent.
func (c *connection) Close() error {
	if c.lent {
		c.taken = false
		return nil
	}
	return c.Disk.Close()
}

// connections are those of one command.
type connections struct {
	made    []*connection
	missing *connection // what the change could not be made without
}

var errNotConnected = errors.New("there is no connection yet")

// take finds a connection for a node, or takes note that one is needed.
func (c *connections) take(to target, options nbd.Options) (*connection, error) {
	for _, have := range c.made {
		switch {
		case have.to != to || have.taken:
		case have.failed != nil:
			return nil, have.failed
		default:
			have.taken = true
			return have, nil
		}
	}
	if len(c.made) == maxChain {
		return nil, qmp.Errorf("The images lead to more than %d exports of other hosts", maxChain)
	}
	c.missing = &connection{to: to, options: options, lent: true}
	return nil, errNotConnected
}

// release leaves connections to the nodes that have them, and closes the others.
func (c *connections) release() error {
	var errs []error
	for _, have := range c.made {
		if have.lent = false; have.Disk != nil && !have.taken {
			errs = append(errs, have.Close())
		}
	}
	return errors.Join(errs...)
}

// connecting carries out a change of the graph that opens nodes. change is called again and again until it has all connections that
// it needs, or fails for another reason.
func (h *Handlers) connecting(ctx context.Context, change func() error) error {
	var c connections
	for {
		h.connections, c.missing = &c, nil
		err := change()
		h.connections = nil
		if err == nil || c.missing == nil {
			return errors.Join(err, c.release())
		}
		next := c.missing
		err = h.config.Aside(ctx, func(ctx context.Context) error {
			next.Disk, next.failed = nbd.Open(ctx, next.options)
			return nil
		})
		c.made = append(c.made, next)
		if err != nil {
			return errors.Join(err, c.release())
		}
	}
}
