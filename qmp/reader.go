// SPDX-License-Identifier: Apache-2.0

package qmp

import (
	"io"
)

// Limits bound one message more closely than the constants below. Zero values
// leave them as they are.
type Limits struct {
	Bytes int // of all tokens together; at most MaxTokenSize
	Depth int // of objects and arrays inside one another; at most MaxDepth
}

// Limits of one message, QEMU's.
const (
	MaxDepth     = 1024     // objects and arrays inside one another
	MaxTokens    = 1 << 21  // brackets, commas, colons, strings, numbers, words
	MaxTokenSize = 64 << 20 // bytes of all tokens together
)

// Reader takes JSON values from a stream, as a QMP server must: a value is
// complete at its closing bracket, whatever follows; values need no newline
// between them; strings may stand in single quotes.
//
// Malformed input costs one error, an *Error, and reading goes on:
//
//   - A message that breaks the grammar is left out up to the bracket that
//     closes it, or up to a line that begins with '{', whatever comes first.
//   - Bytes that no token can have (0xFF, control bytes, a line end in a
//     string) forget all open brackets: the next '{' begins a message. So
//     does a second bad token while a bad message is being left out.
//
// Any other error comes from the stream and is final.
type Reader struct {
	lex lexer

	depth      int
	tokens     int
	mostTokens int
	mostDepth  int

	skipping bool // the rest of a malformed message is to be left out
}

// NewReader returns a Reader of src.
func NewReader(src io.Reader) *Reader {
	return NewLimitedReader(src, Limits{})
}

// NewLimitedReader returns a Reader of src with bounds of its own.
func NewLimitedReader(src io.Reader, limits Limits) *Reader {
	r := &Reader{lex: newLexer(src), mostTokens: MaxTokens, mostDepth: MaxDepth}
	if limits.Bytes > 0 {
		r.lex.most = min(limits.Bytes, MaxTokenSize)
	}
	if limits.Depth > 0 {
		r.mostDepth = min(limits.Depth, MaxDepth)
	}
	return r
}

// Next returns the next value. The error is an *Error for malformed input,
// after which Next may be called again; io.EOF at the end of the stream, and
// io.ErrUnexpectedEOF if it ends inside a value.
func (r *Reader) Next() (any, error) {
	if r.skipping {
		if err := r.skip(); err != nil {
			return nil, err
		}
	}
	r.depth, r.tokens, r.lex.size = 0, 0, 0
	t, err := r.next()
	if err != nil {
		return nil, r.fail(err)
	}
	v, err := r.value(t)
	if err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, r.fail(err)
	}
	return v, nil
}

// fail decides how to go on after an error.
func (r *Reader) fail(err error) error {
	switch e := err.(type) {
	case *lexicalError:
		if e.reset {
			r.depth = 0
		}
		r.skipping = true
		return e.err
	case *Error:
		// A string may have been given up in the middle, too.
		r.skipping = r.depth > 0 || r.lex.quote != 0
	}
	return err
}

// skip leaves out the rest of a malformed message.
func (r *Reader) skip() error {
	for {
		if r.lex.bad {
			reset, err := r.lex.resync()
			if err != nil {
				return err
			}
			if reset {
				r.depth = 0
			}
		}
		if r.depth == 0 && r.lex.quote == 0 {
			r.skipping = false
			return nil
		}
		t, err := r.lex.next(true)
		if _, bad := err.(*lexicalError); bad {
			r.depth = 0
			continue
		}
		if err != nil {
			return err
		}
		r.bracket(t)
	}
}

// bracket counts a bracket of a malformed message. A '{' that begins a line
// is taken back for the next message: a lost bracket would else swallow what
// a client sends line by line, without any answer.
func (r *Reader) bracket(t token) {
	switch t.kind {
	case tokenObject:
		if t.column == 1 {
			r.lex.unread()
			r.depth = 0
			return
		}
		r.depth++
	case tokenArray:
		r.depth++
	case tokenObjectEnd, tokenArrayEnd:
		r.depth = max(r.depth-1, 0)
	}
}

// next returns the next token within the limits.
func (r *Reader) next() (token, error) {
	t, err := r.lex.next(false)
	if err != nil {
		return t, err
	}
	if r.tokens++; r.tokens > r.mostTokens {
		return t, r.errorAt(t, "JSON token count limit exceeded")
	}
	return t, nil
}

// value returns the value that begins with t.
func (r *Reader) value(t token) (any, error) {
	switch t.kind {
	case tokenString:
		return r.lex.text(), nil
	case tokenNumber:
		v, ok := r.lex.number()
		if !ok {
			return nil, r.errorAt(t, "JSON parse error, number out of range")
		}
		return v, nil
	case tokenWord:
		switch word := r.lex.text(); word {
		case "true":
			return true, nil
		case "false":
			return false, nil
		case "null":
			return nil, nil
		default:
			return nil, r.errorAt(t, "JSON parse error, invalid keyword '"+word+"'")
		}
	case tokenObject:
		return r.object(t)
	case tokenArray:
		return r.array(t)
	}
	return nil, r.wrong(t, "JSON parse error, expecting value")
}

func (r *Reader) object(t token) (*Object, error) {
	if err := r.enter(t); err != nil {
		return nil, err
	}
	o := &Object{}
	t, err := r.next()
	if err != nil {
		return nil, err
	}
	if t.kind == tokenObjectEnd {
		r.depth--
		return o, nil
	}
	for {
		if t.kind != tokenString {
			return nil, r.wrong(t, "JSON parse error, expecting string")
		}
		name, at := r.lex.text(), t
		if t, err = r.next(); err != nil {
			return nil, err
		}
		if t.kind != tokenColon {
			return nil, r.wrong(t, "JSON parse error, expecting ':'")
		}
		if o.find(name) >= 0 {
			return nil, r.errorAt(at, "JSON parse error, duplicate key")
		}
		if t, err = r.next(); err != nil {
			return nil, err
		}
		v, err := r.value(t)
		if err != nil {
			return nil, err
		}
		o.append(name, v)
		if t, err = r.next(); err != nil {
			return nil, err
		}
		switch t.kind {
		case tokenObjectEnd:
			r.depth--
			return o, nil
		case tokenComma:
		default:
			return nil, r.wrong(t, "JSON parse error, expecting ',' or '}'")
		}
		if t, err = r.next(); err != nil {
			return nil, err
		}
	}
}

func (r *Reader) array(t token) ([]any, error) {
	if err := r.enter(t); err != nil {
		return nil, err
	}
	a := []any{}
	t, err := r.next()
	if err != nil {
		return nil, err
	}
	if t.kind == tokenArrayEnd {
		r.depth--
		return a, nil
	}
	for {
		v, err := r.value(t)
		if err != nil {
			return nil, err
		}
		a = append(a, v)
		if t, err = r.next(); err != nil {
			return nil, err
		}
		switch t.kind {
		case tokenArrayEnd:
			r.depth--
			return a, nil
		case tokenComma:
		default:
			return nil, r.wrong(t, "JSON parse error, expecting ',' or ']'")
		}
		if t, err = r.next(); err != nil {
			return nil, err
		}
	}
}

// enter opens an object or array.
func (r *Reader) enter(t token) error {
	if r.depth++; r.depth > r.mostDepth {
		return r.errorAt(t, "JSON nesting depth limit exceeded")
	}
	return nil
}

// wrong reports a token that the grammar does not allow here.
func (r *Reader) wrong(t token, text string) error {
	r.bracket(t)
	return r.errorAt(t, text)
}

func (r *Reader) errorAt(t token, text string) *Error {
	return Errorf("%d:%d: %s", t.line, t.column, text)
}
