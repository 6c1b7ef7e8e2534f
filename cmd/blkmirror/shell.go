// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/blkmirror/blkmirror/cmd/blkmirror/internal/shell"
)

const shellPrompt = "qmp> "

// shellWords are those that the shell itself knows.
var shellWords = []string{"exit", "help"}

// shell executes what a person types, until that is enough.
func (c *cli) shell(ctx context.Context, s *session) (err error) {
	var elements []shell.Entity
	if err := s.Execute(ctx, "query-qmp-schema", nil, &elements); err != nil {
		return err
	}
	schema := shell.NewSchema(elements)
	history, err := shell.LoadHistory(c.historyFile())
	if err != nil {
		fmt.Fprintf(c.stderr, "blkmirror: what was typed before cannot be read: %v\n", err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	t, err := shell.OpenTerminal(ctx, c.stdin, os.Stdout, shellPrompt, history,
		func(line string) (string, []string) { return schema.Complete(line, shellWords...) })
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.Restore(), history.Save()) }()
	fmt.Fprintf(t, "%s. Tab completes, help explains, exit or Ctrl-D leaves.\n", s.Version().Package)

	inner := *c
	inner.stdout, inner.stderr = t, t
	var events sync.WaitGroup
	events.Go(func() { inner.showEvents(ctx, cancel, s) })
	defer events.Wait()
	defer cancel(nil)
	line := ""
	for {
		next, err := t.Line(line != "")
		switch {
		case err == io.EOF:
			fmt.Fprintln(t)
			return nil
		case err != nil:
			return err
		}
		line += next + "\n"
		switch words := strings.Fields(line); {
		case len(words) == 1 && words[0] == "exit":
			return nil
		case len(words) == 1 && words[0] == "quit":
			fmt.Fprintln(t, `quit ends the daemon, not this shell: leave with exit, or write {"execute": "quit"}`)
			line = ""
			continue
		case len(words) > 0 && words[0] == "help":
			fmt.Fprint(t, shellHelp(schema, words[1:]))
			line = ""
			continue
		}
		command, arguments, more, err := parseLine(line)
		if more && next != "" { // an empty line ends what cannot be completed
			continue
		}
		line = ""
		if more {
			err = errors.New("the message is not complete")
		}
		if err == nil && command != "" {
			restored := t.Aside(func() { err = inner.executeOne(ctx, s, command, arguments) })
			if restored != nil {
				return restored
			}
		}
		if command == "quit" && err == nil {
			return nil
		}
		if _, lost := errors.AsType[*connectionError](err); lost || ctx.Err() != nil {
			return err
		}
		if err != nil {
			fmt.Fprintf(t, "error: %v\n", err)
		}
	}
}

// showEvents shows events above what is being typed. When the connection ends, so does ctx.
func (c *cli) showEvents(ctx context.Context, cancel context.CancelCauseFunc, s *session) {
	for {
		select {
		case e, ok := <-s.Events():
			if !ok {
				cancel(s.Execute(ctx, "query-version", nil, nil)) // which says why
				return
			}
			fmt.Fprintln(c.stdout, c.eventLine(e))
		case <-ctx.Done():
			return
		}
	}
}

func shellHelp(schema *shell.Schema, about []string) string {
	if len(about) == 0 {
		return "COMMAND [KEY=VALUE...], or a whole message in JSON. help COMMAND lists the KEYs of a command:\n  " +
			strings.Join(schema.Commands(), "\n  ") + "\n"
	}
	text, ok := schema.Help(about[0])
	if !ok {
		return "There is no command '" + about[0] + "'\n"
	}
	return text
}

// historyFile is where the shell keeps what was typed, by the rules for such files (XDG base directories); "" for nowhere.
func (c *cli) historyFile() string {
	folder := c.getenv("XDG_STATE_HOME")
	if !filepath.IsAbs(folder) {
		home := c.getenv("HOME")
		if home == "" {
			return ""
		}
		folder = filepath.Join(home, ".local", "state")
	}
	return filepath.Join(folder, "blkmirror", "history")
}
