// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"math"
	"strings"

	"github.com/spf13/cobra"

	"github.com/blkmirror/blkmirror/cmd/blkmirror/bytesize"
	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
)

func (c *cli) bitmapCommand() *cobra.Command {
	return group("bitmap", "dirty bitmaps: which parts of a node were written",
		c.bitmapListCommand(), c.bitmapAddCommand(),
		c.bitmapVerb("remove", "remove a bitmap", "is removed"),
		c.bitmapVerb("clear", "let a bitmap forget what was written", "is clear"),
		c.bitmapVerb("enable", "let a bitmap record", "records"),
		c.bitmapVerb("disable", "stop a bitmap from recording", "does not record"),
		c.bitmapMergeCommand())
}

func (c *cli) bitmapListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list [NODE]", Short: "list the bitmaps of a node, or of all", Args: cobra.MaximumNArgs(1),
		RunE: c.action(func(ctx context.Context, args []string) error {
			return c.with(ctx, func(s *session) error { return c.listBitmaps(ctx, s, args) })
		}),
	}
}

func (c *cli) listBitmaps(ctx context.Context, s *session, only []string) error {
	nodes, err := queryNodes(ctx, s)
	if err != nil {
		return err
	}
	if len(only) > 0 {
		n, ok := nodes.find(only[0])
		if !ok {
			return fmt.Errorf("there is no node '%s'", only[0])
		}
		nodes = nodeList{n}
	}
	type bitmap struct {
		node string
		api.BlockDirtyInfo
	}
	var list []bitmap
	objects := []any{}
	for _, n := range nodes {
		for _, b := range n.DirtyBitmaps {
			list = append(list, bitmap{nameOf(n), b})
			objects = append(objects, qmp.NewObject(qmp.Member{Name: "node", Value: nameOf(n)}, qmp.Member{Name: "bitmap", Value: &b}))
		}
	}
	if c.json {
		return c.printJSON(objects)
	}
	return printTable(c, "NODE\tBITMAP\tDIRTY\tGRANULARITY\tSTATE", list, func(b bitmap) []string {
		state := []string{"disabled"}
		if b.Recording {
			state[0] = "recording"
		}
		for _, more := range []struct {
			holds bool
			name  string
		}{{b.Busy, "busy"}, {b.Persistent, "persistent"}, {qmp.Or(b.Inconsistent, false), "inconsistent"}} {
			if more.holds {
				state = append(state, more.name)
			}
		}
		return []string{b.node, qmp.Or(b.Name, absent), bytesize.Format(b.Count), bytesize.Format(int64(b.Granularity)), strings.Join(state, ",")}
	})
}

func (c *cli) bitmapAddCommand() *cobra.Command {
	var a api.BlockDirtyBitmapAdd
	var granularity *int64
	persistent, disabled := false, false
	cmd := &cobra.Command{Use: "add NODE BITMAP", Short: "make a bitmap that records what is written from now on", Args: cobra.ExactArgs(2)}
	flags := cmd.Flags()
	flags.Var(sizeFlag{&granularity}, "granularity", "`SIZE` of the parts that are told apart, a power of two\n(default: the node's cluster size within 4 KiB and 64 KiB)")
	flags.BoolVar(&persistent, "persistent", false, "keep it in the image, which must be qcow2")
	flags.BoolVar(&disabled, "disabled", false, "do not record yet")
	cmd.RunE = c.action(func(ctx context.Context, args []string) error {
		a.Node, a.Name = args[0], args[1]
		if granularity != nil {
			if *granularity > math.MaxUint32 {
				return usage("--granularity %d is too large", *granularity)
			}
			a.Granularity = ptr(uint32(*granularity))
		}
		if persistent {
			a.Persistent = &persistent
		}
		if disabled {
			a.Disabled = &disabled
		}
		return c.execute(ctx, "block-dirty-bitmap-add", &a, bitmapObject(a.Node, a.Name), "bitmap '%s' of node '%s' is there", a.Name, a.Node)
	})
	return cmd
}

// bitmapVerb makes a command that does something to one bitmap.
func (c *cli) bitmapVerb(name, short, done string) *cobra.Command {
	return &cobra.Command{
		Use: name + " NODE BITMAP", Short: short, Args: cobra.ExactArgs(2),
		RunE: c.action(func(ctx context.Context, args []string) error {
			b := &api.BlockDirtyBitmap{Node: args[0], Name: args[1]}
			return c.execute(ctx, "block-dirty-bitmap-"+name, b, bitmapObject(b.Node, b.Name), "bitmap '%s' of node '%s' %s", b.Name, b.Node, done)
		}),
	}
}

func (c *cli) bitmapMergeCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "merge NODE BITMAP FROM...",
		Short: "add what other bitmaps have recorded to a bitmap",
		Long: `Adds what other bitmaps have recorded to BITMAP of NODE. Each FROM is a bitmap
of the same node, or NODE:BITMAP.`,
		Args: cobra.MinimumNArgs(3),
		RunE: c.action(func(ctx context.Context, args []string) error {
			m := &api.BlockDirtyBitmapMerge{Node: args[0], Target: args[1]}
			for _, from := range args[2:] {
				if node, name, other := strings.Cut(from, ":"); other {
					m.Bitmaps = append(m.Bitmaps, api.BlockDirtyBitmapOrStr{External: &api.BlockDirtyBitmap{Node: node, Name: name}})
				} else {
					m.Bitmaps = append(m.Bitmaps, api.BlockDirtyBitmapOrStr{Local: ptr(from)})
				}
			}
			return c.execute(ctx, "block-dirty-bitmap-merge", m, bitmapObject(m.Node, m.Target), "bitmap '%s' of node '%s' has them all", m.Target, m.Node)
		}),
	}
}

func bitmapObject(node, name string) *qmp.Object {
	return qmp.NewObject(qmp.Member{Name: "node", Value: node}, qmp.Member{Name: "bitmap", Value: name})
}

// execute connects for one command that returns nothing, and says that it is done.
func (c *cli) execute(ctx context.Context, command string, arguments any, object *qmp.Object, done string, args ...any) error {
	return c.with(ctx, func(s *session) error {
		if err := s.Execute(ctx, command, arguments, nil); err != nil {
			return err
		}
		c.say(object, done, args...)
		return nil
	})
}
