// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
)

var sizeSuffixes = []struct {
	letter byte
	shift  uint
}{{'T', 40}, {'G', 30}, {'M', 20}, {'K', 10}}

const maxSize = 1 << 62

// parseSize reads "512", "0x200", "64K" and sums such as "1M+512", in bytes.
func parseSize(text string) (int64, error) {
	var total int64
	for part := range strings.SplitSeq(text, "+") {
		digits, shift := part, uint(0)
		for _, suffix := range sizeSuffixes {
			if before, ok := strings.CutSuffix(part, string(suffix.letter)); ok {
				digits, shift = before, suffix.shift
			}
		}
		n, err := strconv.ParseInt(digits, 0, 64)
		if err != nil || n < 0 || n > maxSize>>shift || total > maxSize-n<<shift {
			return 0, fmt.Errorf("not a size: %q", text)
		}
		total += n << shift
	}
	return total, nil
}

// formatSize writes a size with the largest suffix that divides it. Scenarios
// never say T.
func formatSize(n int64) string {
	for _, suffix := range sizeSuffixes[1:] {
		if unit := int64(1) << suffix.shift; n != 0 && n%unit == 0 {
			return fmt.Sprintf("%d%c", n/unit, suffix.letter)
		}
	}
	return strconv.FormatInt(n, 10)
}

// extent is a byte range as scenarios write it: OFFSET,LENGTH.
type extent struct{ offset, length int64 }

func parseExtent(text string) (extent, error) {
	offset, length, ok := strings.Cut(text, ",")
	if !ok {
		return extent{}, fmt.Errorf("not OFFSET,LENGTH: %q", text)
	}
	var e extent
	var err error
	if e.offset, err = parseSize(offset); err != nil {
		return extent{}, err
	}
	e.length, err = parseSize(length)
	return e, err
}

func (e extent) String() string { return formatSize(e.offset) + "," + formatSize(e.length) }

func parseByte(text string) (byte, error) {
	n, err := strconv.ParseUint(text, 0, 8)
	if err != nil {
		return 0, fmt.Errorf("not a byte: %q", text)
	}
	return byte(n), nil
}

// filledExtent is OFFSET,LENGTH=BYTE, the way images get their content.
type filledExtent struct {
	extent
	fill byte
}

func parseFilledExtent(text string) (f filledExtent, err error) {
	where, fill, ok := strings.Cut(text, "=")
	if !ok {
		return f, fmt.Errorf("not OFFSET,LENGTH=BYTE: %q", text)
	}
	if f.extent, err = parseExtent(where); err != nil {
		return f, err
	}
	f.fill, err = parseByte(fill)
	return f, err
}

// maxRuns keeps the description of noisy content short.
const maxRuns = 24

// describeRuns describes data that starts at base as runs of equal bytes.
func describeRuns(data []byte, base int64) string {
	if len(data) == 0 {
		return "empty"
	}
	var runs []string
	for len(data) > 0 {
		if len(runs) == maxRuns {
			return strings.Join(runs, " ") + " ..."
		}
		length := equalPrefix(data)
		runs = append(runs, fmt.Sprintf("%v=0x%02x", extent{base, length}, data[0]))
		base, data = base+length, data[length:]
	}
	return strings.Join(runs, " ")
}

// equalPrefix counts the bytes at the start that equal the first one.
func equalPrefix(data []byte) int64 {
	const stride = 4096
	block := bytes.Repeat(data[:1], min(stride, len(data)))
	n := 0
	for n+stride <= len(data) && bytes.Equal(data[n:n+stride], block) {
		n += stride
	}
	for n < len(data) && data[n] == data[0] {
		n++
	}
	return int64(n)
}
