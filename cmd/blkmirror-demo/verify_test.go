// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const testSize = 8 << 20

// written makes a disk with a history, and returns its path and model.
func written(t *testing.T) (string, *model) {
	t.Helper()
	m := newModel(testSize, 7)
	path := filepath.Join(t.TempDir(), "disk")
	n, err := makeSource(path, m, 16, 2<<20, rand.New(rand.NewPCG(1, 2)))
	if err != nil {
		t.Fatal(err)
	}
	if n < 1<<20 || n > 3<<20 {
		t.Fatalf("%d bytes of data in place of 2 MiB, about", n)
	}
	s := span{100, 200}
	data := make([]byte, s.bytes())
	c := m.fresh()
	m.fill(data, s.first, c)
	change(t, path, s.offset(), data)
	m.wrote(s, c)
	m.trimmed(span{150, 160})
	return path, m
}

func change(t *testing.T, path string, off int64, data []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(data, off); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string, off, n int64) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data[off : off+n]
}

// firstZero is a sector that the model knows as zeroes.
func firstZero(m *model) int64 {
	for i, c := range m.sectors {
		if c == 0 {
			return int64(i)
		}
	}
	panic("no such sector")
}

func TestVerifyAcceptsWhatIsRight(t *testing.T) {
	path, m := written(t)
	if err := verify(path, m); err != nil {
		t.Errorf("the disk as written: %v", err)
	}
	change(t, path, 152*sectorSize, make([]byte, 3*sectorSize))
	if err := verify(path, m); err != nil {
		t.Errorf("trimmed sectors that are zeroes: %v", err)
	}
}

// TestVerifyRefusesWhatIsWrong breaks the disk in every way that a mirror
// could.
func TestVerifyRefusesWhatIsWrong(t *testing.T) {
	for name, spoil := range map[string]func(t *testing.T, path string, m *model) (wrong int64, why string){
		"one bit": func(t *testing.T, path string, m *model) (int64, string) {
			data := read(t, path, 110*sectorSize+77, 1)
			change(t, path, 110*sectorSize+77, []byte{data[0] ^ 1})
			return 110, "never written"
		},
		"data lost": func(t *testing.T, path string, m *model) (int64, string) {
			change(t, path, 199*sectorSize, make([]byte, sectorSize))
			return 199, "zeroes in place of"
		},
		"half a sector lost": func(t *testing.T, path string, m *model) (int64, string) {
			change(t, path, 120*sectorSize, make([]byte, sectorSize/2))
			return 120, "never written"
		},
		"half a trimmed sector lost": func(t *testing.T, path string, m *model) (int64, string) {
			change(t, path, 155*sectorSize, make([]byte, sectorSize/2))
			return 155, "never written"
		},
		"data where zeroes must be": func(t *testing.T, path string, m *model) (int64, string) {
			i := firstZero(m)
			change(t, path, i*sectorSize+sectorSize-1, []byte{1})
			return i, "in place of zeroes"
		},
		"the last byte": func(t *testing.T, path string, m *model) (int64, string) {
			last := int64(len(m.sectors)) - 1
			data := read(t, path, testSize-1, 1)
			change(t, path, testSize-1, []byte{data[0] ^ 0x80})
			return last, "in place of"
		},
		"old data": func(t *testing.T, path string, m *model) (int64, string) {
			m.wrote(span{130, 131}, m.fresh()) // acknowledged, and lost
			return 130, "write 17 in place of"
		},
		"data in the wrong place": func(t *testing.T, path string, m *model) (int64, string) {
			change(t, path, 141*sectorSize, read(t, path, 140*sectorSize, sectorSize))
			return 141, "never written there"
		},
		"too short": func(t *testing.T, path string, m *model) (int64, string) {
			if err := os.Truncate(path, testSize-sectorSize); err != nil {
				t.Fatal(err)
			}
			return -1, "bytes in place of"
		},
		"too long": func(t *testing.T, path string, m *model) (int64, string) {
			if err := os.Truncate(path, testSize+1); err != nil {
				t.Fatal(err)
			}
			return -1, "bytes in place of"
		},
		"gone": func(t *testing.T, path string, m *model) (int64, string) {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			return -1, "no such file"
		},
	} {
		t.Run(name, func(t *testing.T) {
			path, m := written(t)
			wrong, why := spoil(t, path, m)
			err := verify(path, m)
			if err == nil || !strings.Contains(err.Error(), why) || !strings.Contains(err.Error(), path) {
				t.Fatalf("error %v, want one with %q", err, why)
			}
			if e, ok := errors.AsType[*mismatch](err); ok != (wrong >= 0) || ok && e.sector != wrong {
				t.Errorf("error %v, want sector %d", err, wrong)
			}
		})
	}
}

func TestFingerprint(t *testing.T) {
	path, m := written(t)
	before, err := fingerprint(path)
	if err != nil {
		t.Fatal(err)
	}
	// Written zeroes where zeroes were are no change.
	change(t, path, firstZero(m)*sectorSize, make([]byte, sectorSize))
	if again, err := fingerprint(path); err != nil || again != before {
		t.Errorf("%v: it changed with nothing", err)
	}
	change(t, path, firstZero(m)*sectorSize, []byte{1})
	if again, err := fingerprint(path); err != nil || again == before {
		t.Errorf("%v: it did not change with a byte", err)
	}
}

func TestPatternsDiffer(t *testing.T) {
	p := pattern{3}
	seen := map[string]bool{}
	for c := content(1); c < 40; c++ {
		data := make([]byte, 40*sectorSize)
		p.fill(data, 5, c)
		for sector := range slices.Chunk(data, sectorSize) {
			if seen[string(sector)] {
				t.Fatalf("content %d has a sector of another one", c)
			}
			seen[string(sector)] = true
		}
		// Filling in parts comes to the same.
		part := make([]byte, 2*sectorSize)
		p.fill(part, 10, c)
		if !bytes.Equal(part, data[5*sectorSize:7*sectorSize]) {
			t.Fatalf("content %d depends on where the filling begins", c)
		}
	}
}

func TestClaims(t *testing.T) {
	m := newModel(testSize, 1)
	if !m.claim(span{10, 20}) || !m.claim(span{20, 30}) || m.claim(span{19, 21}) || m.claim(span{0, 100}) {
		t.Error("claims overlap, or neighbours do not stand side by side")
	}
	m.release(span{10, 20})
	if !m.claim(span{0, 20}) {
		t.Error("what was released cannot be claimed")
	}
}

func TestQuantile(t *testing.T) {
	var l latencies
	for i := 1; i <= 100; i++ {
		l.add(copying, 1e6*1)
		l.add(inStep, 1e6*1000)
	}
	var out strings.Builder
	if err := l.print(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"while copying  100  1ms  1ms  1ms", "all 200 1ms 1s 1s"} {
		if !strings.Contains(strings.Join(strings.Fields(out.String()), " "), strings.Join(strings.Fields(want), " ")) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
}
