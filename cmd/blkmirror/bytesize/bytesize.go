// SPDX-License-Identifier: Apache-2.0

// Package bytesize writes numbers of bytes for people, and reads what people
// write. Units are powers of 1024: 64K and 64 KiB are the same.
package bytesize

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/blkmirror/blkmirror/qmp"
)

// Format returns a number of bytes as 512 B, 64 KiB or 1.5 GiB: exact below
// 1024, otherwise rounded to one decimal, which is left out if it is 0.
func Format(n int64) string {
	if n < 1024 && n > -1024 {
		return strconv.FormatInt(n, 10) + " B"
	}
	v, unit := float64(n), 0
	for {
		v, unit = v/1024, unit+1
		// What would round up to 1024 of a unit is 1 of the next one.
		if math.Abs(v) < 1023.95 || unit == len(units)-1 {
			break
		}
	}
	return strings.TrimSuffix(strconv.FormatFloat(v, 'f', 1, 64), ".0") + " " + units[unit]
}

var units = [...]string{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}

// Parse returns the number of bytes that a text stands for: digits, perhaps
// with a fraction, and perhaps one of B, K, M, G, T, P, E, as such or as KiB.
func Parse(text string) (int64, error) {
	digits := strings.TrimSpace(text)
	unit := ""
	if i := strings.IndexAny(digits, letters); i >= 0 && !strings.HasPrefix(digits, "0x") {
		digits, unit = strings.TrimRight(digits[:i], " "), digits[i:]
	}
	// qmp.ParseSize knows K, but neither KiB nor 64 K.
	if short, ok := strings.CutSuffix(unit, "iB"); ok {
		if len(short) != 1 || !strings.Contains("KMGTPE", short) {
			return 0, malformed(text)
		}
		unit = short
	}
	v, ok := qmp.ParseSize(digits + unit)
	if !ok || v > math.MaxInt64 {
		return 0, malformed(text)
	}
	return int64(v), nil
}

const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"

func malformed(text string) error {
	return fmt.Errorf("'%s' is not a number of bytes: write 65536, 64K, 64KiB or 1.5G", text)
}
