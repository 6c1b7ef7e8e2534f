// SPDX-License-Identifier: Apache-2.0

package mirror

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/blocktest"
	"github.com/blkmirror/blkmirror/job"
)

// recorder keeps what happens to jobs.
type recorder struct {
	mu      sync.Mutex
	log     []string
	ready   []job.Info
	onReady func(job.Info)
	fails   int
	failed  []job.Failure
	current map[string]int64
}

func (r *recorder) note(id, what string) {
	r.mu.Lock()
	r.log = append(r.log, id+":"+what)
	r.mu.Unlock()
}

func (r *recorder) StatusChanged(id string, s job.Status) { r.note(id, s.String()) }
func (r *recorder) BecameReady(i job.Info) {
	r.note(i.ID, "READY")
	r.mu.Lock()
	r.ready = append(r.ready, i)
	f := r.onReady
	r.mu.Unlock()
	if f != nil {
		f(i)
	}
}
func (r *recorder) BecamePending(i job.Info) { r.note(i.ID, "PENDING") }
func (r *recorder) Completed(i job.Info)     { r.note(i.ID, "COMPLETED") }
func (r *recorder) Cancelled(i job.Info)     { r.note(i.ID, "CANCELLED") }
func (r *recorder) Failed(id string, f job.Failure) {
	r.mu.Lock()
	r.fails++
	r.failed = append(r.failed, f)
	r.mu.Unlock()
}

func (r *recorder) failures() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.fails
}

// of is the history of one job.
func (r *recorder) of(id string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var words []string
	for _, e := range r.log {
		if word, ok := strings.CutPrefix(e, id+":"); ok {
			words = append(words, word)
		}
	}
	return strings.Join(words, " ")
}

// next lists what may follow each event of a job.
var next = map[string][]string{
	"":          {"created"},
	"created":   {"running"},
	"running":   {"paused", "ready", "aborting", "READY"},
	"paused":    {"running"},
	"ready":     {"READY", "standby", "waiting", "aborting"},
	"READY":     {"standby", "waiting", "aborting"},
	"standby":   {"ready"},
	"waiting":   {"pending", "aborting"},
	"pending":   {"PENDING", "COMPLETED", "aborting"},
	"PENDING":   {"COMPLETED", "aborting"},
	"aborting":  {"COMPLETED", "CANCELLED"},
	"COMPLETED": {"concluded"},
	"CANCELLED": {"concluded"},
	"concluded": {"null"},
	"null":      {},
}

// illegal says what is wrong with the history of a job.
func illegal(history string) string {
	last, ready, ends := "", 0, 0
	for word := range strings.FieldsSeq(history) {
		if !slices.Contains(next[last], word) {
			return fmt.Sprintf("%q after %q", word, last)
		}
		switch word {
		case "READY":
			ready++
		case "COMPLETED", "CANCELLED":
			ends++
		}
		last = word
	}
	if ready > 1 || ends > 1 {
		return fmt.Sprintf("%d times ready, %d times over", ready, ends)
	}
	return ""
}

// rig is a source, a target, a guest and what it takes to mirror.
type rig struct {
	t              testing.TB
	graph          *block.Graph
	jobs           *job.Registry
	events         *recorder
	source, target *disk
	sn, tn         *block.Node
	guest          *block.Backend
}

var unmapping = block.Options{Discard: true}

func newRig(t testing.TB, source, target *disk, so, to block.Options) *rig {
	r := &rig{t: t, graph: block.NewGraph(), events: &recorder{current: map[string]int64{}}, source: source, target: target}
	r.jobs = job.NewRegistry(r.events)
	r.sn = blocktest.NewNode(t, r.graph, "source", source.driver(), so)
	r.tn = blocktest.NewNode(t, r.graph, "target", target.driver(), to)
	r.guest = blocktest.Attach(t, r.graph, r.sn, "guest", block.PermConsistentRead|block.PermWrite, block.PermAll)
	return r
}

// plain is a rig of disks of that many bytes, the source full of data, the target empty.
func plain(t testing.TB, size int64) *rig {
	return rigOf(t, size, false)
}

// remotePlain is a plain rig with a target that can be behind a network.
func remotePlain(t testing.TB, size int64) *rig { return rigOf(t, size, true) }

func rigOf(t testing.TB, size int64, far bool) *rig {
	target := newDisk(2, nil, blocktest.MemOptions{Size: size})
	target.far = far
	return newRig(t, newDisk(1, pattern(1, size), blocktest.MemOptions{}), target, unmapping, unmapping)
}

func pattern(id uint64, n int64) []byte {
	b := make([]byte, n)
	for i := range b {
		x := (id+1)*0x9e3779b97f4a7c15 + uint64(i/8)*0xbf58476d1ce4e5b9
		x ^= x >> 29
		b[i] = byte(x>>(i%8*8)) | 1
	}
	return b
}

func (r *rig) start(o Options) *Mirror {
	r.t.Helper()
	if o.JobID == "" {
		o.JobID = "m"
	}
	if o.Source == nil {
		o.Source, o.Target = r.sn, r.tn
	}
	o.AutoDismiss = true
	m, err := Start(bg, r.graph, r.jobs, o, nil)
	must(r.t, err)
	return m
}

// ready waits until the job is.
func (r *rig) ready(m *Mirror) {
	r.t.Helper()
	r.readyWithin(m, 100*time.Second)
}

func (r *rig) readyWithin(m *Mirror, most time.Duration) {
	r.t.Helper()
	for range most / (10 * time.Millisecond) {
		if m.job.IsReady() {
			return
		}
		select {
		case <-m.job.Done():
			r.t.Fatalf("the job ended instead of becoming ready: %v; %s", m.job.Err(), r.events.of(m.job.ID()))
		case <-time.After(10 * time.Millisecond):
		}
	}
	r.t.Fatalf("not ready after %v: %+v %s", most, m.State(), r.events.of(m.job.ID()))
}

// over waits until the job is.
func (r *rig) over(m *Mirror) {
	r.t.Helper()
	select {
	case <-m.job.Done():
	case <-time.After(100 * time.Second):
		r.t.Fatalf("not over after 100 s: %+v %s", m.State(), r.events.of(m.job.ID()))
	}
	synctest.Wait()
}

func (r *rig) same() {
	r.t.Helper()
	if at := differAt(r.source.Bytes(), r.target.Bytes()); at >= 0 {
		r.t.Fatalf("target differs from source at byte %d", at)
	}
}

func differAt(a, b []byte) int {
	if bytes.Equal(a, b) {
		return -1
	}
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return len(a)
}

// in runs f in a bubble of virtual time, and fails when that spins.
func in(t *testing.T, f func(t *testing.T)) {
	watch := time.AfterFunc(60*time.Second, func() { panic(t.Name() + " spins without virtual time going on") })
	defer watch.Stop()
	synctest.Test(t, f)
}

// at runs f in a goroutine of its own and returns what waits for its end.
func at(f func()) (wait func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	return func() { <-done }
}
