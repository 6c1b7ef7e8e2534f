// SPDX-License-Identifier: Apache-2.0

package handlers

import (
	"context"
	"errors"

	"github.com/blkmirror/blkmirror/block/driver/nbd"
	"github.com/blkmirror/blkmirror/qmp/api"
)

// hosts are the exports to connect to, by the options that say so.
type hosts map[*api.BlockdevOptionsNbd]nbd.Options

// connections are disks on other hosts that are no nodes yet, by the options that they were made of. Who takes one deletes it.
type connections map[*api.BlockdevOptionsNbd]*nbd.Disk

func (c connections) close() error {
	var errs []error
	for _, disk := range c {
		errs = append(errs, disk.Close())
	}
	return errors.Join(errs...)
}

// connect connects to the hosts of all nodes that o defines, before the graph is changed and while other commands run: it takes
// as long as one attempt, or what open-timeout says. It returns o with the nodes that file names stand for.
func (h *Handlers) connect(ctx context.Context, o *api.BlockdevOptions) (*api.BlockdevOptions, connections, error) {
	found := hosts{}
	o, err := h.findHosts(o, nil, "", found)
	if err != nil || len(found) == 0 {
		return o, nil, err
	}
	made := connections{}
	err = h.config.Aside(ctx, func(ctx context.Context) error {
		for definition, options := range found {
			disk, err := nbd.Open(ctx, options)
			if err != nil {
				return err
			}
			made[definition] = disk
		}
		return nil
	})
	if err != nil {
		return nil, nil, errors.Join(err, made.close())
	}
	return o, made, nil
}
