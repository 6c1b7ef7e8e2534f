// SPDX-License-Identifier: Apache-2.0

package bytesize

import (
	"math"
	"testing"
)

func TestFormat(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0 B", 1023: "1023 B", 1024: "1 KiB", 65536: "64 KiB", 1536 << 20: "1.5 GiB", 1<<20 - 1: "1 MiB",
		-2048: "-2 KiB", 1023 << 10: "1023 KiB", math.MaxInt64: "8 EiB", 1 << 40: "1 TiB", 1234567: "1.2 MiB",
	} {
		if got := Format(n); got != want {
			t.Errorf("Format(%d) = %q, want %q", n, got, want)
		}
	}
}

func TestParse(t *testing.T) {
	for text, want := range map[string]int64{
		"0": 0, "65536": 65536, "0x1000": 4096, "64K": 65536, "64k": 65536, "64KiB": 65536, "1.5G": 1536 << 20, "64 KiB": 65536,
		"512B": 512, "1T": 1 << 40, "1.5 GiB": 1536 << 20, "0 B": 0, " 64 K ": 65536, "0xFFB": 4091,
	} {
		if got, err := Parse(text); err != nil || got != want {
			t.Errorf("Parse(%q) = %d, %v, want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "K", "iB", "KiB", "-1", "64iB", "1X", "16E", "1e3K", "64KiBiB", "64KB", "NaN"} {
		if got, err := Parse(text); err == nil {
			t.Errorf("Parse(%q) = %d, want an error", text, got)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{"64K", "1.5 GiB", "0x", "..", "9999999999999999999E", " iB"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		n, err := Parse(text)
		if err != nil {
			return
		}
		if n < 0 {
			t.Fatalf("Parse(%q) = %d", text, n)
		}
		// What is written can be read again, give or take the rounding.
		again, err := Parse(Format(n))
		if n < 1<<62 && (err != nil || math.Abs(float64(again)-float64(n)) > float64(n)*0.06) {
			t.Fatalf("Parse(%q) = %d, but Parse(%q) = %d, %v", text, n, Format(n), again, err)
		}
	})
}
