// SPDX-License-Identifier: Apache-2.0

package qmp

import (
	"io"
	"strconv"
)

// windowSize is how much is read at once. Longer tokens are collected in a
// buffer of their own.
const windowSize = 4096

// keptText is the largest such buffer that is kept for the next token.
const keptText = 64 << 10

type tokenKind byte

const (
	tokenObject    tokenKind = '{'
	tokenObjectEnd tokenKind = '}'
	tokenArray     tokenKind = '['
	tokenArrayEnd  tokenKind = ']'
	tokenColon     tokenKind = ':'
	tokenComma     tokenKind = ','
	tokenString    tokenKind = '"'
	tokenNumber    tokenKind = '0'
	tokenWord      tokenKind = 'a'
)

type token struct {
	kind         tokenKind
	line, column int
}

// lexicalError reports bytes that are no token. With reset, they are such
// that the client asks for a fresh start.
type lexicalError struct {
	err   *Error
	reset bool
}

func (e *lexicalError) Error() string { return e.err.Desc }

// lexer splits a stream into tokens. It reads no further than it must.
type lexer struct {
	src    io.Reader
	window []byte // what was read and not yet used is window[pos:]
	pos    int
	err    error // sticky, from src

	offset    int64 // of window[0] in the stream
	line      int
	lineStart int64 // offset of the current line

	size  int  // bytes of all tokens of this message
	most  int  // that size may be
	bad   bool // the last token was bad; resync finds the next one
	quote byte // that of a string whose end was not reached, or 0

	collected []byte // text of the last string, number or word
	float     bool   // the last number has a fraction or an exponent
	known     map[string]string
}

func newLexer(src io.Reader) lexer {
	return lexer{src: src, window: make([]byte, 0, windowSize), line: 1, most: MaxTokenSize}
}

// fill reads more once the window is used up.
func (l *lexer) fill() error {
	if l.err != nil {
		return l.err
	}
	l.offset += int64(len(l.window))
	l.pos = 0
	for range 100 {
		var n int
		n, l.err = l.src.Read(l.window[:cap(l.window)])
		l.window = l.window[:n]
		if n > 0 {
			return nil
		}
		if l.err != nil {
			return l.err
		}
	}
	l.err = io.ErrNoProgress
	return l.err
}

// peek returns the next byte without using it up.
func (l *lexer) peek() (byte, error) {
	if l.pos == len(l.window) {
		if err := l.fill(); err != nil {
			return 0, err
		}
	}
	return l.window[l.pos], nil
}

// unread takes back the last byte, which must be the one that next used last.
func (l *lexer) unread() { l.pos-- }

func (l *lexer) newline() {
	l.line++
	l.lineStart = l.offset + int64(l.pos)
}

func (l *lexer) here() token {
	return token{line: l.line, column: int(l.offset+int64(l.pos)-l.lineStart) + 1}
}

// next returns the next token. With discard, its text is not kept, and there
// is no limit to it.
func (l *lexer) next(discard bool) (token, error) {
	if l.quote != 0 {
		return token{kind: tokenString}, l.string(discard)
	}
	t, err := l.begin()
	if err != nil {
		return t, err
	}
	err = l.finish(&t, discard)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return t, err
}

// begin goes to the first byte of the next token.
func (l *lexer) begin() (token, error) {
	for {
		c, err := l.peek()
		if err != nil {
			return token{}, err
		}
		switch c {
		case ' ', '\t', '\r':
			l.pos++
		case '\n':
			l.pos++
			l.newline()
		default:
			return l.here(), nil
		}
	}
}

// finish reads the token that begins here.
func (l *lexer) finish(t *token, discard bool) error {
	switch c := l.window[l.pos]; {
	case c == '{', c == '}', c == '[', c == ']', c == ':', c == ',':
		l.pos++
		t.kind = tokenKind(c)
		return l.grow(1, discard)
	case c == '"', c == '\'':
		l.pos++
		l.quote = c
		t.kind = tokenString
		l.startText()
		return l.string(discard)
	case c == '-', c >= '0' && c <= '9':
		t.kind = tokenNumber
		return l.digits(discard)
	case c >= 'a' && c <= 'z':
		t.kind = tokenWord
		return l.word(discard)
	default:
		return l.stray(c)
	}
}

// stray reports a byte that begins no token.
func (l *lexer) stray(c byte) error {
	err := l.lexical("stray '"+printable(c)+"'", resets(c))
	l.pos++
	return err
}

// lexical reports bad bytes at the current position.
func (l *lexer) lexical(text string, reset bool) *lexicalError {
	l.bad = true
	l.quote = 0
	t := l.here()
	return &lexicalError{Errorf("%d:%d: JSON parse error, %s", t.line, t.column, text), reset}
}

// resets tells whether a byte that is not part of a token asks for a fresh
// start: those that can be part of no JSON text in UTF-8.
func resets(c byte) bool { return c < ' ' && c != '\t' || c >= 0xfe }

func printable(c byte) string {
	if c > ' ' && c < 0x7f {
		return string(rune(c))
	}
	return "\\x" + strconv.FormatUint(uint64(c)|0x100, 16)[1:]
}

// resync goes to the next byte where a token may begin after a bad one: a
// bracket, comma or colon, or what ends a line. It tells whether there was a
// byte on the way that asks for a fresh start.
func (l *lexer) resync() (reset bool, err error) {
	for {
		c, err := l.peek()
		if err != nil {
			return reset, err
		}
		switch c {
		case '{', '}', '[', ']', ':', ',', '\n', '\r':
			l.bad = false
			return reset, nil
		}
		reset = reset || resets(c)
		l.pos++
	}
}

// grow counts the text of a token.
func (l *lexer) grow(n int, discard bool) error {
	if discard {
		return nil
	}
	if l.size += n; l.size > l.most {
		t := l.here()
		return Errorf("%d:%d: JSON token size limit exceeded", t.line, t.column)
	}
	return nil
}

func (l *lexer) startText() {
	if cap(l.collected) > keptText {
		l.collected = nil
	}
	l.collected = l.collected[:0]
}

// collect adds to the text of the current token.
func (l *lexer) collect(discard bool, text ...byte) error {
	if discard {
		return nil
	}
	l.collected = append(l.collected, text...)
	return l.grow(len(text), false)
}

// text returns the text of the last string or word. Short ones that came
// before, such as names of commands and members, are not allocated again.
func (l *lexer) text() string {
	const longest, most = 24, 256
	if len(l.collected) > longest {
		return string(l.collected)
	}
	if s, ok := l.known[string(l.collected)]; ok {
		return s
	}
	s := string(l.collected)
	if l.known == nil {
		l.known = make(map[string]string)
	}
	if len(l.known) < most {
		l.known[s] = s
	}
	return s
}
