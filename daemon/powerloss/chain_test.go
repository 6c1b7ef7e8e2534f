// SPDX-License-Identifier: Apache-2.0

package powerloss

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/blocktest"
	"github.com/blkmirror/blkmirror/block/driver/qcow2"
	"github.com/blkmirror/blkmirror/daemon/handlers"
	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
)

// A schedule of a chain has guests on the top of some qcow2 images, and jobs that shorten the chain. Layer 0 is the lowest; layer n is
// node 'ln' in file '/ln'.

// naming is how nodes of a chain got there.
type naming uint8

const (
	named   naming = iota // each by a command
	inline                // in the command of the top, with names
	headers               // by the headers of the images, without names
	numNaming
)

// layers is a chain as it begins.
type layers struct {
	count    int // 0 for a schedule of mirrors
	naming   naming
	readOnly bool // all but the top
	cluster  int64
}

func layer(i int) string { return fmt.Sprintf("l%d", i) }

// all are the layers at first, from the top down.
func (c *layers) all() (list []string) {
	for i := range c.count {
		list = append([]string{layer(i)}, list...)
	}
	return list
}

// makeChain makes the images, with something of the guests' disk in each.
func (w *world) makeChain(random *rand.Rand) {
	graph, ctx := block.NewGraph(), context.Background()
	h := handlers.New(handlers.Config{Emit: func(qmp.Event) {}, Graph: graph,
		Host: handlers.Host{OpenFile: w.host.OpenFile, Identify: w.host.Identify, BootID: w.host.BootID}})
	maker := &life{world: w, handlers: h, graph: graph}
	do := func(command, text string, values ...any) {
		if _, err := maker.dispatch(command, fmt.Sprintf(text, values...)); err != nil {
			w.t.Fatalf("%s: %v", command, err)
		}
	}
	for i := range w.layers.count {
		name, backing := layer(i), ""
		w.host.addImage("/"+name, blocktest.NewMem(blocktest.MemOptions{NoZeroUnmap: random.IntN(3) == 0}), 0)
		if i > 0 {
			backing = fmt.Sprintf(`, "backing-file": "/%s", "backing-fmt": "qcow2"`, layer(i-1))
		}
		do("blockdev-add", `{"driver": "file", "node-name": "file", "filename": "/%s"}`, name)
		do("blockdev-create", `{"job-id": "create", "options": {"driver": "qcow2", "file": "file", "size": %d, "cluster-size": %d%s}}`, w.size,
			w.layers.cluster, backing)
		for done := false; !done; {
			time.Sleep(time.Second)
			jobs, err := h.QueryJobs(ctx)
			if err != nil || len(jobs) != 1 || jobs[0].Error != nil {
				w.t.Fatalf("blockdev-create: %+v %v", jobs, err)
			}
			done = jobs[0].Status == api.JobStatusConcluded
		}
		do("job-dismiss", `{"id": "create"}`)
		do("blockdev-add", `{"driver": "qcow2", "node-name": "%s", "file": "file"}`, name)
		b := maker.attach(name, block.PermConsistentRead|block.PermWrite)
		for at := int64(0); at < w.size; at += 4 << 10 {
			if random.IntN(w.layers.count) > 0 {
				continue
			}
			p := make([]byte, 4<<10)
			w.journal.fill(p, w.journal.begin(at, int64(len(p)), false))
			w.journal.answer(at, int64(len(p)), true)
			if err := b.WriteAt(ctx, p, at, 0); err != nil {
				w.t.Fatal(err)
			}
		}
		if err := b.Flush(ctx); err != nil {
			w.t.Fatal(err)
		}
		maker.detach(b)
		do("blockdev-del", `{"node-name": "%s"}`, name)
		do("blockdev-del", `{"node-name": "file"}`)
	}
	if err := h.Close(ctx, 0); err != nil {
		w.t.Fatal(err)
	}
}

// setUpChain makes the nodes of the chain that are not there yet.
func (l *life) setUpChain() bool {
	c := &l.layers
	top := layer(c.count - 1)
	if l.known.chain != nil {
		return true
	}
	options := func(i int, backing string) string {
		readOnly := ""
		if c.readOnly && i < c.count-1 {
			readOnly = `, "read-only": true`
		}
		return fmt.Sprintf(`{"driver": "qcow2", "node-name": "%s", "discard": "unmap", "file": {"driver": "file", "filename": "/%s", "discard": "unmap"}%s%s}`,
			layer(i), layer(i), readOnly, backing)
	}
	begin := func(m *model) { m.chain = c.all() }
	switch c.naming {
	case headers:
		return l.must(func(m *model) { begin(m); m.nodes[top] = true }, "blockdev-add", "%s", options(c.count-1, ""))
	case inline:
		text := options(0, "")
		for i := 1; i < c.count; i++ {
			text = options(i, `, "backing": `+text)
		}
		return l.must(func(m *model) {
			begin(m)
			for _, name := range m.chain {
				m.nodes[name] = true
			}
		}, "blockdev-add", "%s", text)
	}
	for i := range c.count {
		backing := ""
		if i > 0 {
			backing = fmt.Sprintf(`, "backing": "%s"`, layer(i-1))
		}
		if l.known.nodes[layer(i)] {
			continue
		}
		if !l.must(func(m *model) {
			m.nodes[layer(i)] = true
			if i == c.count-1 {
				begin(m)
			}
		}, "blockdev-add", "%s", options(i, backing)) {
			return false
		}
	}
	return true
}

// find finds a node, or a layer without a name.
func (l *life) find(name string) (*block.Node, error) {
	n, err := l.graph.Node(name)
	if err == nil {
		return n, nil
	}
	for _, n := range l.graph.Nodes() {
		if n.DriverName() == "qcow2" && n.FileName() == "/"+name {
			return n, nil
		}
	}
	return nil, err
}

// nodeName is a name of a node that lasts.
func (l *life) nodeName(name string) string {
	if n, err := l.graph.Node(name); err == nil && strings.HasPrefix(name, "#") {
		return n.FileName()[1:]
	}
	return name
}

// chainOf are the layers from a node down.
func (l *life) chainOf(name string) (list []string, err error) {
	n, err := l.find(name)
	if err != nil {
		return nil, err
	}
	for ; n != nil; n = n.Backing() {
		n = n.Unfiltered()
		list = append(list, strings.TrimPrefix(n.FileName(), "/"))
	}
	return list, nil
}

// checkHeaders looks whether each image says that it stands on what it stands on.
func (l *life) checkHeaders(name string) error {
	n, err := l.find(name)
	if err != nil {
		return err
	}
	for n = n.Unfiltered(); n != nil; {
		below, file := n.Backing(), ""
		if below != nil {
			below = below.Unfiltered()
			file = below.FileName()
		}
		disk, ok := n.Driver().(interface{ Info() *qcow2.Info })
		if !ok {
			return fmt.Errorf("node '%s' is no image", n.Name())
		}
		if is := disk.Info().BackingFile; is != file {
			return fmt.Errorf("'%s' says that it stands on '%s', and stands on '%s'", n.FileName(), is, file)
		}
		n = below
	}
	return nil
}

// ---- Jobs

// shorten is the end of a job that takes layers out of the chain.
func (c *layers) shorten(gone []string, to string) func(*model) {
	return func(m *model) {
		if m.job == nil {
			return
		}
		m.job = nil
		c.cut(m, gone)
		if to != "" {
			m.exports["e"] = to
		}
	}
}

func (c *layers) cut(m *model, gone []string) {
	m.chain = slices.DeleteFunc(slices.Clone(m.chain), func(name string) bool { return slices.Contains(gone, name) })
}

// startOnChain starts a job that makes the chain shorter.
func (l *life) startOnChain(k *model) {
	c, chain := &l.layers, k.chain
	if len(chain) < 2 || chain[0] != layer(c.count-1) {
		return // a chain that guests have left is still used by its top
	}
	job := &mirror{manual: l.random.IntN(3) == 0}
	by := func(argument, name string) string {
		if c.naming == headers {
			return fmt.Sprintf(`, "%s": "/%s"`, argument, name)
		}
		return fmt.Sprintf(`, "%s-node": "%s"`, argument, name)
	}
	command, device, more, to := "block-commit", chain[0], "", ""
	var gone []string
	last := len(chain) - 1
	switch l.random.IntN(3) {
	case 0:
		job.kind, command = "stream", "block-stream"
		at := l.random.IntN(last)
		device, gone = chain[at], chain[at+1:]
		if base := at + 1 + l.random.IntN(last-at+1); base <= last {
			gone = chain[at+1 : base]
			more = by("base", chain[base])
		}
	case 1:
		if last > 1 {
			job.kind = "commit"
			at := 1 + l.random.IntN(last-1)
			base := at + 1 + l.random.IntN(last-at)
			gone, more = chain[at:base], by("top", chain[at])+by("base", chain[base])
			break
		}
		fallthrough
	default:
		job.kind, job.active = "commit", true
		base := 1 + l.random.IntN(last)
		gone, to, more = chain[:base], chain[base], by("base", chain[base])
	}
	n, err := l.find(device)
	if err != nil {
		l.wrong("%v", err)
		return
	}
	if l.random.IntN(4) > 0 {
		job.speed = 16<<10 + l.random.Int64N(l.size*2)
		more += fmt.Sprintf(`, "speed": %d`, job.speed)
	}
	if job.manual {
		more += `, "auto-finalize": false`
	}
	gone = slices.Clone(gone)
	l.mu.Lock()
	if !l.frozen {
		l.ending, l.ahead, l.over = c.shortenAndClose(gone, to), nil, make(chan struct{})
		l.whole = l.ending
		if !job.active && c.naming == headers {
			l.ahead = func(m *model) { c.cut(m, gone) }
		}
	}
	l.mu.Unlock()
	switch {
	case job.active:
		l.counts.actives++
	case command == "block-commit":
		l.counts.commits++
	default:
		l.counts.streams++
	}
	over := l.over
	l.must(func(m *model) {
		m.job = job
		select {
		case <-over: // before the command was answered
			c.shortenAndClose(gone, to)(m)
		default:
		}
	}, command, `{"job-id": "m", "device": "%s"%s}`, n.Name(), more)
}

// shortenAndClose is shorten with the nodes of layers closed that were opened with the top.
func (c *layers) shortenAndClose(gone []string, to string) func(*model) {
	end := c.shorten(gone, to)
	return func(m *model) {
		if m.job == nil {
			return
		}
		end(m)
		if to == "" && c.naming == inline {
			for _, name := range gone {
				delete(m.nodes, name)
			}
		}
	}
}

// onJob is a change of the job, if it is still there.
func onJob(f func(*mirror)) func(*model) {
	return func(m *model) {
		if m.job != nil {
			f(m.job)
		}
	}
}

// may is a command that can also come too early or too late for the job.
func (l *life) may(change func(*model), command, arguments string, values ...any) (done bool) {
	err := l.do(change, command, arguments, values...)
	if err != nil && !errors.Is(err, errCut) && !strings.Contains(err.Error(), "cannot accept command verb") &&
		!strings.Contains(err.Error(), "not found") {
		l.wrong("%s: %v", command, err)
	}
	return err == nil
}

// steerOnChain changes the job or asks it for something.
func (l *life) steerOnChain(k *model) {
	switch l.random.IntN(4) {
	case 0, 1:
		if k.job.paused {
			l.may(onJob(func(j *mirror) { j.paused = false }), "job-resume", `{"id": "m"}`)
		} else {
			l.may(onJob(func(j *mirror) { j.paused = true }), "job-pause", `{"id": "m"}`)
		}
	case 2:
		speed := int64(0)
		if l.random.IntN(3) > 0 {
			speed = 16<<10 + l.random.Int64N(l.size*2)
		}
		l.may(onJob(func(j *mirror) { j.speed = speed }), "block-job-set-speed", `{"device": "m", "speed": %d}`, speed)
	default:
		if l.random.IntN(3) == 0 {
			l.finishOnChain(false)
		}
	}
}

// status is that of the job, "" if there is none.
func (l *life) status() api.JobStatus {
	jobs, err := l.handlers.QueryBlockJobs(context.Background())
	if err != nil {
		l.wrong("%v", err)
	}
	for _, j := range jobs {
		return j.Status
	}
	return ""
}

// finishOnChain sees to it that the job ends; what was asked and answered is not asked again.
func (l *life) finishOnChain(dangerous bool) {
	l.mu.Lock()
	over, frozen := l.over, l.frozen
	l.mu.Unlock()
	if frozen {
		return
	}
	if l.random.IntN(8) == 0 {
		l.counts.cancels++
		if l.may((*model).ended, "job-cancel", `{"id": "m"}`) {
			l.await(over)
		}
		return
	}
	if dangerous {
		l.fuse(60)
	}
	for began := time.Now(); ; {
		l.mu.Lock()
		job, frozen := l.known.job, l.frozen
		l.mu.Unlock()
		switch status := l.status(); {
		case frozen || job == nil:
			return
		case time.Since(began) > 10*time.Minute:
			l.wrong("the job does not end: %s, %+v", status, *job)
			return
		case job.paused:
			l.may(onJob(func(j *mirror) { j.paused = false }), "job-resume", `{"id": "m"}`)
		case job.speed > 0 && (status == api.JobStatusRunning || status == api.JobStatusReady):
			l.may(onJob(func(j *mirror) { j.speed = 0 }), "block-job-set-speed", `{"device": "m", "speed": 0}`)
		case status == api.JobStatusReady && !job.complete:
			if l.random.IntN(6) == 0 {
				l.softly(over)
				return
			}
			l.completely()
		case status == api.JobStatusPending && job.manual && !job.finalize:
			l.may(onJob(func(j *mirror) { j.finalize = true }), "job-finalize", `{"id": "m"}`)
		case status == api.JobStatusRunning && job.active && time.Since(began) > time.Second:
			l.may(nil, "block-job-change", `{"id": "m", "type": "mirror", "copy-mode": "write-blocking"}`)
		}
		select {
		case <-l.host.cut.done:
			return
		case <-over:
			l.counts.pivots++
			l.checkChain()
			return
		case <-time.After(time.Duration(1+l.random.Int64N(100)) * time.Millisecond):
		}
	}
}

// completely asks a commit of the active layer to complete. The power may have gone in the life before while it was asked to leave the
// chain as it is, and nothing came of that.
func (l *life) completely() {
	l.mu.Lock()
	was := l.ending
	if !l.frozen {
		l.ending = l.whole
	}
	l.mu.Unlock()
	if !l.may(onJob(func(j *mirror) { j.complete = true }), "job-complete", `{"id": "m"}`) {
		l.mu.Lock()
		if !l.frozen && l.ending != nil {
			l.ending = was
		}
		l.mu.Unlock()
	}
}

// softly ends a commit of the active layer that is ready, and leaves the chain as it is.
func (l *life) softly(over chan struct{}) {
	l.mu.Lock()
	was := l.ending
	if !l.frozen {
		l.ending = (*model).ended
	}
	manual := l.known.job != nil && l.known.job.manual
	l.mu.Unlock()
	if !l.may(onJob(func(j *mirror) { j.complete = true }), "block-job-cancel", `{"device": "m"}`) {
		l.mu.Lock()
		if !l.frozen && l.ending != nil {
			l.ending = was
		}
		l.mu.Unlock()
		return
	}
	l.counts.cancels++
	if !manual {
		l.await(over)
	}
}

func (l *life) await(over chan struct{}) {
	select {
	case <-l.host.cut.done:
	case <-over:
	case <-time.After(10 * time.Minute):
		l.wrong("the job does not end")
	}
}

// checkChain compares the chain with what the operator knows, after a job.
func (l *life) checkChain() {
	l.mu.Lock()
	known := l.known
	l.mu.Unlock()
	is, err := l.chainOf(known.exports["e"])
	if err == nil && known.job == nil {
		err = l.checkHeaders(known.exports["e"])
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.frozen && (err != nil || !slices.Equal(is, known.chain)) {
		l.wrong("the chain is %v, and should be %v: %v", is, known.chain, err)
	}
}

// operateOnChain does what operators do with a chain.
func (l *life) operateOnChain(dangerous, last bool) {
	for range 2 + l.random.IntN(10) {
		if !l.sleep(300 * time.Millisecond) {
			return
		}
		switch k := l.current(); {
		case l.random.IntN(4) == 0:
			l.surroundings(k)
		case k.job == nil:
			l.startOnChain(k)
		default:
			l.steerOnChain(k)
		}
	}
	if l.current().job == nil && (last || l.random.IntN(2) == 0) {
		l.startOnChain(l.current())
	}
	if l.current().job != nil && (last || dangerous || l.random.IntN(2) == 0) {
		l.finishOnChain(dangerous && !last)
	}
}

// current is what the operator knows now.
func (l *life) current() *model {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.known
}

// believes says whether what there is may be.
func (w *world) believes(is *model) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.frozen || slices.ContainsFunc(w.possible(), func(m *model) bool { return m.matches(is) })
}

// matches compares what was told with what there is, of a job what the daemon tells.
func (m *model) matches(is *model) bool {
	if m.job != nil && is.job != nil {
		job := *m.job
		job.speed, job.paused = is.job.speed, is.job.paused
		is.job = &job
	}
	return m.String() == is.String()
}
