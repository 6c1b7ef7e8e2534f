// SPDX-License-Identifier: Apache-2.0

package qmp

import (
	"unicode/utf16"
	"unicode/utf8"
)

// string reads a string up to its closing quote.
func (l *lexer) string(discard bool) error {
	for {
		if _, err := l.peek(); err != nil {
			return err
		}
		rest := l.window[l.pos:]
		n := 0
		for n < len(rest) && rest[n] != l.quote && rest[n] != '\\' && rest[n] >= ' ' && rest[n] < utf8.RuneSelf {
			n++
		}
		l.pos += n
		if err := l.collect(discard, rest[:n]...); err != nil {
			return err
		}
		if n == len(rest) {
			continue
		}
		var err error
		switch c := rest[n]; {
		case c == l.quote:
			l.pos++
			l.quote = 0
			return nil
		case c == '\\':
			err = l.escape(discard)
		case c >= utf8.RuneSelf:
			err = l.rune(discard)
		default:
			bad := l.lexical("invalid character in string", resets(c))
			if c != '\n' { // a line end also counts lines
				l.pos++
			}
			return bad
		}
		if err != nil {
			return err
		}
	}
}

// rune reads one character beyond ASCII.
func (l *lexer) rune(discard bool) error {
	var seq [utf8.UTFMax]byte
	n := 0
	for {
		c, err := l.peek()
		if err != nil {
			return err
		}
		if n > 0 && utf8.RuneStart(c) {
			return l.lexical("invalid UTF-8 sequence in string", resets(c))
		}
		seq[n] = c
		n++
		if r, _ := utf8.DecodeRune(seq[:n]); utf8.FullRune(seq[:n]) {
			if r == utf8.RuneError && n != 3 || r == utf8.RuneError && string(seq[:3]) != "\uFFFD" {
				bad := l.lexical("invalid UTF-8 sequence in string", resets(c))
				l.pos++
				return bad
			}
			l.pos++
			return l.collect(discard, seq[:n]...)
		}
		l.pos++
	}
}

// escape reads a backslash and what it stands for.
func (l *lexer) escape(discard bool) error {
	l.pos++
	c, err := l.peek()
	if err != nil {
		return err
	}
	switch c {
	case '"', '\'', '\\', '/':
	case 'b':
		c = '\b'
	case 'f':
		c = '\f'
	case 'n':
		c = '\n'
	case 'r':
		c = '\r'
	case 't':
		c = '\t'
	case 'u':
		return l.unicode(discard)
	default:
		return l.lexical("invalid escape sequence in string", resets(c))
	}
	l.pos++
	return l.collect(discard, c)
}

// unicode reads the rest of a \u escape, and of the second one of a pair.
func (l *lexer) unicode(discard bool) error {
	r, err := l.unit()
	if err != nil {
		return err
	}
	if utf16.IsSurrogate(r) {
		for _, want := range []byte{'\\', 'u'} {
			c, err := l.peek()
			if err != nil {
				return err
			}
			if c != want {
				return l.lexical("lone surrogate in string", resets(c))
			}
			if want == '\\' {
				l.pos++
			}
		}
		second, err := l.unit()
		if err != nil {
			return err
		}
		if r = utf16.DecodeRune(r, second); r == utf8.RuneError {
			return l.lexical("lone surrogate in string", false)
		}
	}
	var seq [utf8.UTFMax]byte
	return l.collect(discard, utf8.AppendRune(seq[:0], r)...)
}

// unit reads the u and the four digits of a \u escape.
func (l *lexer) unit() (rune, error) {
	var r rune
	for range 4 {
		l.pos++
		c, err := l.peek()
		if err != nil {
			return 0, err
		}
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, l.lexical("invalid \\u escape in string", resets(c))
		}
		r = r<<4 | rune(c)
	}
	l.pos++
	return r, nil
}
