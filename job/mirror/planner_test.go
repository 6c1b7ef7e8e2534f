// SPDX-License-Identifier: Apache-2.0

package mirror

import (
	"fmt"
	"strings"
	"testing"

	"github.com/blkmirror/blkmirror/block/bitmap"
)

const chunk = 4 * kib

// bench is a planner of ten chunks and a half, and the claims that a test gave names to.
type bench struct {
	*planner
	t   *testing.T
	ops map[string]*op
}

const benchSize = 10*chunk + chunk/2

func newBench(t *testing.T, mode Mode) *bench {
	p, err := newPlanner(benchSize, chunk, mode)
	must(t, err)
	p.scanned = p.d.Size()
	return &bench{p, t, map[string]*op{}}
}

// chunks shows a bitmap: the numbers of the chunks that are set.
func chunks(b *bitmap.Bitmap) string {
	var set []string
	for c := range b.All().End {
		if b.Test(c) {
			set = append(set, fmt.Sprint(c))
		}
	}
	return strings.Join(set, " ")
}

func (b *bench) setD(first, end int64) { b.d.Set(bitmap.Chunks{First: first, End: end}) }
func (b *bench) setZ(first, end int64) { b.z.Set(bitmap.Chunks{First: first, End: end}) }

func (b *bench) expect(what, got, want string) {
	b.t.Helper()
	if got != want {
		b.t.Errorf("%s is %q, want %q", what, got, want)
	}
}

func (b *bench) state(d, z string) {
	b.t.Helper()
	b.expect("D", chunks(b.d), d)
	b.expect("Z", chunks(b.z), z)
}

func (b *bench) guest(name string, r request, off, end int64) *op {
	o := &op{}
	if !b.beginGuest(o, r, off, end-off) {
		o.granted = make(chan struct{})
	}
	b.ops[name] = o
	return o
}

func (b *bench) woken() string {
	var names []string
	for _, o := range b.takeWoken() {
		for name, known := range b.ops {
			if known == o {
				names = append(names, name)
			}
		}
	}
	return strings.Join(names, " ")
}

func (b *bench) next(limit int64) *op {
	o := &op{}
	for {
		switch b.nextCopy(o, limit, span{}, limit) {
		case foundWork:
			return o
		case foundNone:
			return nil
		}
	}
}

// What of a guest's write in write-blocking mode goes to the target, and what becomes of D and Z.
func TestWriteBlockingTable(t *testing.T) {
	for _, c := range []struct {
		name       string
		d, z       [2]int64 // chunks that are set before
		request    request
		off, end   int64
		target     string
		parts      string
		during     string // D and Z while the write is under way
		failSource bool
		failTarget bool
		after      string // D and Z
	}{
		{name: "clean chunk in part, to the byte", request: reqData, off: 5, end: 77, target: "{5 77}", parts: "[]", during: "|", after: "|"},
		{name: "dirty chunk in part is skipped and stays dirty", d: [2]int64{0, 1}, request: reqData, off: 5, end: 77, target: "{0 0}", parts: "[]",
			during: "0|", after: "0|"},
		{name: "dirty edges are skipped, the middle is written and clean", d: [2]int64{0, 4}, request: reqData, off: 100, end: 3*chunk + 9,
			target: "{4096 12288}", parts: "[]", during: "0 3|", after: "0 3|"},
		{name: "clean first edge, dirty last one", d: [2]int64{1, 3}, request: reqData, off: 100, end: 2*chunk + 9, target: "{100 8192}", parts: "[]",
			during: "2|", after: "2|"},
		{name: "two chunks in part, the second dirty", d: [2]int64{1, 2}, request: reqData, off: 100, end: chunk + 9, target: "{100 4096}", parts: "[]",
			during: "1|", after: "1|"},
		{name: "the short last chunk is whole", d: [2]int64{10, 11}, request: reqData, off: 10 * chunk, end: benchSize, target: "{40960 43008}",
			parts: "[]", during: "|", after: "|"},
		{name: "data clears Z outward before it is issued", z: [2]int64{0, 4}, request: reqData, off: chunk - 1, end: chunk + 1,
			target: "{4095 4097}", parts: "[]", during: "|2 3", after: "|2 3"},
		{name: "zeroes that are known cost nothing", z: [2]int64{0, 4}, request: reqZero, off: 1, end: 3*chunk + 5, target: "{1 12293}", parts: "[]",
			during: "|0 1 2 3", after: "|0 1 2 3"},
		{name: "zeroes are written where not known, and known where whole", z: [2]int64{1, 2}, request: reqZero, off: 100, end: 3*chunk + 5,
			target: "{100 12293}", parts: "[{100 4096} {8192 12293}]", during: "|1", after: "|1 2"},
		{name: "zeroes to the end of the disk are whole there", request: reqZero, off: 9*chunk + 1, end: benchSize, target: "{36865 43008}",
			parts: "[{36865 43008}]", during: "|", after: "|10"},
		{name: "dirty chunk zeroed whole is clean and known", d: [2]int64{2, 3}, request: reqZero, off: 2 * chunk, end: 3 * chunk,
			target: "{8192 12288}", parts: "[{8192 12288}]", during: "|", after: "|2"},
		{name: "failed source: dirty outward", request: reqData, off: chunk - 1, end: chunk + 1, failSource: true, target: "{4095 4097}", parts: "[]",
			during: "|", after: "0 1|"},
		{name: "failed source of zeroes: Z stays for the target was left alone", z: [2]int64{0, 1}, request: reqZero, off: 0, end: chunk, failSource: true,
			target: "{0 4096}", parts: "[]", during: "|0", after: "0|0"},
		{name: "failed target: dirty outward, and nothing known of it", request: reqZero, off: chunk - 1, end: 3 * chunk, z: [2]int64{2, 4}, failTarget: true,
			target: "{4095 12288}", parts: "[{4095 8192}]", during: "|2 3", after: "0 1 2|3"},
		{name: "failed target of data", request: reqData, off: chunk, end: 2 * chunk, d: [2]int64{1, 2}, failTarget: true,
			target: "{4096 8192}", parts: "[]", during: "|", after: "1|"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t, WriteBlocking)
			b.setD(c.d[0], c.d[1])
			b.setZ(c.z[0], c.z[1])
			o := b.guest("a", c.request, c.off, c.end)
			b.expect("the part for the target", fmt.Sprint(o.target), c.target)
			b.expect("what is zeroed", fmt.Sprint(o.parts), c.parts)
			b.expect("meanwhile D|Z", chunks(b.d)+"|"+chunks(b.z), c.during)
			done, _ := b.endGuest(o, c.failSource, c.failTarget)
			b.expect("at the end D|Z", chunks(b.d)+"|"+chunks(b.z), c.after)
			want := o.target.end - o.target.off
			if c.failSource || c.failTarget {
				want = 0
			}
			if done != want {
				t.Errorf("%d bytes count as done, want %d", done, want)
			}
			b.takeWoken()
			if len(b.claims) != 0 || b.mirroring != 0 {
				t.Errorf("left: %d claims, %d bytes", len(b.claims), b.mirroring)
			}
		})
	}
}

func TestBackgroundTable(t *testing.T) {
	for _, c := range []struct {
		name    string
		d, z    [2]int64
		request request
		fail    bool
		claim   bool // the copy is at work there
		scanned int64
		off     int64
		end     int64
		after   string
		done    int64
	}{
		{name: "data", request: reqData, off: 10, end: chunk + 1, after: "0 1|"},
		{name: "data where the target is zero: Z is the copy's affair", request: reqData, z: [2]int64{0, 2}, off: 10, end: chunk + 1, after: "0 1|0 1"},
		{name: "failed data", request: reqData, fail: true, off: 10, end: 20, after: "0|"},
		{name: "trim", request: reqTrim, z: [2]int64{0, 2}, off: 10, end: 20, after: "0|0 1"},
		{name: "zeroes", request: reqZero, z: [2]int64{0, 1}, off: 10, end: chunk + 1, after: "0 1|0"},
		{name: "zeroes that the target has", request: reqZero, z: [2]int64{0, 2}, off: 10, end: chunk + 1, after: "|0 1", done: 2 * chunk},
		{name: "at the short end", request: reqZero, z: [2]int64{10, 11}, off: 10*chunk + 10, end: 10*chunk + 20, after: "|10", done: chunk / 2},
		{name: "failed zeroes", request: reqZero, fail: true, z: [2]int64{0, 2}, off: 10, end: 20, after: "0|0 1"},
		{name: "zeroes in a dirty chunk", request: reqZero, d: [2]int64{0, 1}, z: [2]int64{0, 2}, off: 10, end: 20, after: "0|0 1"},
		{name: "zeroes where the copy is at work", request: reqZero, claim: true, z: [2]int64{0, 1}, off: 10, end: 20, after: "0|0"},
		{name: "zeroes where the scan has not been", request: reqZero, scanned: chunk, z: [2]int64{0, 2}, off: 10, end: chunk + 1, after: "0 1|0 1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t, Background)
			if c.scanned > 0 {
				b.scanned = c.scanned
			}
			b.setZ(c.z[0], c.z[1])
			if c.claim {
				b.setD(0, 1)
				if b.next(chunk) == nil {
					t.Fatal("nothing to copy")
				}
			}
			b.setD(c.d[0], c.d[1])
			before := chunks(b.d)
			o := b.guest("a", c.request, c.off, c.end)
			b.expect("D before the source was written", chunks(b.d), before)
			if b.writers != 1 || b.synced() {
				t.Error("the write does not count as under way")
			}
			done, _ := b.endGuest(o, c.fail, false)
			b.expect("D|Z", chunks(b.d)+"|"+chunks(b.z), c.after)
			if done != c.done || b.writers != 0 {
				t.Errorf("done %d, want %d; %d under way", done, c.done, b.writers)
			}
		})
	}
}

// A write keeps the mode it began with, and the target is in sync only when those of the other mode have ended.
func TestModeIsKept(t *testing.T) {
	b := newBench(t, Background)
	o := b.guest("a", reqData, 0, 10)
	b.mode = WriteBlocking
	if b.synced() {
		t.Error("in sync with a background write under way")
	}
	b.endGuest(o, false, false)
	b.state("0", "")
	w := b.guest("b", reqData, chunk, chunk+10)
	b.mode = Background
	v := b.guest("c", reqData, chunk, chunk+10)
	if v.blocked != 0 || len(b.claims) != 1 {
		t.Error("a background write takes a claim")
	}
	b.endGuest(v, false, false)
	b.endGuest(w, false, false)
	b.state("0 1", "")
}

func TestUnscannedCountsAsDirty(t *testing.T) {
	b := newBench(t, WriteBlocking)
	b.scanned = 0
	o := b.guest("a", reqData, 2*chunk, 3*chunk)
	b.expect("the part for the target", fmt.Sprint(o.target), "{0 0}")
	b.endGuest(o, false, false)
	b.state("2", "")
	if !b.dirty(5) || b.caughtUp() {
		t.Error("what was not scanned counts as clean")
	}
	b.scan(chunk+10, false, true)
	b.state("2", "")
	if b.dirty(0) || !b.dirty(1) {
		t.Error("wrong chunks count as scanned")
	}
	o = b.guest("b", reqData, 0, chunk)
	b.expect("the part for the target", fmt.Sprint(o.target), "{0 4096}")
	b.endGuest(o, false, false)
	b.scan(b.d.Size()-b.scanned, false, true)
	b.state("2", "") // the scan takes nothing away
}

func TestScan(t *testing.T) {
	b := newBench(t, Background)
	b.scanned = 0
	b.setZ(0, 11)
	var done []int64
	for _, e := range []struct {
		n     int64
		dirty bool
	}{{10, true}, {chunk, false}, {chunk, false}, {chunk, true}, {6 * chunk, false}, {benchSize - 9*chunk - 10, false}} {
		done = append(done, b.scan(e.n, e.dirty, true))
	}
	b.state("0 2 3", "0 1 2 3 4 5 6 7 8 9 10")
	b.expect("bytes that count as done", fmt.Sprint(done), fmt.Sprint([]int64{0, 0, chunk, 0, 5 * chunk, chunk + chunk/2}))
	if !t.Failed() && b.left() != 3*chunk {
		t.Errorf("%d bytes are left", b.left())
	}
}

// Guests that overlap are served in the order in which they came; others do not wait.
func TestOrderOfGuests(t *testing.T) {
	b := newBench(t, WriteBlocking)
	a := b.guest("a", reqData, 0, 100)
	c := b.guest("c", reqData, 50, 200)
	d := b.guest("d", reqData, 150, 300) // waits for c, though c waits too
	e := b.guest("e", reqData, 100, 120) // waits for c only
	f := b.guest("f", reqData, 300, 310)
	b.expect("waiting", fmt.Sprint(a.blocked, c.blocked, d.blocked, e.blocked, f.blocked), "0 1 1 1 0")
	b.endGuest(f, false, false)
	b.expect("granted", b.woken(), "")
	b.endGuest(a, false, false)
	b.expect("granted", b.woken(), "c")
	b.endGuest(c, false, false)
	if got := b.woken(); got != "d e" && got != "e d" {
		t.Errorf("granted %q", got)
	}
	b.endGuest(e, false, false)
	b.endGuest(d, false, false)
}

// A dirty chunk is decided upon when the claim is granted, not when it is asked for.
func TestAdmittedWhenGranted(t *testing.T) {
	b := newBench(t, WriteBlocking)
	a := b.guest("a", reqData, 0, 100)
	c := b.guest("c", reqData, 50, 60)
	b.endGuest(a, false, true)
	b.expect("granted", b.woken(), "c")
	b.expect("the part for the target", fmt.Sprint(c.target), "{0 0}")
	b.endGuest(c, false, false)
	b.state("0", "")
}

func TestCopySkipsBusyChunks(t *testing.T) {
	b := newBench(t, WriteBlocking)
	b.setD(0, 11)
	g := b.guest("a", reqData, 3*chunk+1, 3*chunk+2)
	o := b.next(mib)
	b.expect("the copy's claim", fmt.Sprint(span{o.off, o.end}), fmt.Sprint(span{0, 3 * chunk}))
	o2 := b.next(2 * chunk)
	b.expect("the copy's claim", fmt.Sprint(span{o2.off, o2.end}), fmt.Sprint(span{4 * chunk, 6 * chunk}))
	o3 := b.next(mib)
	b.expect("the copy's claim", fmt.Sprint(span{o3.off, o3.end}), fmt.Sprint(span{6 * chunk, benchSize}))
	b.state("3", "")
	if b.next(mib) != nil || !b.starved {
		t.Error("the copy took a busy chunk, or does not know that it could not")
	}
	b.endGuest(g, false, false)
	o4 := b.next(mib)
	b.expect("the copy's claim", fmt.Sprint(span{o4.off, o4.end}), fmt.Sprint(span{3 * chunk, 4 * chunk}))
	// A guest queues behind the copy.
	h := b.guest("h", reqData, 3*chunk, 3*chunk+1)
	if h.blocked != 1 {
		t.Error("the guest does not wait for the copy")
	}
	for _, o := range []*op{o, o2, o3, o4} {
		b.copyData(o, o.off, o.end)
		b.endCopy(o, false, false)
	}
	b.expect("granted", b.woken(), "h")
	b.endGuest(h, false, false)
	b.state("", "")
	if !b.synced() || b.left() != 0 {
		t.Error("not in sync at the end")
	}
}

// The search ends, whatever is busy, also when it is the last chunk or all of them.
func TestCopyFindsNothing(t *testing.T) {
	for _, busy := range [][2]int64{{10*chunk + 5, 10*chunk + 6}, {0, benchSize}, {0, 1}, {4 * chunk, 5 * chunk}} {
		for cursor := range int64(12) {
			b := newBench(t, WriteBlocking)
			g := b.guest("a", reqData, busy[0], busy[1])
			b.setD(busy[0]/chunk, (busy[1]+chunk-1)/chunk)
			b.cursor = cursor
			for n := 0; ; n++ {
				if n == 100 {
					t.Fatalf("the search does not end with %v busy, from %d", busy, cursor)
				}
				if f := b.nextCopy(&op{}, mib, span{}, mib); f == foundNone {
					break
				} else if f == foundWork {
					t.Fatal("a busy chunk was claimed")
				}
			}
			b.endGuest(g, false, false)
			if b.next(mib) == nil {
				t.Error("nothing found when nothing is busy any more")
			}
		}
	}
}

func TestCopyTakesWhatIsAlike(t *testing.T) {
	b := newBench(t, Background)
	b.setD(1, 6)
	b.setZ(3, 5)
	var got []string
	for o := b.next(mib); o != nil; o = b.next(mib) {
		got = append(got, fmt.Sprint(span{o.off / chunk, o.end / chunk}, o.targetZero))
	}
	b.expect("claims", strings.Join(got, " "), "{1 3} false {3 5} true {5 6} false")
}

func TestHintLetsZeroesBeLong(t *testing.T) {
	b := newBench(t, Background)
	b.setD(0, 11)
	o := &op{}
	if b.nextCopy(o, chunk, span{0, 7 * chunk}, mib) != foundWork || o.end != 7*chunk {
		t.Errorf("claimed up to %d", o.end)
	}
	b.giveBack(o, 2*chunk)
	b.state("2 3 4 5 6 7 8 9 10", "")
	if b.copying != 2*chunk || b.next(chunk).off != 2*chunk {
		t.Error("what was given back is not the next to be taken")
	}
}

func TestGiveBackGrantsThoseBehind(t *testing.T) {
	b := newBench(t, WriteBlocking)
	b.setD(0, 11)
	o := b.next(mib)
	b.guest("within", reqData, 0, 10)
	both := b.guest("both", reqData, chunk, 5*chunk)
	b.guest("behind", reqData, 3*chunk, 3*chunk+10)
	b.guest("far", reqData, 6*chunk, 7*chunk)
	b.giveBack(o, 2*chunk)
	b.expect("granted", b.woken(), "far") // "behind" waits for "both", too
	b.state("2 3 4 5 7 8 9 10", "")
	b.endGuest(b.ops["far"], false, false)
	b.endCopy(o, false, false)
	if got := b.woken(); got != "within both" && got != "both within" {
		t.Errorf("granted %q", got)
	}
	b.endGuest(both, false, false)
	b.expect("granted", b.woken(), "behind")
	b.endGuest(b.ops["behind"], false, false)
	b.endGuest(b.ops["within"], false, false)
	b.takeWoken()
	b.state("5 7 8 9 10", "")
}

func TestCopyResults(t *testing.T) {
	for _, c := range []struct {
		name           string
		source, target bool
		zero           bool
		z              bool
		after          string
	}{
		{name: "data", after: "|"},
		{name: "data over known zeroes", z: true, after: "|"},
		{name: "zeroes", zero: true, after: "|1 2"},
		{name: "known zeroes", zero: true, z: true, after: "|1 2"},
		{name: "failed source", source: true, after: "1 2|"},
		{name: "failed target", target: true, zero: true, after: "1 2|"},
	} {
		b := newBench(t, Background)
		b.setD(1, 3)
		if c.z {
			b.setZ(1, 3)
		}
		o := b.next(mib)
		b.state("", map[bool]string{true: "1 2"}[c.z])
		if c.zero {
			if write := b.copyZero(o, o.off, o.end); write == c.z {
				t.Errorf("%s: zeroes written: %v", c.name, write)
			}
		} else if !c.source {
			b.copyData(o, o.off, o.end)
			b.expect("Z when data is issued", chunks(b.z), "")
		}
		b.endCopy(o, c.source, c.target)
		b.takeWoken()
		b.expect(c.name+": D|Z", chunks(b.d)+"|"+chunks(b.z), c.after)
	}
}

// A copy that writes data and zeroes into one chunk knows nothing of it but what it wrote whole.
func TestCopyMixed(t *testing.T) {
	b := newBench(t, Background)
	b.setD(0, 3)
	o := b.next(mib)
	b.copyZero(o, 0, chunk+10)
	b.copyData(o, chunk+10, chunk+20)
	b.copyZero(o, chunk+20, 2*chunk)
	b.copyZero(o, 2*chunk, 3*chunk)
	b.endCopy(o, false, false)
	b.state("", "0 2")
}

func TestTrim(t *testing.T) {
	b := newBench(t, WriteBlocking)
	b.setZ(0, 2)
	b.setD(3, 4)
	o := b.guest("a", reqTrim, 10, 4*chunk)
	b.expect("the part for the target", fmt.Sprint(o.target), fmt.Sprint(span{10, 4 * chunk}))
	b.state("", "0 1")
	o.parts = b.trimZero(o, 10, 3*chunk)
	b.expect("zeroed", fmt.Sprint(o.parts), fmt.Sprint([]span{{2 * chunk, 3 * chunk}}))
	b.copyData(o, 3*chunk, 4*chunk)
	b.endGuest(o, false, false)
	b.state("", "0 1 2")
}

// I8, on a disk with several regions.
func TestFlush(t *testing.T) {
	newP := func() *bench {
		p, err := newPlanner(8*mib, 64*kib, WriteBlocking)
		must(t, err)
		p.skipScan()
		return &bench{p, t, map[string]*op{}}
	}
	wrote := func(b *bench, region int64) {
		b.endGuest(b.guest("", reqData, region*mib, region*mib+1), false, false)
	}
	dirty := func(b *bench) (regions string) {
		for r := range int64(8) {
			if n := b.d.Count(b.d.Outward(r*mib, mib)); n == 16 {
				regions += fmt.Sprint(r)
			} else if n != 0 {
				t.Errorf("a part of region %d is dirty", r)
			}
		}
		return regions
	}
	b := newP()
	if b.beginFlush() {
		t.Error("there is nothing to flush")
	}
	b.endFlush(true)
	wrote(b, 1)
	if !b.unflushed(mib+5, 1) || b.unflushed(0, mib) {
		t.Error("wrong regions are unflushed")
	}
	if !b.beginFlush() {
		t.Error("a write is not flushed")
	}
	wrote(b, 2)
	b.endFlush(true)
	if b.unflushed(mib, mib) || !b.unflushed(2*mib, mib) {
		t.Error("wrong regions are unflushed")
	}
	b.z.Set(b.z.All())
	b.beginFlush()
	wrote(b, 5)
	b.endFlush(false)
	b.expect("dirty regions", dirty(b), "25")
	if b.z.Len() != 6*16 {
		t.Errorf("%d chunks are still trusted to be zero", b.z.Len())
	}

	// A write under way during a flush is flushed again.
	b = newP()
	o := b.guest("a", reqData, 3*mib, 3*mib+1)
	b.beginFlush()
	b.endFlush(true)
	b.endGuest(o, false, false)
	if !b.beginFlush() {
		t.Error("a write that ended after the flush needs no flush")
	}
	b.endFlush(false)
	b.expect("dirty regions", dirty(b), "3")

	// Zeroes under way during a failed flush are not trusted; later ones are.
	b = newP()
	o = b.guest("a", reqZero, 3*mib, 4*mib)
	b.beginFlush()
	b.endFlush(false)
	b.endGuest(o, false, false)
	b.expect("dirty regions", dirty(b), "3")
	if b.z.Len() != 0 {
		t.Error("zeroes are trusted that may be lost")
	}
	b.endGuest(b.guest("b", reqZero, 3*mib, 4*mib), false, false)
	b.expect("dirty regions", dirty(b), "")
	if b.z.Len() != 16 {
		t.Error("zeroes are not known that were written")
	}
}

func TestStopped(t *testing.T) {
	b := newBench(t, WriteBlocking)
	b.stopped = true
	o := b.guest("a", reqData, 0, chunk)
	b.guest("b", reqData, 0, chunk)
	if len(b.claims) != 0 {
		t.Error("a stopped planner takes claims")
	}
	b.endGuest(o, true, true)
	b.endGuest(b.ops["b"], false, false)
	b.state("", "")
}

// markAll makes every chunk dirty, and targetIsZero has the planner know that the target reads as zero.
func (p *planner) markAll() {
	for p.markSlice() {
	}
}

func (p *planner) targetIsZero() {
	for at, all := p.zeroSlice(0); at < all; {
		at, all = p.zeroSlice(at)
	}
}

// What the planner does with a large disk it does in bounded pieces, so that no guest waits for all of it: neither at the start,
// nor in the search for what is to be copied.
func TestSlices(t *testing.T) {
	p, err := newPlanner(2<<40, 64<<10, WriteBlocking) // eight slices
	must(t, err)
	chunks, calls := p.d.All().End, int64(0)
	for at, more := int64(0), true; more; calls++ {
		next, all := p.zeroSlice(at)
		if next-at > slice || p.z.Len() != next {
			t.Fatalf("at %d the target is known to be zero up to %d, in %d chunks", at, next, p.z.Len())
		}
		at, more = next, next < all
	}
	if calls != chunks/slice || p.z.Len() != chunks {
		t.Errorf("%d calls for %d chunks", calls, chunks)
	}
	for more, before := true, int64(0); more; before = p.scanned {
		if more = p.markSlice(); p.scanned-before > slice*p.d.Granularity() || p.d.Len()*p.d.Granularity() != p.scanned {
			t.Fatalf("scanned from %d to %d, %d chunks dirty", before, p.scanned, p.d.Len())
		}
	}
	if p.d.Len() != chunks {
		t.Errorf("%d chunks of %d are dirty", p.d.Len(), chunks)
	}
	taken, err := newPlanner(2<<40, 64<<10, WriteBlocking)
	must(t, err)
	for at, more := int64(0), true; more; {
		next, all := taken.take(p.d, at)
		if next-at > slice {
			t.Fatalf("%d chunks at once", next-at)
		}
		at, more = next, next < all
	}
	if taken.d.Len() != chunks {
		t.Errorf("%d chunks of %d were taken", taken.d.Len(), chunks)
	}
	p.d.Clear(bitmap.Chunks{First: 0, End: chunks - 1})
	o := &op{}
	for calls = 0; ; calls++ {
		before := p.cursor
		f := p.nextCopy(o, 1<<20, span{}, 0)
		if f == foundWork {
			break
		}
		if f == foundNone || p.cursor-before > searchSlice {
			t.Fatalf("the search went from %d to %d and found %v", before, p.cursor, f)
		}
	}
	if calls < chunks/searchSlice-1 {
		t.Errorf("%d calls went over %d chunks", calls, chunks)
	}
}

// Two bits for each chunk, whatever the size; a granularity that needs more than there may be is refused, and one named that fits.
func TestBitmapMemory(t *testing.T) {
	_, err := newPlanner(64<<40, 512, Background)
	if err == nil || !strings.Contains(err.Error(), "Granularity 512 is too fine") || !strings.HasSuffix(err.Error(), "granularity 65536 fits") {
		t.Fatalf("64 TiB with a granularity of 512: %v", err)
	}
	p, err := newPlanner(64<<40, 64<<10, Background)
	must(t, err)
	if got := p.d.All().End + p.z.All().End; got != 2<<30 {
		t.Errorf("%d bits for %d chunks", got, int64(1<<30))
	}
	if got := p.fresh.All().End + p.flushing.All().End; got > 1<<18 {
		t.Errorf("%d bits besides", got)
	}
}
