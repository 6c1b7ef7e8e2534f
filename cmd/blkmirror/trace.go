// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/bits"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/blkmirror/blkmirror/block/trace"
	"github.com/blkmirror/blkmirror/cmd/blkmirror/bytesize"
)

func (c *cli) traceCommand() *cobra.Command {
	summary := false
	cmd := &cobra.Command{
		Use: "trace FILE", Short: "show the requests that the daemon recorded in a file", Args: cobra.ExactArgs(1),
		Long: `Shows a file that blkmirrord --trace or the QMP command x-trace-start wrote, a
line for each request in the order in which they ended: when it began, how
long it took, and what it was. It needs no daemon.`,
		Example: "  blkmirror trace /tmp/requests\n  blkmirror trace --summary /tmp/requests",
	}
	cmd.Flags().BoolVar(&summary, "summary", false, "sum up instead: requests, bytes and how long they took, by operation")
	cmd.RunE = c.action(func(ctx context.Context, args []string) error {
		f, err := os.Open(args[0])
		if err != nil {
			return err
		}
		defer f.Close()
		r, err := trace.NewReader(f)
		if err != nil {
			return fmt.Errorf("%s: %w", args[0], err)
		}
		out := bufio.NewWriter(c.stdout)
		show := c.showRequests
		if summary {
			show = c.sumUp
		}
		err = errors.Join(show(ctx, r, out), out.Flush())
		switch {
		case err != nil:
			return fmt.Errorf("%s: %w", args[0], err)
		case r.End == nil:
			fmt.Fprintf(c.stderr, "%s was cut off: the daemon has not ended it\n", args[0])
		}
		if r.Dropped > 0 && !summary {
			fmt.Fprintf(c.stderr, "%d requests are missing: there was no room for them\n", r.Dropped)
		}
		return nil
	})
	return cmd
}

// traced is a request as JSON.
type traced struct {
	Began  time.Time `json:"began"`
	Took   int64     `json:"took-ns"`
	Node   string    `json:"node,omitempty"`
	Export string    `json:"export,omitempty"`
	Conn   uint32    `json:"conn,omitempty"`
	Op     string    `json:"operation"`
	Off    int64     `json:"offset"`
	Len    int64     `json:"length"`
	Failed bool      `json:"failed,omitempty"`
}

// each calls f with every request.
func each(ctx context.Context, r *trace.Reader, f func(trace.Request) error) error {
	for ctx.Err() == nil {
		q, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = f(q)
		}
		if err != nil {
			return err
		}
	}
	return context.Cause(ctx)
}

func (c *cli) showRequests(ctx context.Context, r *trace.Reader, out io.Writer) error {
	lines := json.NewEncoder(out)
	return each(ctx, r, func(q trace.Request) error {
		if c.json {
			t := traced{Began: r.Began().Add(q.Began).UTC(), Took: int64(q.Took), Conn: q.Conn, Op: q.Op.String(), Off: q.Off, Len: q.Len,
				Failed: q.Failed}
			if t.Node = q.Name; q.Where == trace.Export {
				t.Node, t.Export = "", q.Name
			}
			return lines.Encode(&t)
		}
		who, failed := q.Where.String()+" "+printable(q.Name), ""
		if q.Conn > 0 {
			who += fmt.Sprintf("/%d", q.Conn)
		}
		if q.Failed {
			failed = " failed"
		}
		_, err := fmt.Fprintf(out, "%14.6f %10.1f µs  %-24s %-8s %d+%d%s\n", q.Began.Seconds(), float64(q.Took)/1e3, who, q.Op, q.Off, q.Len, failed)
		return err
	})
}

// printable quotes a name that would do something to a terminal; a trace may come from anywhere.
func printable(name string) string {
	if strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return strconv.Quote(name)
	}
	return name
}

// kindOf is what requests are summed up by.
type kindOf struct {
	where trace.Where
	name  string
	op    trace.Op
}

// maxKinds bounds the memory for sums, 8 KiB each.
const maxKinds = 1 << 13

// sum is what the requests of one kind come to.
type sum struct {
	requests, failed, bytes int64
	longest                 time.Duration
	took                    [64 * slots]int64
}

// slots divide each power of two of a time, so that a percentile is right within a sixteenth.
const slots = 16

func slotOf(d time.Duration) int {
	if d < slots {
		return int(max(d, 0))
	}
	power := bits.Len64(uint64(d)) - 1
	return power*slots + int(uint64(d)>>(power-4)&(slots-1))
}

// topOf is the longest time in a slot.
func topOf(slot int) time.Duration {
	if slot < slots {
		return time.Duration(slot)
	}
	power := slot / slots
	return time.Duration((uint64(slots+slot%slots)+1)<<(power-4) - 1)
}

func (s *sum) add(q *trace.Request) {
	s.requests++
	if s.bytes += q.Len; q.Failed {
		s.failed++
	}
	s.longest = max(s.longest, q.Took)
	s.took[slotOf(q.Took)]++
}

// percentile is the time that so many of a thousand requests took at most.
func (s *sum) percentile(thousandth int64) time.Duration {
	want, seen := (s.requests*thousandth+999)/1000, int64(0)
	for slot, n := range s.took {
		if seen += n; seen >= want {
			return min(topOf(slot), s.longest)
		}
	}
	return s.longest
}

type summed struct {
	Node      string `json:"node,omitempty"`
	Export    string `json:"export,omitempty"`
	Op        string `json:"operation"`
	Requests  int64  `json:"requests"`
	Failed    int64  `json:"failed"`
	Bytes     int64  `json:"bytes"`
	P50       int64  `json:"p50-ns"`
	P90       int64  `json:"p90-ns"`
	P99       int64  `json:"p99-ns"`
	P999      int64  `json:"p999-ns"`
	LongestNS int64  `json:"longest-ns"`
}

func (c *cli) sumUp(ctx context.Context, r *trace.Reader, out io.Writer) error {
	sums := map[kindOf]*sum{}
	if err := each(ctx, r, func(q trace.Request) error {
		k := kindOf{q.Where, q.Name, q.Op}
		if sums[k] == nil {
			if len(sums) == maxKinds {
				return fmt.Errorf("there are more than %d kinds of requests to sum up", maxKinds)
			}
			sums[k] = &sum{}
		}
		sums[k].add(&q)
		return nil
	}); err != nil {
		return err
	}
	kinds := slices.SortedFunc(maps.Keys(sums), func(a, b kindOf) int {
		return cmp.Or(cmp.Compare(a.where, b.where), cmp.Compare(a.name, b.name), cmp.Compare(a.op, b.op))
	})
	if c.json {
		list := []summed{}
		for _, k := range kinds {
			s := sums[k]
			line := summed{Node: k.name, Op: k.op.String(), Requests: s.requests, Failed: s.failed, Bytes: s.bytes, LongestNS: int64(s.longest),
				P50: int64(s.percentile(500)), P90: int64(s.percentile(900)), P99: int64(s.percentile(990)), P999: int64(s.percentile(999))}
			if k.where == trace.Export {
				line.Node, line.Export = "", k.name
			}
			list = append(list, line)
		}
		return json.NewEncoder(out).Encode(map[string]any{"requests": list, "dropped": r.Dropped, "complete": r.End != nil})
	}
	t := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "\toperation\trequests\tfailed\tbytes\tp50\tp90\tp99\tp99.9\tlongest")
	for _, k := range kinds {
		s := sums[k]
		fmt.Fprintf(t, "%s %s\t%s\t%d\t%d\t%s", k.where, printable(k.name), k.op, s.requests, s.failed, bytesize.Format(s.bytes))
		for _, d := range []time.Duration{s.percentile(500), s.percentile(900), s.percentile(990), s.percentile(999), s.longest} {
			fmt.Fprintf(t, "\t%s", d.Round(100*time.Nanosecond))
		}
		fmt.Fprintln(t)
	}
	if r.Dropped > 0 {
		fmt.Fprintf(t, "%d requests are missing: there was no room for them\n", r.Dropped)
	}
	return t.Flush()
}
