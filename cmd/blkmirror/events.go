// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/client"
)

func (c *cli) eventsCommand() *cobra.Command {
	follow := true
	cmd := &cobra.Command{
		Use:   "events [NAME...]",
		Short: "print events as they come",
		Long: `Prints events as they come, one per line; with NAMEs only those.

It ends with status 0 when it is interrupted, with --follow=false after the
first event. Events from before it was connected are not shown.`,
		Example: "  blkmirror events\n  blkmirror events BLOCK_JOB_READY --follow=false --timeout 1h",
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", follow, "go on until interrupted")
	cmd.RunE = c.action(func(ctx context.Context, names []string) error {
		err := c.with(ctx, func(s *session) error { return c.stream(ctx, s, names, follow) })
		if errors.Is(err, errInterrupted) && follow {
			return nil // that is how it ends
		}
		return err
	})
	return cmd
}

func (c *cli) stream(ctx context.Context, s *session, names []string, follow bool) error {
	for {
		select {
		case e, ok := <-s.Events():
			if !ok {
				// The connection is over. Any command says why.
				return s.Execute(ctx, "query-version", nil, nil)
			}
			if e.Lost > 0 {
				fmt.Fprintf(c.stderr, "blkmirror: %d events were lost here\n", e.Lost)
			}
			if len(names) > 0 && !slices.Contains(names, e.Name) {
				continue
			}
			if _, err := fmt.Fprintln(c.stdout, c.eventLine(e)); err != nil || !follow {
				return err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// eventLine is an event for people, or as it came.
func (c *cli) eventLine(e client.Event) string {
	if c.json {
		at := qmp.NewObject(qmp.Member{Name: "seconds", Value: e.Time.Unix()},
			qmp.Member{Name: "microseconds", Value: int64(e.Time.Nanosecond() / 1000)})
		return string(qmp.Encode(qmp.NewObject(qmp.Member{Name: "timestamp", Value: at},
			qmp.Member{Name: "event", Value: e.Name}, qmp.Member{Name: "data", Value: e.Data})))
	}
	var b strings.Builder
	b.WriteString(e.Time.Format("15:04:05.000000 ") + e.Name)
	for name, value := range e.Data.All() {
		text, ok := value.(string)
		if !ok || text == "" || strings.ContainsAny(text, " \t\r\n\"=") {
			text = string(qmp.Encode(value))
		}
		fmt.Fprintf(&b, " %s=%s", name, text)
	}
	return b.String()
}
