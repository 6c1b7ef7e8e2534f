// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/blkmirror/blkmirror/cmd/blkmirror/bytesize"
	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
)

func (c *cli) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "tell in a few lines what the daemon has and does", Args: cobra.NoArgs,
		RunE: c.action(func(ctx context.Context, _ []string) error {
			return c.with(ctx, func(s *session) error { return c.status(ctx, s) })
		}),
	}
}

func (c *cli) status(ctx context.Context, s *session) error {
	var nodes []api.BlockDeviceInfo
	var exports []api.BlockExportInfo
	var jobs any
	for _, q := range []struct {
		command           string
		arguments, result any
	}{
		{"query-named-block-nodes", &api.QueryNamedBlockNodesArguments{Flat: ptr(true)}, &nodes},
		{"query-block-exports", nil, &exports},
		{"query-jobs", nil, &jobs},
	} {
		if err := s.Execute(ctx, q.command, q.arguments, q.result); err != nil {
			return err
		}
	}
	v := s.Version()
	version := fmt.Sprintf("%d.%d.%d", v.QEMU.Major, v.QEMU.Minor, v.QEMU.Micro)
	var allocated int64
	files := 0
	for _, n := range nodes {
		if len(n.Children) == 0 && n.Image.ActualSize != nil {
			files++
			allocated += *n.Image.ActualSize
		}
	}
	if c.json {
		return c.printJSON(qmp.NewObject(qmp.Member{Name: "package", Value: v.Package}, qmp.Member{Name: "protocol", Value: version},
			qmp.Member{Name: "nodes", Value: len(nodes)}, qmp.Member{Name: "files", Value: files},
			qmp.Member{Name: "allocated-bytes", Value: allocated}, qmp.Member{Name: "exports", Value: len(exports)},
			qmp.Member{Name: "jobs", Value: jobs}))
	}
	var list []api.JobInfo
	if err := json.Unmarshal(qmp.Encode(jobs), &list); err != nil {
		return fmt.Errorf("result of query-jobs: %w", err)
	}
	w := tabwriter.NewWriter(c.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "daemon\t%s\n", or(strings.TrimSpace(v.Package+" (QMP "+version+")")))
	fmt.Fprintf(w, "nodes\t%d, with %s in %s\n", len(nodes), bytesize.Format(allocated), count(files, "file"))
	fmt.Fprintf(w, "exports\t%d\njobs\t%d\n", len(exports), len(list))
	if err := w.Flush(); err != nil || len(list) == 0 {
		return err
	}
	fmt.Fprintln(c.stdout)
	return printTable(c, jobHeading, list, jobRow)
}

// count is a number of things in words.
func count(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}
