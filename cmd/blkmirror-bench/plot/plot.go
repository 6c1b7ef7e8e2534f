// SPDX-License-Identifier: Apache-2.0

// Package plot draws lines as SVG: one plot, one line for each series, named at the right. The x axis is logarithmic. The
// y axis is logarithmic too where the values span more than a factor of 20, and begins at zero otherwise. Colours are told
// apart by people who are colour-blind; each series has a mark of its own besides. The output depends on nothing but the
// input, so that it can be kept under version control.
package plot

import (
	"fmt"
	"html"
	"io"
	"math"
	"slices"
	"strings"
)

// Point is one value.
type Point struct{ X, Y float64 }

// Series is one line. Its points are in order of X.
type Series struct {
	Name   string
	Points []Point
}

// Plot is a drawing. X and Y are the names of the axes, with their units.
type Plot struct {
	Title, X, Y string
	Series      []Series
}

// Sizes in pixels.
const (
	width, height = 760, 400
	left, right   = 70, 190
	top, bottom   = 40, 50
)

// The palette of Okabe and Ito, without its yellow, which is weak on white.
var colours = []string{"#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"}

// axis maps values to pixels.
type axis struct {
	log       bool
	low, high float64
	from, to  float64 // pixels
	ticks     []float64
}

func (a *axis) at(v float64) float64 {
	low, high := a.low, a.high
	if a.log {
		v, low, high = math.Log10(v), math.Log10(low), math.Log10(high)
	}
	return a.from + (v-low)/(high-low)*(a.to-a.from)
}

// drawable says whether a point can be shown; all axes but a linear y need positive values.
func drawable(p Point) bool {
	ok := func(v float64) bool { return !math.IsNaN(v) && !math.IsInf(v, 0) }
	return ok(p.X) && ok(p.Y) && p.X > 0 && p.Y >= 0
}

// WriteSVG draws the plot. Points that cannot be shown are left out; a plot without any point is an error.
func (p *Plot) WriteSVG(w io.Writer) error {
	var xs, ys []float64
	for _, s := range p.Series {
		for _, point := range s.Points {
			if drawable(point) {
				xs, ys = append(xs, point.X), append(ys, point.Y)
			}
		}
	}
	if len(xs) == 0 {
		return fmt.Errorf("plot %q has no points", p.Title)
	}
	x := logarithmic(slices.Min(xs), slices.Max(xs), left, width-right)
	var y *axis
	if low, high := slices.Min(ys), slices.Max(ys); low > 0 && high/low > 20 {
		y = logarithmic(low, high, height-bottom, top)
		y.low, y.high = math.Pow(10, math.Floor(math.Log10(low))), math.Pow(10, math.Ceil(math.Log10(high)))
		y.ticks = decades(y.low, y.high)
	} else {
		y = linear(high, height-bottom, top)
	}
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">`+"\n",
		width, height, width, height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="#fff"/>`+"\n", width, height)
	text := func(x, y float64, anchor, extra, s string) {
		fmt.Fprintf(&b, `<text x="%.1f" y="%.1f" text-anchor="%s"%s>%s</text>`+"\n", x, y, anchor, extra, html.EscapeString(s))
	}
	text(left, 22, "start", ` font-size="15"`, p.Title)
	for _, v := range y.ticks {
		at := y.at(v)
		fmt.Fprintf(&b, `<line x1="%d" y1="%.1f" x2="%d" y2="%.1f" stroke="#ddd"/>`+"\n", left, at, width-right, at)
		text(left-6, at+4, "end", "", number(v))
	}
	for _, v := range x.ticks {
		at := x.at(v)
		fmt.Fprintf(&b, `<line x1="%.1f" y1="%d" x2="%.1f" y2="%d" stroke="#ddd"/>`+"\n", at, top, at, height-bottom)
		text(at, height-bottom+18, "middle", "", number(v))
	}
	fmt.Fprintf(&b, `<path d="M%d %dV%dH%d" fill="none" stroke="#000"/>`+"\n", left, top, height-bottom, width-right)
	text((left+width-right)/2, height-12, "middle", "", p.X)
	text(16, (top+height-bottom)/2, "middle", fmt.Sprintf(` transform="rotate(-90 16 %d)"`, (top+height-bottom)/2), p.Y)
	for i, s := range p.Series {
		series(&b, s, x, y, i)
		legend := float64(top + 8 + 20*i)
		fmt.Fprintf(&b, `<path d="M%d %.1fh24" stroke="%s" stroke-width="2"/>`+"\n", width-right+14, legend, colours[i%len(colours)])
		mark(&b, float64(width-right+26), legend, i)
		text(width-right+44, legend+4, "start", "", s.Name)
	}
	b.WriteString("</svg>\n")
	_, err := io.WriteString(w, b.String())
	return err
}

func series(b *strings.Builder, s Series, x, y *axis, i int) {
	command := "M"
	var path strings.Builder
	var marks []Point
	for _, p := range s.Points {
		if drawable(p) && (p.Y > 0 || !y.log) {
			at := Point{x.at(p.X), y.at(p.Y)}
			fmt.Fprintf(&path, "%s%.1f %.1f", command, at.X, at.Y)
			marks = append(marks, at)
			command = "L"
		}
	}
	if len(marks) > 1 {
		fmt.Fprintf(b, `<path d="%s" fill="none" stroke="%s" stroke-width="2"/>`+"\n", path.String(), colours[i%len(colours)])
	}
	for _, at := range marks {
		mark(b, at.X, at.Y, i)
	}
}

// mark draws a circle, square, diamond or triangle.
func mark(b *strings.Builder, x, y float64, i int) {
	fill := colours[i%len(colours)]
	switch i % 4 {
	case 0:
		fmt.Fprintf(b, `<circle cx="%.1f" cy="%.1f" r="4" fill="%s"/>`+"\n", x, y, fill)
	case 1:
		fmt.Fprintf(b, `<rect x="%.1f" y="%.1f" width="7" height="7" fill="%s"/>`+"\n", x-3.5, y-3.5, fill)
	case 2:
		fmt.Fprintf(b, `<path d="M%.1f %.1fl5 5l-5 5l-5 -5z" fill="%s"/>`+"\n", x, y-5, fill)
	default:
		fmt.Fprintf(b, `<path d="M%.1f %.1fl5 8h-10z" fill="%s"/>`+"\n", x, y-5, fill)
	}
}

// logarithmic is an axis from low to high with a tick at every power of ten within, and at both ends if there are none.
func logarithmic(low, high, from, to float64) *axis {
	if low == high {
		low, high = low/2, high*2
	}
	a := &axis{log: true, low: low, high: high, from: from, to: to, ticks: decades(low, high)}
	if len(a.ticks) < 2 {
		a.ticks = []float64{low, high}
	}
	return a
}

func decades(low, high float64) (ticks []float64) {
	for e := math.Ceil(math.Log10(low) - 1e-9); math.Pow(10, e) <= high*(1+1e-9); e++ {
		ticks = append(ticks, math.Pow(10, e))
	}
	return ticks
}

// linear is an axis from zero to a round number not below high, with about five ticks.
func linear(high, from, to float64) *axis {
	if high <= 0 {
		high = 1
	}
	step := math.Pow(10, math.Floor(math.Log10(high/4)))
	for _, m := range []float64{1, 2, 5, 10} {
		if high/(step*m) <= 5 {
			step *= m
			break
		}
	}
	n := math.Ceil(high/step - 1e-9)
	a := &axis{high: n * step, from: from, to: to}
	for i := range int(n) + 1 {
		a.ticks = append(a.ticks, float64(i)*step)
	}
	return a
}

// number writes a tick.
func number(v float64) string {
	switch {
	case v >= 1e9:
		return fmt.Sprintf("%.4gG", v/1e9)
	case v >= 1e6:
		return fmt.Sprintf("%.4gM", v/1e6)
	case v >= 1e4:
		return fmt.Sprintf("%.4gk", v/1e3)
	default:
		return fmt.Sprintf("%.4g", v)
	}
}
