// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"bytes"
	"errors"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// all reads a trace to its end.
func all(text []byte) (list []Request, r *Reader, err error) {
	if r, err = NewReader(bytes.NewReader(text)); err != nil {
		return nil, nil, err
	}
	for {
		q, err := r.Next()
		if errors.Is(err, io.EOF) {
			return list, r, nil
		}
		if err != nil {
			return list, r, err
		}
		list = append(list, q)
	}
}

func TestRoundTrip(t *testing.T) {
	path := t.TempDir() + "/trace"
	before := time.Now()
	r, err := Start(path, Options{})
	must(t, err)
	long := strings.Repeat("n", 300)
	given := []Request{
		{Where: Node, Name: "disk", Op: Write, Off: 1 << 40, Len: 4096, Took: time.Nanosecond},
		{Where: Export, Name: "disk", Op: Read, Len: 512, Conn: 7, Failed: true},
		{Where: Node, Name: long, Op: Flush},
		{Where: Node, Name: "disk", Op: Discard, Len: 1, Took: time.Hour},
	}
	for _, q := range given {
		r.Record(q)
	}
	totals, err := r.Stop()
	must(t, err)
	r.Record(given[0]) // comes too late, and does no harm
	text, err := os.ReadFile(path)
	must(t, err)
	got, reader, err := all(text)
	must(t, err)
	if (totals != Totals{4, 0}) || reader.End == nil || *reader.End != totals || reader.Began().Before(before) {
		t.Errorf("totals %v, %v, began %v", totals, reader.End, reader.Began())
	}
	for i := range got {
		if got[i].Began > time.Minute {
			t.Errorf("%+v", got[i])
		}
		got[i].Began = 0
	}
	given[2].Name = long[:maxName]
	if !slices.Equal(got, given) {
		t.Errorf("%+v", got)
	}
	if _, err := Start(path, Options{}); !errors.Is(err, os.ErrExist) {
		t.Errorf("a file that is there is written to: %v", err)
	}
	// Wherever it is cut off, there are fewer requests, and no error.
	for n := headerSize; n < len(text); n++ {
		if cut, reader, err := all(text[:n]); err != nil || len(cut) > len(given) || reader.End != nil {
			t.Fatalf("cut off at %d: %d requests, %v", n, len(cut), err)
		}
	}
}

func TestFilter(t *testing.T) {
	r, err := Start(t.TempDir()+"/trace", Options{Nodes: []string{"a"}, Exports: []string{"e"}})
	must(t, err)
	for _, c := range []subject{{Node, "a"}, {Node, "e"}, {Export, "a"}, {Export, "e"}} {
		r.Record(Request{Where: c.where, Name: c.name, Op: Read})
	}
	if totals, err := r.Stop(); err != nil || totals.Recorded != 2 {
		t.Errorf("%v, %v", totals, err)
	}
}

// What there is no room for is counted, in the file too, and the file does not grow beyond its limit.
func TestLimit(t *testing.T) {
	path := t.TempDir() + "/trace"
	r, err := Start(path, Options{Limit: leastLimit})
	must(t, err)
	var work sync.WaitGroup
	for range 4 {
		work.Go(func() {
			for range 10000 {
				r.Record(Request{Where: Node, Name: "a", Op: Read})
			}
		})
	}
	work.Wait()
	totals, err := r.Stop()
	must(t, err)
	text, err := os.ReadFile(path)
	must(t, err)
	got, reader, err := all(text)
	must(t, err)
	if totals.Recorded+totals.Dropped != 40000 || int64(len(got)) != totals.Recorded || reader.Dropped != totals.Dropped ||
		len(text) > leastLimit || len(text) < leastLimit/2 {
		t.Errorf("%v, %d requests, %d dropped, %d bytes", totals, len(got), reader.Dropped, len(text))
	}
	if _, err := Start(path+"2", Options{Limit: 1}); err == nil {
		t.Error("a limit of a byte is taken")
	}
}

// More names than a reader takes do not spoil a trace.
func TestManyNames(t *testing.T) {
	path := t.TempDir() + "/trace"
	r, err := Start(path, Options{})
	must(t, err)
	for i := range maxNames + 10 {
		r.Record(Request{Where: Node, Name: strconv.Itoa(i), Op: Read})
		if i%1000 == 0 {
			r.full <- struct{}{} // room for more
		}
	}
	totals, err := r.Stop()
	must(t, err)
	text, err := os.ReadFile(path)
	must(t, err)
	got, reader, err := all(text)
	if err != nil || int64(len(got)) != totals.Recorded || reader.Dropped != totals.Dropped || totals.Dropped < 10 {
		t.Errorf("%v, %d requests, %v", totals, len(got), err)
	}
}

func TestWriteFails(t *testing.T) {
	r, err := Start(t.TempDir()+"/trace", Options{})
	must(t, err)
	must(t, r.file.Close())
	r.Record(Request{Where: Node, Name: "a", Op: Read})
	if _, err := r.Stop(); err == nil || !strings.Contains(err.Error(), "ends early") {
		t.Error(err)
	}
}

// FuzzReader: whatever a file has, the reader ends, with requests that can be.
func FuzzReader(f *testing.F) {
	text := appendRequest(appendName(header(time.Unix(1, 2)), Node, 1, "disk"), &Request{Op: Read, Len: 5}, 1)
	f.Add(text)
	f.Add(appendRecord(text, kindLost, 0, 0, 0, [5]uint64{1, 5}))
	f.Add(appendRecord(text, kindEnd, 0, 0, 0, [5]uint64{1, 1, 0}))
	f.Add(appendRecord(text, 9, 0, 0, 0, [5]uint64{}))
	f.Fuzz(func(t *testing.T, text []byte) {
		list, _, err := all(text)
		if len(list) > len(text)/recordSize {
			t.Errorf("%d requests in %d bytes, %v", len(list), len(text), err)
		}
		for _, q := range list {
			if q.Off < 0 || q.Len < 0 || q.Took < 0 || q.Name == "" || q.Op.String() == "?" {
				t.Errorf("%+v", q)
			}
		}
	})
}

func BenchmarkRecord(b *testing.B) {
	r, err := Start(b.TempDir()+"/trace", Options{Limit: 1 << 40})
	must(b, err)
	b.ReportAllocs()
	for b.Loop() {
		r.Record(Request{Where: Node, Name: "disk", Op: Read, Off: 4096, Len: 4096, Took: time.Microsecond})
	}
	_, err = r.Stop()
	must(b, err)
}
