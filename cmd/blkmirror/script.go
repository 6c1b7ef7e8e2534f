// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/blkmirror/blkmirror/cmd/blkmirror/internal/shell"
	"github.com/blkmirror/blkmirror/qmp"
)

// longestLine is what a line of a script may have at most, in bytes.
const longestLine = 1 << 20

func (c *cli) openScript(path string) (*os.File, error) {
	switch {
	case path != "" && path != "-":
		f, err := os.Open(path)
		return f, err
	case c.stdin == nil:
		return nil, usage("no command given")
	}
	return c.stdin, nil
}

// script executes the commands of a file.
func (c *cli) script(ctx context.Context, s *session, script *os.File, keepGoing bool) error {
	lines := bufio.NewScanner(script)
	lines.Buffer(nil, longestLine)
	var message string // the lines of one that is not complete
	var failed error
	number, begun := 0, 0
	for lines.Scan() {
		number++
		if message == "" {
			begun = number
		}
		command, arguments, more, err := parseLine(message + lines.Text())
		if more {
			message += lines.Text() + "\n"
			continue
		}
		message = ""
		if err == nil && command != "" {
			err = c.executeOne(ctx, s, command, arguments)
		}
		if err == nil {
			continue
		}
		err = fmt.Errorf("%s:%d: %w", script.Name(), begun, err)
		if _, refused := errors.AsType[*qmp.Error](err); !refused || !keepGoing {
			return err
		}
		fmt.Fprintf(c.stderr, "blkmirror: %v\n", err)
		failed = err
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("%s:%d: %w", script.Name(), number+1, err)
	}
	if message != "" {
		return usage("%s:%d: the message is not complete", script.Name(), begun)
	}
	if failed != nil {
		return errors.New("not all commands were carried out")
	}
	return nil
}

// parseLine makes a command of a line. more says that a message goes on in the next one; command is "" for a line without one.
func parseLine(line string) (command string, arguments *qmp.Object, more bool, err error) {
	words, err := shell.Split(line)
	if err != nil {
		return "", nil, false, usage("%v", err)
	}
	if len(words) == 0 {
		return "", nil, false, nil
	}
	if shell.IsMessage(line) {
		if _, err := qmp.NewReader(strings.NewReader(line)).Next(); err == io.ErrUnexpectedEOF {
			return "", nil, true, nil
		}
	}
	command, arguments, err = parseCommand(words)
	return command, arguments, false, err
}
