// SPDX-License-Identifier: Apache-2.0

package web

import (
	"slices"
	"sync"
	"time"
)

// What is kept so that a page that is opened later sees the last minutes.
const (
	keptPoints = 300
	maxSeries  = 200 // exports and jobs; later ones have no history
)

// point is what an export or a job did in one sample, per second. An export has all but the last two, a job the last two and
// its own rate.
type point struct {
	Time       int64 `json:"t"` // Unix, milliseconds
	ReadBytes  int64 `json:"rb"`
	WriteBytes int64 `json:"wb"`
	Reads      int64 `json:"r"`
	Writes     int64 `json:"w"`
	ReadTime   int64 `json:"rt"` // nanoseconds that a read took on average; 0 if nobody measures it
	WriteTime  int64 `json:"wt"`
	Rate       int64 `json:"rate"`  // bytes per second, of a job
	Dirty      int64 `json:"dirty"` // bytes
	Delay      int64 `json:"delay"` // nanoseconds that the job adds to a guest's write
}

// history is the last points of each series. A series is called "export ID" or "job ID".
type history struct {
	mu struct {
		sync.Mutex
		series map[string][]point
	}
	// Only the sampler uses these.
	at   time.Time
	seen map[string]seen // by export
}

// seen are the counters of the node that an export stood on.
type seen struct {
	node string
	counters
}

// add works out the points of a sample and keeps them. Series of what is gone are forgotten.
func (h *history) add(at time.Time, now *state) map[string]point {
	points := map[string]point{}
	seconds := at.Sub(h.at).Seconds()
	before := h.seen
	h.at, h.seen = at, map[string]seen{}
	for _, e := range now.Edges {
		total := now.Totals[e.Node]
		if e.User != "export" || total == nil {
			continue
		}
		s := seen{e.Node, *total}
		h.seen[e.Name] = s
		p := point{Time: at.UnixMilli()}
		if was, ok := before[e.Name]; ok && was.node == s.node && seconds > 0 {
			p.since(was.counters, s.counters, seconds)
		}
		points["export "+e.Name] = p
	}
	for _, j := range now.Jobs {
		value := func(v *int64) int64 {
			if v == nil {
				return 0
			}
			return *v
		}
		points["job "+j.ID] = point{Time: at.UnixMilli(), Rate: value(j.Rate), Dirty: value(j.Dirty), Delay: value(j.Delay)}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.mu.series == nil {
		h.mu.series = map[string][]point{}
	}
	for name := range h.mu.series {
		if _, there := points[name]; !there {
			delete(h.mu.series, name)
		}
	}
	for name, p := range points {
		kept, known := h.mu.series[name]
		if !known && len(h.mu.series) >= maxSeries {
			continue
		}
		if len(kept) >= keptPoints {
			kept = slices.Delete(kept, 0, len(kept)-keptPoints+1)
		}
		h.mu.series[name] = append(kept, p)
	}
	return points
}

// since works out what happened between two readings of the counters of a node.
func (p *point) since(was, is counters, seconds float64) {
	rate := func(was, is int64) int64 { return int64(float64(max(is-was, 0))/seconds + 0.5) }
	each := func(time, requests int64) int64 {
		if requests <= 0 {
			return 0
		}
		return max(time, 0) / requests
	}
	p.ReadBytes, p.WriteBytes = rate(was.ReadBytes, is.ReadBytes), rate(was.WriteBytes, is.WriteBytes)
	p.Reads, p.Writes = rate(was.Reads, is.Reads), rate(was.Writes, is.Writes)
	p.ReadTime, p.WriteTime = each(is.ReadTime-was.ReadTime, is.Reads-was.Reads), each(is.WriteTime-was.WriteTime, is.Writes-was.Writes)
}

// all copies the series.
func (h *history) all() map[string][]point {
	h.mu.Lock()
	defer h.mu.Unlock()
	series := make(map[string][]point, len(h.mu.series))
	for name, points := range h.mu.series {
		series[name] = slices.Clone(points)
	}
	return series
}
