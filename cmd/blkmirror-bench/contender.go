// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/blkmirror/blkmirror/cmd/blkmirror/bytesize"
)

// contender is a program that takes part, with its options.
type contender struct {
	name    string
	command []string // of a daemon: what comes before its arguments; of an NBD server: all of it
	options string   // as reports show them

	root      string   // run inside this folder as chroot does
	scenarios []string // those that it takes part in; nil for all

	// Of daemons.
	aio          string // of file nodes
	direct       bool   // cache.direct=on for all nodes
	iothread     bool   // nodes and exports in an I/O thread
	targetIsZero bool
	granularity  int64 // of mirrors, 0 for the default
	bufSize      int64
	durability   string // of mirrors with a state directory, which there is if this is set
}

// parseContender reads NAME[OPTION=VALUE,...]=COMMAND. The brackets may be left out with what is in them.
func parseContender(text string) (*contender, error) {
	c := &contender{aio: "threads"}
	at := strings.IndexAny(text, "[=")
	if at < 0 {
		return nil, fmt.Errorf("'%s' is not NAME=COMMAND", text)
	}
	c.name = text[:at]
	if c.name == "" || strings.ContainsAny(c.name, "|/ ") {
		return nil, fmt.Errorf("'%s' does not begin with a name", text)
	}
	rest := text[at:]
	if rest[0] == '[' {
		end := strings.Index(rest, "]=")
		if end < 0 {
			return nil, fmt.Errorf("'%s' has no ']=' after its options", text)
		}
		c.options, rest = rest[1:end], rest[end+1:]
		var shown []string
		for option := range strings.SplitSeq(c.options, ",") {
			if err := c.set(option); err != nil {
				return nil, fmt.Errorf("%s: %w", c.name, err)
			}
			if strings.HasPrefix(option, "root=") {
				option = "root" // where it is says nothing to those who read the results
			}
			shown = append(shown, option)
		}
		c.options = strings.Join(shown, ",")
	}
	var err error
	if c.command, err = splitWords(rest[1:]); err != nil {
		return nil, fmt.Errorf("%s: %w", c.name, err)
	}
	if len(c.command) == 0 {
		return nil, fmt.Errorf("%s has no command", c.name)
	}
	return c, nil
}

func (c *contender) set(option string) (err error) {
	key, value, ok := strings.Cut(option, "=")
	if !ok {
		return fmt.Errorf("option '%s' has no value", option)
	}
	onOff := func(to *bool) error {
		if value != "on" && value != "off" {
			return fmt.Errorf("%s is on or off, not '%s'", key, value)
		}
		*to = value == "on"
		return nil
	}
	size := func(to *int64) error {
		n, err := bytesize.Parse(value)
		if err == nil && n <= 0 {
			err = errors.New("must be positive")
		}
		if err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
		*to = n
		return nil
	}
	switch key {
	case "aio":
		if !slices.Contains([]string{"threads", "native", "io_uring"}, value) {
			return fmt.Errorf("aio is threads, native or io_uring, not '%s'", value)
		}
		c.aio = value
		return nil
	case "cache.direct":
		return onOff(&c.direct)
	case "iothread":
		return onOff(&c.iothread)
	case "target-is-zero":
		return onOff(&c.targetIsZero)
	case "granularity":
		return size(&c.granularity)
	case "buf-size":
		return size(&c.bufSize)
	case "state-dir":
		if !slices.Contains([]string{"process", "host"}, value) {
			return fmt.Errorf("state-dir is process or host, not '%s'", value)
		}
		c.durability = value
		return nil
	case "root":
		if c.root, err = filepath.Abs(value); err == nil && c.root == "/" {
			c.root = ""
		}
		return err
	case "scenarios":
		c.scenarios = strings.Split(strings.ToUpper(value), "+")
		return nil
	default:
		return fmt.Errorf("there is no option '%s'", key)
	}
}

// takesPart says whether the contender is there in a scenario.
func (c *contender) takesPart(scenario string) bool {
	return c.scenarios == nil || slices.Contains(c.scenarios, scenario)
}

// inside is the name that the program has for a file.
func (c *contender) inside(path string) string {
	if c.root == "" {
		return path
	}
	if below, ok := strings.CutPrefix(path, c.root+"/"); ok {
		return "/" + below
	}
	return path
}

// sees finds out whether the program has the folder under the name that inside gives.
func (c *contender) sees(folder string) error {
	if c.root == "" {
		return nil
	}
	here, err := os.Stat(folder)
	if err != nil {
		return err
	}
	if there, err := os.Stat(filepath.Join(c.root, c.inside(folder))); err != nil || !os.SameFile(here, there) {
		return fmt.Errorf("%s does not see %s from inside %s: name a --dir below that", c.name, folder, c.root)
	}
	return nil
}

// installed finds out whether the program is there.
func (c *contender) installed() error {
	argv := c.argv(nil)
	if c.root == "" {
		_, err := exec.LookPath(argv[0])
		return err
	}
	if strings.Contains(c.command[0], "/") {
		_, err := os.Stat(filepath.Join(c.root, c.command[0]))
		return err
	}
	for _, folder := range []string{"usr/local/sbin", "usr/local/bin", "usr/sbin", "usr/bin", "sbin", "bin"} {
		if _, err := os.Stat(filepath.Join(c.root, folder, c.command[0])); err == nil {
			return nil
		}
	}
	return fmt.Errorf("there is no %s in %s", c.command[0], c.root)
}

// argv is the whole command line. Arguments are those of a daemon; in an NBD server's command, {socket} and {file} are
// replaced.
func (c *contender) argv(replace *strings.Replacer, args ...string) (argv []string) {
	if c.root != "" {
		argv = []string{"chroot", c.root}
	}
	for _, word := range c.command {
		if replace != nil {
			word = replace.Replace(word)
		}
		argv = append(argv, word)
	}
	return append(argv, args...)
}

// splitWords splits as a shell does, with quotes of both kinds and backslashes, and nothing else that shells have.
func splitWords(text string) (words []string, err error) {
	var word strings.Builder
	var quote rune
	in, escaped := false, false
	for _, r := range text {
		switch {
		case escaped:
			word.WriteRune(r)
			escaped = false
		case r == '\\' && quote != '\'':
			escaped, in = true, true
		case quote != 0:
			if r == quote {
				quote = 0
			} else {
				word.WriteRune(r)
			}
		case r == '\'' || r == '"':
			quote, in = r, true
		case r == ' ' || r == '\t' || r == '\n':
			if in {
				words, in = append(words, word.String()), false
				word.Reset()
			}
		default:
			word.WriteRune(r)
			in = true
		}
	}
	if quote != 0 || escaped {
		return nil, fmt.Errorf("open quote in %s", strconv.Quote(text))
	}
	if in {
		words = append(words, word.String())
	}
	return words, nil
}
