// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
)

func (c *cli) exportCommand() *cobra.Command {
	list := c.exportsCommand()
	list.Use = "list"
	return group("export", "what clients can reach over NBD", list, c.exportAddCommand(), c.exportRemoveCommand())
}

func (c *cli) exportAddCommand() *cobra.Command {
	var id, name, description string
	var bitmaps []string
	writable, writethrough := false, false
	cmd := &cobra.Command{
		Use:   "add NODE",
		Short: "export a node over NBD",
		Long: `Exports a node over NBD, read-only unless --writable is given. The NBD server
must run: the daemon starts it with --nbd-server or nbd-server-start.`,
		Args: cobra.ExactArgs(1),
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVar(&id, "id", "", "`ID` of the export (default: NODE)")
	flags.StringVar(&name, "name", "", "`NAME` that NBD clients use (default: NODE)")
	flags.StringVar(&description, "description", "", "`TEXT` for people that NBD clients are told")
	flags.BoolVarP(&writable, "writable", "w", false, "clients may write")
	flags.BoolVar(&writethrough, "writethrough", false, "every write is durable before it is answered")
	flags.StringSliceVar(&bitmaps, "bitmap", nil, "`NAME` of a bitmap that clients may ask for; may be given again")
	cmd.RunE = c.action(func(ctx context.Context, args []string) error {
		o := &api.BlockExportOptions{Type: api.BlockExportTypeNBD, ID: id, NodeName: args[0], NBD: &api.BlockExportOptionsNbd{}}
		if id == "" {
			o.ID = args[0]
		}
		if name != "" {
			o.NBD.Name = &name
		}
		if description != "" {
			o.NBD.Description = &description
		}
		if writable {
			o.Writable = &writable
		}
		if writethrough {
			o.Writethrough = &writethrough
		}
		for _, b := range bitmaps {
			o.NBD.Bitmaps = append(o.NBD.Bitmaps, api.BlockDirtyBitmapOrStr{Local: &b})
		}
		return c.execute(ctx, "block-export-add", o, exportObject(o.ID), "export '%s' serves node '%s'", o.ID, o.NodeName)
	})
	return cmd
}

func (c *cli) exportRemoveCommand() *cobra.Command {
	hard := false
	cmd := &cobra.Command{Use: "remove EXPORT", Short: "remove an export that no client uses", Args: cobra.ExactArgs(1)}
	cmd.Flags().BoolVar(&hard, "hard", false, "drop its clients")
	cmd.RunE = c.action(func(ctx context.Context, args []string) error {
		a := &api.BlockExportDelArguments{ID: args[0]}
		if hard {
			a.Mode = api.BlockExportRemoveModeHard
		}
		return c.execute(ctx, "block-export-del", a, exportObject(a.ID), "export '%s' is removed", a.ID)
	})
	return cmd
}

func exportObject(id string) *qmp.Object { return qmp.NewObject(qmp.Member{Name: "export", Value: id}) }
