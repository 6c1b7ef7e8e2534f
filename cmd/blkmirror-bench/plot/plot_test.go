// SPDX-License-Identifier: Apache-2.0

package plot

import (
	"bytes"
	"encoding/xml"
	"errors"
	"flag"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files anew")

// TestGolden compares with the drawings in testdata; -update writes them anew. Look at them then.
func TestGolden(t *testing.T) {
	for name, p := range map[string]*Plot{
		"logarithmic.svg": {Title: "Time to READY", X: "size of the thin disk, GiB", Y: "wall, s", Series: []Series{
			{"ours", []Point{{1, 0.002}, {10, 0.01}, {100, 0.08}, {1000, 0.2}}},
			{"theirs & others'", []Point{{1, 0.01}, {10, 0.1}, {100, math.NaN()}, {1000, 9}}},
		}},
		"linear.svg": {Title: "Requests", X: "connections", Y: "IOPS", Series: []Series{
			{"ours", []Point{{1, 20000}, {4, 80000}, {16, 90000}, {64, 93000}}},
			{"one point", []Point{{4, 30000}}},
			{"none", nil},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			var got bytes.Buffer
			if err := p.WriteSVG(&got); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join("testdata", name)
			if *update {
				if err := os.WriteFile(path, got.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got.Bytes(), want) {
				t.Errorf("not what %s has:\n%s", path, got.String())
			}
			wellFormed(t, got.Bytes())
		})
	}
}

func wellFormed(t *testing.T, text []byte) {
	t.Helper()
	d := xml.NewDecoder(bytes.NewReader(text))
	for {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

func TestEdges(t *testing.T) {
	for name, points := range map[string][]Point{
		"one":   {{1, 1}},
		"zeros": {{1, 0}, {10, 0}},
		"equal": {{5, 7}, {5, 7}},
		"wide":  {{1, 1e-9}, {1e9, 1e9}},
	} {
		var b bytes.Buffer
		if err := (&Plot{Series: []Series{{"s", points}}}).WriteSVG(&b); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if text := b.String(); strings.Contains(text, "NaN") || strings.Contains(text, "Inf") {
			t.Errorf("%s:\n%s", name, text)
		}
		wellFormed(t, b.Bytes())
	}
	if err := (&Plot{Series: []Series{{"s", []Point{{0, 1}, {1, math.Inf(1)}}}}}).WriteSVG(io.Discard); err == nil {
		t.Error("a plot of nothing is drawn")
	}
}
