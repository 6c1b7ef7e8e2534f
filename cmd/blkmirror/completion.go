// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/blkmirror/blkmirror/qmp"
)

// completionTime is how long a shell waits for a daemon that is asked what there is to complete.
const completionTime = time.Second

// kinds of names that a daemon knows, by the words for them in the usage of commands: what to ask, and where the name stands.
var kinds = map[string]struct{ query, member string }{
	"JOB":    {"query-jobs", "id"},
	"NODE":   {"query-named-block-nodes", "node-name"},
	"SOURCE": {"query-named-block-nodes", "node-name"},
	"TARGET": {"query-named-block-nodes", "node-name"},
	"EXPORT": {"query-block-exports", "id"},
}

// addCompletions gives the commands below cmd completions of what their usage says that they take.
func (c *cli) addCompletions(cmd *cobra.Command) {
	for _, below := range cmd.Commands() {
		c.addCompletions(below)
	}
	words := strings.Fields(cmd.Use)
	if len(words) < 2 {
		return
	}
	cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args)+1 >= len(words) {
			return nil, cobra.ShellCompDirectiveDefault
		}
		kind, ok := kinds[strings.Trim(words[len(args)+1], "[].")]
		if !ok {
			return nil, cobra.ShellCompDirectiveDefault // a file
		}
		return c.names(kind.query, kind.member), cobra.ShellCompDirectiveNoFileComp
	}
}

// names asks the daemon for names; none if it does not answer.
func (c *cli) names(query, member string) (list []string) {
	ctx, cancel := context.WithTimeout(context.Background(), completionTime)
	defer cancel()
	quiet := *c
	quiet.stderr = io.Discard // there is a person in the middle of a line
	_ = quiet.with(ctx, func(s *session) error {
		var answer any
		if err := s.Execute(ctx, query, nil, &answer); err != nil {
			return err
		}
		var things []map[string]any
		if err := json.Unmarshal(qmp.Encode(answer), &things); err != nil {
			return err
		}
		for _, t := range things {
			if name, ok := t[member].(string); ok {
				list = append(list, name)
			}
		}
		return nil
	})
	return list
}
