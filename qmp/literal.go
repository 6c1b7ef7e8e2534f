// SPDX-License-Identifier: Apache-2.0

package qmp

import "strconv"

// word reads a word of lower-case letters.
func (l *lexer) word(discard bool) error {
	l.startText()
	for {
		c, err := l.peek()
		if err != nil {
			return err
		}
		if c < 'a' || c > 'z' {
			return nil
		}
		l.pos++
		// No known word is longer; the limit on tokens sees all of it.
		if len(l.collected) < 16 {
			l.collected = append(l.collected, c)
		}
		if err := l.grow(1, discard); err != nil {
			return err
		}
	}
}

// digits reads a number.
func (l *lexer) digits(discard bool) error {
	l.startText()
	l.float = false
	c, err := l.accept(discard, '-')
	if err != nil {
		return err
	}
	if c == '0' {
		if c, err = l.accept(discard, '0'); err != nil {
			return err
		}
		if c >= '0' && c <= '9' {
			return l.lexical("number with leading zero", false)
		}
	} else if c, err = l.run(discard); err != nil {
		return err
	}
	if c == '.' {
		l.float = true
		if _, err = l.accept(discard, '.'); err != nil {
			return err
		}
		if c, err = l.run(discard); err != nil {
			return err
		}
	}
	if c != 'e' && c != 'E' {
		return nil
	}
	l.float = true
	if c, err = l.accept(discard, c); err != nil {
		return err
	}
	if c == '+' || c == '-' {
		if _, err = l.accept(discard, c); err != nil {
			return err
		}
	}
	_, err = l.run(discard)
	return err
}

// accept uses up the next byte if it is c, and returns the one after.
func (l *lexer) accept(discard bool, c byte) (byte, error) {
	next, err := l.peek()
	if err != nil || next != c {
		return next, err
	}
	l.pos++
	if err := l.collect(discard, c); err != nil {
		return 0, err
	}
	return l.peek()
}

// run uses up one digit or more, and returns the byte after.
func (l *lexer) run(discard bool) (byte, error) {
	for n := 0; ; n++ {
		c, err := l.peek()
		if err != nil {
			return 0, err
		}
		if c < '0' || c > '9' {
			if n == 0 {
				return 0, l.lexical("number without digits", resets(c) && c != '\n' && c != '\r')
			}
			return c, nil
		}
		l.pos++
		if err := l.collect(discard, c); err != nil {
			return 0, err
		}
	}
}

// number returns the value of the last number: int64, uint64 or float64.
func (l *lexer) number() (any, bool) {
	if !l.float {
		if v, err := strconv.ParseInt(string(l.collected), 10, 64); err == nil {
			return v, true
		}
		if v, err := strconv.ParseUint(string(l.collected), 10, 64); err == nil {
			return v, true
		}
	}
	v, err := strconv.ParseFloat(string(l.collected), 64)
	return v, err == nil
}
