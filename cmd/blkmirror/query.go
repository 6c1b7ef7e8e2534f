// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/blkmirror/blkmirror/cmd/blkmirror/bytesize"
	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
)

// absent stands in a table for what there is not.
const absent = "-"

func (c *cli) nodesCommand() *cobra.Command {
	return &cobra.Command{
		Use: "nodes", Short: "list block nodes, the newest first", Args: cobra.NoArgs,
		RunE: table(c, "query-named-block-nodes", &api.QueryNamedBlockNodesArguments{Flat: ptr(true)},
			"NODE\tDRIVER\tACCESS\tSIZE\tALLOCATED\tCHILDREN\tFILE", nodeRow),
	}
}

func nodeRow(n api.BlockDeviceInfo) []string {
	access, allocated := "rw", absent
	if n.Ro {
		access = "ro"
	}
	if n.Image.ActualSize != nil {
		allocated = bytesize.Format(*n.Image.ActualSize)
	}
	var children []string
	for _, child := range n.Children {
		children = append(children, child.Child+"="+child.NodeName)
	}
	return []string{qmp.Or(n.NodeName, absent), n.Drv, access, bytesize.Format(n.Image.VirtualSize), allocated,
		or(strings.Join(children, ",")), or(n.File)}
}

func (c *cli) exportsCommand() *cobra.Command {
	return &cobra.Command{
		Use: "exports", Short: "list exports", Args: cobra.NoArgs,
		RunE: table(c, "query-block-exports", nil, "EXPORT\tTYPE\tNODE\tSTATE", func(e api.BlockExportInfo) []string {
			state := "active"
			if e.ShuttingDown {
				state = "shutting down"
			}
			return []string{e.ID, string(e.Type), e.NodeName, state}
		}),
	}
}

func (c *cli) jobsCommand() *cobra.Command {
	return &cobra.Command{
		Use: "jobs", Short: "list jobs", Args: cobra.NoArgs,
		RunE: table(c, "query-jobs", nil, jobHeading, jobRow),
	}
}

const jobHeading = "JOB\tTYPE\tSTATUS\tDONE\tTOTAL\tCOPIED\tOFFLOADED\tZEROED\tSKIPPED\tDIRTY\tERROR"

func jobRow(j api.JobInfo) []string {
	row := []string{j.ID, string(j.Type), string(j.Status)}
	if j.Type == api.JobTypeCreate {
		// Its progress is not in bytes.
		row = append(row, strconv.FormatInt(j.CurrentProgress, 10), strconv.FormatInt(j.TotalProgress, 10))
	} else {
		row = append(row, bytesize.Format(j.CurrentProgress), bytesize.Format(j.TotalProgress))
	}
	for _, n := range []*int64{j.CopiedBytes, j.OffloadedBytes, j.ZeroedBytes, j.SkippedBytes, j.DirtyBytes} {
		if n == nil {
			row = append(row, absent)
		} else {
			row = append(row, bytesize.Format(*n))
		}
	}
	return append(row, or(qmp.Or(j.Error, "")))
}

// table makes a command that shows the list that a query returns.
func table[T any](c *cli, query string, arguments any, heading string, row func(T) []string) func(*cobra.Command, []string) error {
	return c.action(func(ctx context.Context, _ []string) error {
		return c.with(ctx, func(s *session) error {
			var answer any
			if err := s.Execute(ctx, query, arguments, &answer); err != nil {
				return err
			}
			if c.json {
				return c.printJSON(answer)
			}
			var list []T
			if err := json.Unmarshal(qmp.Encode(answer), &list); err != nil {
				return fmt.Errorf("result of %s: %w", query, err)
			}
			return printTable(c, heading, list, row)
		})
	})
}

func printTable[T any](c *cli, heading string, list []T, row func(T) []string) error {
	w := tabwriter.NewWriter(c.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, heading)
	for _, item := range list {
		fmt.Fprintln(w, strings.Join(row(item), "\t"))
	}
	return w.Flush()
}

func or(text string) string {
	if text == "" {
		return absent
	}
	return text
}

func ptr[T any](v T) *T { return &v }
