// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/blkmirror/blkmirror/cmd/blkmirror/bytesize"
	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
)

// createFlags are the flags of create.
type createFlags struct {
	newImage
	like string // node whose size counts
	node string // to open the image as, "" not to
}

func (c *cli) createCommand() *cobra.Command {
	var f createFlags
	cmd := &cobra.Command{
		Use:   "create FILE {SIZE | --like NODE}",
		Short: "let the daemon make an image",
		Long: `Lets the daemon make an image of a SIZE, or of that of a node, and opens it as
a node if --node is given: a target for mirror start. FILE is a path on the
daemon's host, relative to the folder that you are in unless the daemon is
reached by TCP. An image that is there is lost.`,
		Example: "  blkmirror create /srv/new.img 20G\n  blkmirror create /srv/copy.qcow2 --like disk --node copy",
		Args:    cobra.RangeArgs(1, 2),
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	addEnum(cmd, &f.format, "format", "format of the image (default: by the ending of FILE)", formats...)
	flags.StringVar(&f.like, "like", "", "`NODE` that it is to have the size of")
	flags.StringVar(&f.node, "node", "", "`NAME` of the node to open it as")
	addEnum(cmd, &f.preallocation, "preallocation", "what to allocate at once (default: off)",
		api.PreallocModeOff, api.PreallocModeMetadata, api.PreallocModeFalloc, api.PreallocModeFull)
	flags.Var(sizeFlag{&f.clusterSize}, "cluster-size", "`SIZE` of the clusters of a qcow2 image")
	flags.StringVar(&f.backing, "backing", "", "`FILE` that has what a qcow2 image does not")
	addEnum(cmd, &f.backingFormat, "backing-format", "format of the backing file (default: by its ending)", formats...)
	cmd.RunE = c.action(func(ctx context.Context, args []string) error {
		if err := f.finish(args); err != nil {
			return err
		}
		return c.with(ctx, func(s *session) error {
			if s.local() {
				var err error
				if f.path, err = filepath.Abs(f.path); err != nil {
					return err
				}
			}
			return c.create(ctx, s, &f)
		})
	})
	return cmd
}

// finish checks the arguments and fills in the rest.
func (f *createFlags) finish(args []string) (err error) {
	f.path = args[0]
	if (len(args) == 2) == (f.like != "") {
		return usage("give either a SIZE or --like")
	}
	if len(args) == 2 {
		if f.size, err = bytesize.Parse(args[1]); err != nil {
			return usage("%v", err)
		}
	}
	if f.format == "" {
		f.format = formatOf(f.path)
	}
	if f.format != formatQcow2 && (f.backing != "" || f.clusterSize != nil) {
		return usage("only qcow2 images have clusters and backing files; the format is %s", f.format)
	}
	if f.backing != "" && f.backingFormat == "" {
		f.backingFormat = formatOf(f.backing)
	}
	return nil
}

func (c *cli) create(ctx context.Context, s *session, f *createFlags) error {
	if f.like != "" {
		nodes, err := queryNodes(ctx, s)
		if err != nil {
			return err
		}
		n, ok := nodes.find(f.like)
		if !ok {
			return fmt.Errorf("there is no node '%s'", f.like)
		}
		f.size = n.Image.VirtualSize
	}
	if err := f.create(ctx, s); err != nil {
		return err
	}
	object := qmp.NewObject(qmp.Member{Name: "file", Value: f.path}, qmp.Member{Name: "format", Value: string(f.format)},
		qmp.Member{Name: "size", Value: f.size})
	text := fmt.Sprintf("'%s' is a %s image of %s", f.path, f.format, bytesize.Format(f.size))
	if f.node != "" {
		if err := s.Execute(ctx, "blockdev-add", imageOptions(f.node, f.path, f.format), nil); err != nil {
			return fmt.Errorf("'%s' is made, but cannot be opened: %w", f.path, err)
		}
		object.Set("node", f.node)
		text += fmt.Sprintf(", open as node '%s'", f.node)
	}
	c.say(object, "%s", text)
	return nil
}
