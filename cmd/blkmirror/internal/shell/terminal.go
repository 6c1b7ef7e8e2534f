// SPDX-License-Identifier: Apache-2.0

package shell

import (
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// Terminal reads lines from a person.
type Terminal struct {
	*term.Terminal // what is written to it comes above the line that is being edited
	fd             int
	before         *term.State
	prompt         string
}

const (
	keyTab    = '\t'
	keyCtrlC  = 3
	continued = "... "
)

// OpenTerminal takes over a terminal. Restore gives it back. Reading ends with ctx.
func OpenTerminal(ctx context.Context, in, out *os.File, prompt string, h *History, complete func(line string) (word string, candidates []string)) (*Terminal, error) {
	t := &Terminal{fd: int(in.Fd()), prompt: prompt}
	t.Terminal = term.NewTerminal(struct {
		io.Reader
		io.Writer
	}{&keys{ctx: ctx, fd: t.fd}, out}, prompt)
	t.History = h
	t.AutoCompleteCallback = func(line string, pos int, key rune) (string, int, bool) {
		if key != keyTab {
			return "", 0, false
		}
		word, candidates := complete(line[:pos])
		extended := Extend(line[:pos], word, candidates)
		if extended == line[:pos] && len(candidates) > 1 {
			_, _ = io.WriteString(t, t.columns(candidates)) // a terminal that is gone is noticed when it is read
		}
		return extended + line[pos:], len(extended), true
	}
	return t, t.raw()
}

// raw lets keys come as they are pressed.
func (t *Terminal) raw() error {
	before, err := term.MakeRaw(t.fd)
	if err != nil {
		return err
	}
	t.before = before
	return nil
}

// Restore makes the terminal what it was.
func (t *Terminal) Restore() error {
	if t.before == nil {
		return nil
	}
	before := t.before
	t.before = nil
	return term.Restore(t.fd, before)
}

// Aside runs f with a terminal on which Ctrl-C interrupts, as it does for any other program.
func (t *Terminal) Aside(f func()) error {
	if err := t.signals(true); err != nil {
		return err
	}
	f()
	return t.signals(false)
}

// signals says whether Ctrl-C and its like are signals, or keys.
func (t *Terminal) signals(on bool) error {
	settings, err := unix.IoctlGetTermios(t.fd, unix.TCGETS)
	if err != nil {
		return err
	}
	settings.Lflag &^= unix.ISIG
	if on {
		settings.Lflag |= unix.ISIG
	}
	return unix.IoctlSetTermios(t.fd, unix.TCSETS, settings)
}

// Line reads a line; the later lines of a message have another prompt. io.EOF is Ctrl-D.
func (t *Terminal) Line(more bool) (string, error) {
	t.SetPrompt(t.prompt)
	if more {
		t.SetPrompt(continued)
	}
	if width, height, err := term.GetSize(t.fd); err == nil && width > 0 {
		if err := t.SetSize(width, height); err != nil {
			return "", err
		}
	}
	line, err := t.ReadLine()
	if errors.Is(err, term.ErrPasteIndicator) {
		err = nil
	}
	return line, err
}

// columns writes words below one another in as many columns as there is room for.
func (t *Terminal) columns(words []string) string {
	width, _, err := term.GetSize(t.fd)
	if err != nil || width <= 0 {
		width = 80
	}
	longest := len(slices.MaxFunc(words, func(a, b string) int { return len(a) - len(b) })) + 2
	perRow := max(1, width/longest)
	rows := (len(words) + perRow - 1) / perRow
	var b strings.Builder
	for r := range rows {
		line := ""
		for i := r; i < len(words); i += rows {
			line += words[i] + strings.Repeat(" ", longest-len(words[i]))
		}
		b.WriteString(strings.TrimRight(line, " ") + "\n")
	}
	return b.String()
}

// keys are those of a terminal. Ctrl-C gives a line up: the editor, which would end, is told to erase it.
type keys struct {
	ctx context.Context // of the terminal, whose reader has no other way to learn of its end
	fd  int
	own []byte
}

// eraseLine are the keys Ctrl-E and Ctrl-U.
var eraseLine = []byte{5, 21}

func (k *keys) Read(p []byte) (int, error) {
	if len(k.own) == 0 {
		buffer := make([]byte, max(1, len(p)/len(eraseLine)))
		n, err := k.wait(buffer)
		if err != nil {
			return 0, err
		}
		for _, b := range buffer[:n] {
			if b == keyCtrlC {
				k.own = append(k.own, eraseLine...)
			} else {
				k.own = append(k.own, b)
			}
		}
	}
	n := copy(p, k.own)
	k.own = k.own[n:]
	return n, nil
}

// wait reads when there is something, or ctx ends.
func (k *keys) wait(p []byte) (int, error) {
	ended, signal, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer ended.Close()
	defer signal.Close()
	defer context.AfterFunc(k.ctx, func() { signal.Close() })()
	for {
		ready := []unix.PollFd{{Fd: int32(k.fd), Events: unix.POLLIN}, {Fd: int32(ended.Fd()), Events: unix.POLLIN}}
		_, err := unix.Poll(ready, -1)
		switch {
		case k.ctx.Err() != nil:
			return 0, context.Cause(k.ctx)
		case err == unix.EINTR:
			continue
		case err != nil:
			return 0, err
		}
		n, err := unix.Read(k.fd, p)
		switch {
		case err == unix.EINTR || err == unix.EAGAIN:
			continue
		case err != nil:
			return 0, err
		case n == 0:
			return 0, io.EOF
		}
		return n, nil
	}
}
