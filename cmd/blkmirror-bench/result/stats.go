// SPDX-License-Identifier: Apache-2.0

package result

import (
	"math"
	"slices"
)

// Direction says which values of a metric are good.
type Direction string

const (
	Lower   Direction = "lower"
	Higher  Direction = "higher"
	Neither Direction = "neither" // a fact, such as bytes allocated
)

// Metric is a kind of value.
type Metric struct {
	Name   string    `json:"name"`  // in files; ends in the unit
	Title  string    `json:"title"` // in tables; ends in the unit
	Better Direction `json:"better"`
}

// Sample is what one run measured, by the names of metrics. What could not be measured is not there.
type Sample map[string]float64

// Summary is what several runs say about one metric.
type Summary struct {
	Best   float64 `json:"best"` // least or most, as the metric's direction says; the most of a metric without one
	Median float64 `json:"median"`
	Worst  float64 `json:"worst"`
	Runs   int     `json:"runs"`
}

// Summarize sums up values of a metric; ok is false if there are none.
func Summarize(values []float64, better Direction) (s Summary, ok bool) {
	if len(values) == 0 {
		return Summary{}, false
	}
	low, high := slices.Min(values), slices.Max(values)
	s = Summary{Best: high, Median: Median(values), Worst: low, Runs: len(values)}
	if better == Lower {
		s.Best, s.Worst = low, high
	}
	return s, true
}

// Median is the middle value, or the mean of the two in the middle; NaN if there are no values.
func Median(values []float64) float64 {
	n := len(values)
	if n == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(values))
	if n%2 == 1 {
		return sorted[n/2]
	}
	return (sorted[n/2-1] + sorted[n/2]) / 2
}

// Percentile is the least value that at least p percent of the values do not exceed. The values must be sorted. It is
// NaN if there are none.
func Percentile(sorted []float64, p float64) float64 {
	if len(sorted) == 0 {
		return math.NaN()
	}
	at := int(math.Ceil(p/100*float64(len(sorted)))) - 1
	return sorted[min(max(at, 0), len(sorted)-1)]
}

// Ratio is a divided by b; ok is false where that means nothing.
func Ratio(a, b float64) (ratio float64, ok bool) {
	if a < 0 || b <= 0 || math.IsNaN(a) || math.IsInf(a, 0) || math.IsInf(b, 0) {
		return 0, false
	}
	return a / b, true
}
