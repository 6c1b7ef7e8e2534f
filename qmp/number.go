// SPDX-License-Identifier: Apache-2.0

package qmp

import (
	"math"
	"math/big"
	"strconv"
	"strings"
)

// Int returns an integer of this many bits.
func (p Param) Int(bits int) int64 {
	if !p.Present() {
		return 0
	}
	var v int64
	if p.mode == Keyval {
		var err error
		if v, err = strconv.ParseInt(p.Text(), 0, 64); err != nil || grouped(p.Text()) {
			p.Fail("Parameter '%s' expects integer")
			return 0
		}
	} else {
		var ok bool
		if v, ok = p.value.(int64); !ok {
			p.expect("integer")
			return 0
		}
	}
	if shift := 64 - bits; v<<shift>>shift != v {
		p.Fail("Parameter '%s' expects int%d_t", bits)
		return 0
	}
	return v
}

// grouped tells whether a number has underscores, which only Go allows.
func grouped(text string) bool { return strings.Contains(text, "_") }

// Uint returns an integer of this many bits that is not negative.
func (p Param) Uint(bits int) uint64 {
	if !p.Present() {
		return 0
	}
	var v uint64
	fits := true
	if p.mode == Keyval {
		var err error
		if v, err = strconv.ParseUint(p.Text(), 0, 64); err != nil || grouped(p.Text()) {
			p.Fail("Parameter '%s' expects integer")
			return 0
		}
	} else {
		switch value := p.value.(type) {
		case uint64:
			v = value
		case int64:
			v, fits = uint64(value), value >= 0
		default:
			p.expect("integer")
			return 0
		}
	}
	if !fits || v > math.MaxUint64>>(64-bits) {
		p.Fail("Parameter '%s' expects uint%d_t", bits)
		return 0
	}
	return v
}

// Size returns a number of bytes. On the command line it may have a fraction
// and one of the suffixes B, K, M, G, T, P and E, powers of 1024.
func (p Param) Size() uint64 {
	if p.mode != Keyval {
		return p.Uint(64)
	}
	if !p.Present() {
		return 0
	}
	v, ok := ParseSize(p.Text())
	if !ok {
		p.Fail("Parameter '%s' expects a size value representable as a 64-bit integer")
	}
	return v
}

// ParseSize returns the number of bytes that a text such as 64K, 1.5G or
// 0x1000 stands for.
func ParseSize(text string) (uint64, bool) {
	if text == "" {
		return 0, false
	}
	if v, err := strconv.ParseUint(text, 0, 64); err == nil {
		return v, !grouped(text)
	}
	digits, shift := text, uint(0)
	if i := strings.IndexByte("BKMGTPE", text[len(text)-1]&^0x20); i >= 0 {
		digits, shift = text[:len(text)-1], uint(i)*10
	}
	// Only digits and one point: SetString would take much more.
	if digits == "" || len(digits) > 40 || strings.Trim(digits, "0123456789.") != "" {
		return 0, false
	}
	r, ok := new(big.Rat).SetString(digits)
	if !ok {
		return 0, false
	}
	r.Mul(r, new(big.Rat).SetInt(new(big.Int).Lsh(big.NewInt(1), shift)))
	bytes := new(big.Int).Quo(r.Num(), r.Denom())
	return bytes.Uint64(), bytes.IsUint64()
}

// Number returns a number.
func (p Param) Number() float64 {
	if !p.Present() {
		return 0
	}
	if p.mode == Keyval {
		v, err := strconv.ParseFloat(p.Text(), 64)
		if err != nil || math.IsInf(v, 0) || math.IsNaN(v) {
			p.Fail("Parameter '%s' expects a number")
			return 0
		}
		return v
	}
	switch v := p.value.(type) {
	case float64:
		return v
	case int64:
		return float64(v)
	case uint64:
		return float64(v)
	}
	p.expect("number")
	return 0
}

// Or returns what an optional member says, or else its default.
func Or[T any](v *T, otherwise T) T {
	if v == nil {
		return otherwise
	}
	return *v
}
