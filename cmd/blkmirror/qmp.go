// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/blkmirror/blkmirror/qmp"
)

func (c *cli) qmpCommand() *cobra.Command {
	var file string
	keepGoing := false
	cmd := &cobra.Command{
		Use:   "qmp [MESSAGE | COMMAND [KEY=VALUE...]]",
		Short: "execute any QMP commands: one, a script, or as you type",
		Long: `Executes one QMP command, and prints what it returns as JSON.

The command is given as a whole message, or by its name and arguments. A dot
in a KEY leads into an object. A VALUE that is a number, true, false, null, or
JSON in brackets or quotes is taken for that, and anything else for a string:
write port='"10809"' for a string of digits.

With --file it executes a script: a command per line, written as above with the
quotes of a shell, # and what follows for comments; a whole message may take
several lines. It ends at the first error.

Without a command it is a shell: Tab completes commands and arguments from what
the daemon says that it knows, the arrow keys lead through what was typed
before, events are shown as they come, help explains, and exit or Ctrl-D ends
it. Where standard input is no terminal, that is a script.`,
		Example: `  blkmirror qmp '{"execute": "job-pause", "arguments": {"id": "m"}}'
  blkmirror qmp job-pause id=m
  blkmirror qmp nbd-server-start addr.type=unix addr.data.path=/run/nbd.sock
  blkmirror qmp blockdev-add driver=file node-name=disk filename=/srv/disk.img
  blkmirror qmp --file setup.qmp`,
	}
	cmd.Flags().StringVarP(&file, "file", "f", "", "execute the script in `FILE`; - is standard input")
	cmd.Flags().BoolVar(&keepGoing, "keep-going", false, "go on after a command of a script that was refused")
	cmd.RunE = c.action(func(ctx context.Context, args []string) error {
		if len(args) > 0 {
			if file != "" {
				return usage("give either --file or a command")
			}
			command, arguments, err := parseCommand(args)
			if err != nil {
				return err
			}
			return c.with(ctx, func(s *session) error { return c.executeOne(ctx, s, command, arguments) })
		}
		if file == "" && c.stdin != nil && term.IsTerminal(int(c.stdin.Fd())) {
			return c.with(ctx, func(s *session) error { return c.shell(ctx, s) })
		}
		script, err := c.openScript(file)
		if err != nil {
			return err
		}
		defer script.Close()
		return c.with(ctx, func(s *session) error { return c.script(ctx, s, script, keepGoing) })
	})
	return cmd
}

func (c *cli) executeOne(ctx context.Context, s *session, command string, arguments *qmp.Object) error {
	var answer any
	if err := s.Execute(ctx, command, arguments, &answer); err != nil {
		return err
	}
	return c.printJSON(answer)
}

func parseCommand(args []string) (command string, arguments *qmp.Object, err error) {
	if strings.HasPrefix(strings.TrimSpace(args[0]), "{") {
		if len(args) > 1 {
			return "", nil, usage("'%s' follows a whole message", args[1])
		}
		return parseMessage(args[0])
	}
	arguments = qmp.NewObject()
	for _, arg := range args[1:] {
		key, text, ok := strings.Cut(arg, "=")
		if !ok || key == "" {
			return "", nil, usage("'%s' is not KEY=VALUE", arg)
		}
		value, err := parseValue(text)
		if err != nil {
			return "", nil, usage("%s: %v", key, err)
		}
		if err := put(arguments, key, value); err != nil {
			return "", nil, err
		}
	}
	return args[0], arguments, nil
}

// parseMessage takes a whole message apart. An id is ours to choose.
func parseMessage(text string) (command string, arguments *qmp.Object, err error) {
	value, err := parseJSON(text)
	if err != nil {
		return "", nil, usage("the message is not JSON: %v", err)
	}
	arguments = qmp.NewObject()
	message, _ := value.(*qmp.Object) // it begins with a brace
	for name, value := range message.All() {
		ok := true
		switch name {
		case "execute":
			command, ok = value.(string)
		case "arguments":
			arguments, ok = value.(*qmp.Object)
		case "id":
		default:
			return "", nil, usage("the message has an unknown member '%s'", name)
		}
		if !ok {
			return "", nil, usage("member '%s' of the message has the wrong type", name)
		}
	}
	if command == "" {
		return "", nil, usage("the message has no member 'execute'")
	}
	return command, arguments, nil
}

// parseValue guesses what a value on the command line is.
func parseValue(text string) (any, error) {
	switch text {
	case "true", "false", "null":
		return parseJSON(text)
	case "":
		return "", nil
	}
	switch c := text[0]; {
	case strings.IndexByte(`{["`, c) >= 0:
		return parseJSON(text)
	case c == '-' || c >= '0' && c <= '9':
		// 10M, 2026-01-01 and 10.0.0.1 are strings.
		if value, err := parseJSON(text); err == nil {
			return value, nil
		}
	}
	return text, nil
}

// parseJSON takes one JSON value and nothing behind it.
func parseJSON(text string) (any, error) {
	r := qmp.NewReader(strings.NewReader(text + "\n"))
	value, err := r.Next()
	if err != nil {
		if err == io.ErrUnexpectedEOF {
			err = errors.New("it ends too early")
		}
		return nil, err
	}
	if _, err := r.Next(); err != io.EOF {
		return nil, errors.New("there is more behind it")
	}
	return value, nil
}

// put sets a member; dots in the key lead into objects.
func put(o *qmp.Object, key string, value any) error {
	path := strings.Split(key, ".")
	for i, name := range path[:len(path)-1] {
		inner, ok := o.Get(name)
		if !ok {
			inner = qmp.NewObject()
			o.Set(name, inner)
		}
		if o, ok = inner.(*qmp.Object); !ok {
			return usage("%s: '%s' is no object", key, strings.Join(path[:i+1], "."))
		}
	}
	last := path[len(path)-1]
	if _, twice := o.Get(last); twice {
		return usage("'%s' is given twice", key)
	}
	o.Set(last, value)
	return nil
}
