// SPDX-License-Identifier: Apache-2.0

package powerloss

import (
	"context"
	"fmt"
	"time"

	"github.com/blkmirror/blkmirror/qmp/api"
)

// sleep waits; false if the host ends meanwhile.
func (l *life) sleep(most time.Duration) bool {
	select {
	case <-l.host.cut.done:
		return false
	case <-time.After(time.Duration(l.random.Int64N(int64(most)))):
		return true
	}
}

func add[K comparable](set func(*model) map[K]bool, k K) func(*model) {
	return func(m *model) { set(m)[k] = true }
}

func remove[K comparable](set func(*model) map[K]bool, k K) func(*model) {
	return func(m *model) { delete(set(m), k) }
}

func nodesOf(m *model) map[string]bool   { return m.nodes }
func objectsOf(m *model) map[string]bool { return m.objects }

// setUp makes what is not there yet: two disks, an export of the first, and what stands around.
func (l *life) setUp() (ok bool) {
	k := l.known
	if !k.objects["io"] && !l.must(add(objectsOf, "io"), "object-add", `{"qom-type": "iothread", "id": "io"}`) {
		return false
	}
	guests := "s"
	if l.layers.count > 0 {
		guests = layer(l.layers.count - 1)
		if !l.setUpChain() {
			return false
		}
	} else {
		for i, name := range []string{"s", "t"} {
			if !l.addDisk(i, name) {
				return false
			}
		}
	}
	if !k.server && !l.must(func(m *model) { m.server = true }, "nbd-server-start", "%s", address) {
		return false
	}
	return k.exports["e"] != "" || l.must(func(m *model) { m.exports["e"] = guests }, "block-export-add",
		`{"type": "nbd", "id": "e", "name": "disk", "node-name": "%s", "writable": true}`, guests)
}

func (l *life) addDisk(i int, name string) (ok bool) {
	if !l.format[i] {
		return l.known.nodes[name] || l.must(add(nodesOf, name), "blockdev-add",
			`{"driver": "raw", "node-name": "%s", "discard": "unmap", "file": {"driver": "file", "filename": "/%s"}}`, name, name)
	}
	file := name + "-file"
	if !l.known.nodes[file] && !l.must(add(nodesOf, file), "blockdev-add",
		`{"driver": "file", "node-name": "%s", "filename": "/%s", "discard": "unmap"}`, file, name) {
		return false
	}
	if !l.formatted[i] {
		if !l.must(nil, "blockdev-create", `{"job-id": "create", "options": {"driver": "qcow2", "file": "%s", "size": %d}}`, file, l.size) {
			return false
		}
		for done := false; !done; {
			if !l.sleep(time.Second) {
				return false
			}
			jobs, err := l.handlers.QueryJobs(context.Background())
			if err != nil || len(jobs) != 1 || jobs[0].Error != nil {
				l.wrong("blockdev-create: %+v %v", jobs, err)
				return false
			}
			done = jobs[0].Status == api.JobStatusConcluded
		}
		if !l.must(nil, "job-dismiss", `{"id": "create"}`) {
			return false
		}
		l.formatted[i] = true
	}
	return l.known.nodes[name] || l.must(add(nodesOf, name), "blockdev-add",
		`{"driver": "qcow2", "node-name": "%s", "discard": "unmap", "file": "%s"}`, name, file)
}

// operate does what operators do. With dangerous the host ends soon after the mirror was asked to end.
func (l *life) operate(dangerous, last bool) {
	if l.layers.count > 0 {
		l.operateOnChain(dangerous, last)
		return
	}
	if !l.awaitEnd() {
		return
	}
	for range 2 + l.random.IntN(10) {
		if !l.sleep(300 * time.Millisecond) {
			return
		}
		switch k := l.known; l.random.IntN(4) {
		case 0:
			l.surroundings(k)
		case 1:
			l.alter(k)
		default:
			if k.job == nil {
				l.mirror(k)
			} else {
				l.steer(k)
			}
		}
	}
	if l.known.job == nil && (last || l.random.IntN(2) == 0) {
		l.mirror(l.known)
	}
	if l.known.job != nil && (last || dangerous || l.random.IntN(2) == 0) {
		l.finish(dangerous && !last)
	}
}

// awaitEnd waits for the end of a mirror that was asked for it in the life before. Who was not answered then has to ask again.
func (l *life) awaitEnd() bool {
	l.mu.Lock()
	ending, asked, over := l.ending, l.asked, l.over
	l.mu.Unlock()
	if ending == nil {
		return true
	}
	wait := 10 * time.Minute
	if !asked {
		wait = 5 * time.Second
	}
	select {
	case <-l.host.cut.done:
		return false
	case <-over:
		return true
	case <-time.After(wait):
	}
	if asked {
		l.wrong("the mirror was asked to end before, and does not")
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.frozen {
		l.ending = nil
	}
	return true
}

// mirror starts a mirror from the disk that guests have to the other one.
func (l *life) mirror(k *model) {
	source, target := k.exports["e"], "t"
	if source == "t" {
		target = "s"
	}
	more := ""
	if l.random.IntN(2) == 0 {
		more = fmt.Sprintf(`, "speed": %d`, 64<<10+l.random.Int64N(l.size*4))
	}
	modes := []string{"background", "write-blocking", "auto"}
	var speed int64
	if more != "" {
		_, _ = fmt.Sscanf(more, `, "speed": %d`, &speed)
	}
	l.counts.mirrors++
	l.must(func(m *model) { m.job = &mirror{source: source, target: target, speed: speed} }, "blockdev-mirror",
		`{"job-id": "m", "device": "%s", "target": "%s", "sync": "full", "granularity": %d, "buf-size": %d, "copy-mode": "%s"%s}`, source,
		target, 4<<10<<l.random.IntN(5), 16<<10<<l.random.IntN(4), modes[l.random.IntN(3)], more)
}

// steer changes a mirror.
func (l *life) steer(k *model) {
	switch l.random.IntN(4) {
	case 0:
		if k.job.paused {
			l.must(func(m *model) { m.job.paused = false }, "job-resume", `{"id": "m"}`)
		} else {
			l.must(func(m *model) { m.job.paused = true }, "job-pause", `{"id": "m"}`)
		}
	case 1:
		speed := int64(0)
		if l.random.IntN(2) == 0 {
			speed = 64<<10 + l.random.Int64N(l.size*4)
		}
		l.must(func(m *model) { m.job.speed = speed }, "block-job-set-speed", `{"device": "m", "speed": %d}`, speed)
	case 2:
		modes := []string{"background", "write-blocking", "auto"}
		l.must(nil, "block-job-change", `{"id": "m", "type": "mirror", "copy-mode": "%s"}`, modes[l.random.IntN(3)])
	default:
		if l.random.IntN(3) == 0 {
			l.finish(false)
		}
	}
}

// finish waits until the mirror is ready and ends it one way or another.
func (l *life) finish(dangerous bool) {
	force := !dangerous && l.random.IntN(8) == 0
	if l.known.job.paused && !l.must(func(m *model) { m.job.paused = false }, "job-resume", `{"id": "m"}`) {
		return
	}
	if !force && !l.must(func(m *model) { m.job.speed = 0 }, "block-job-set-speed", `{"device": "m", "speed": 0}`) {
		return
	}
	for began, ready := time.Now(), false; !ready && !force; {
		if !l.sleep(100 * time.Millisecond) {
			return
		}
		if waited := time.Since(began); waited > 10*time.Minute {
			l.wrong("the mirror does not get ready")
			return
		} else if waited > time.Second && !l.must(nil, "block-job-change", `{"id": "m", "type": "mirror", "copy-mode": "write-blocking"}`) {
			return // guests may write faster than it copies
		}
		jobs, err := l.handlers.QueryBlockJobs(context.Background())
		if err != nil || len(jobs) != 1 {
			l.wrong("the mirror is gone: %+v %v", jobs, err)
			return
		}
		ready = jobs[0].Ready
	}
	job := *l.known.job
	command, ending, text := "job-complete", (*model).pivoted, `{"id": "m"}`
	switch {
	case force:
		command, ending = "job-cancel", (*model).ended
	case l.random.IntN(6) == 0:
		command, ending, text = "block-job-cancel", (*model).ended, `{"device": "m"}`
	}
	calm := !force && l.random.IntN(2) == 0
	if calm {
		l.rest()
	}
	l.mu.Lock()
	if l.frozen {
		l.mu.Unlock()
		return
	}
	l.ending, l.over = ending, make(chan struct{})
	over := l.over
	l.mu.Unlock()
	if dangerous {
		l.fuse(60)
	}
	if !l.must(nil, command, "%s", text) {
		return
	}
	l.mu.Lock()
	l.asked = !l.frozen && l.ending != nil || l.frozen && l.asked
	l.mu.Unlock()
	select {
	case <-l.host.cut.done:
		return
	case <-over:
	case <-time.After(10 * time.Minute):
		l.wrong("the mirror does not end")
		return
	}
	if calm && command != "job-cancel" {
		l.alike(job.source, job.target)
	}
	if command == "job-complete" {
		l.counts.pivots++
	} else {
		l.counts.cancels++
	}
	if calm {
		l.restart()
	}
}

// surroundings changes what stands around.
func (l *life) surroundings(k *model) {
	switch l.random.IntN(4) {
	case 0:
		if k.objects["o"] {
			l.must(remove(objectsOf, "o"), "object-del", `{"id": "o"}`)
		} else {
			l.must(add(objectsOf, "o"), "object-add", `{"qom-type": "throttle-group", "id": "o"}`)
		}
	case 1:
		switch {
		case !k.nodes["x"]:
			l.must(add(nodesOf, "x"), "blockdev-add", `{"driver": "null-co", "node-name": "x", "size": 1048576, "read-zeroes": true}`)
		case k.exports["y"] == "":
			l.must(func(m *model) {
				delete(m.nodes, "x")
				delete(m.bitmaps, at{"x", "b"})
			}, "blockdev-del", `{"node-name": "x"}`)
		}
	case 2:
		switch {
		case k.exports["y"] != "":
			l.must(func(m *model) { delete(m.exports, "y") }, "block-export-del", `{"id": "y"}`)
		case k.nodes["x"]:
			l.must(func(m *model) { m.exports["y"] = "x" }, "block-export-add", `{"type": "nbd", "id": "y", "node-name": "x"}`)
		}
	default:
		if k.nodes["x"] && k.exports["y"] == "" {
			l.bitmap(k, "x")
		}
	}
}

// alter changes bitmaps of the disk that guests have.
func (l *life) alter(k *model) {
	if k.job == nil {
		l.bitmap(k, k.exports["e"])
	}
}

func (l *life) bitmap(k *model, node string) {
	a := at{node, "b"}
	b, there := k.bitmaps[a]
	text := fmt.Sprintf(`{"node": "%s", "name": "b"`, node)
	switch l.random.IntN(3) {
	case 0:
		if there {
			l.must(func(m *model) { delete(m.bitmaps, a) }, "block-dirty-bitmap-remove", "%s}", text)
		}
	case 1:
		if there {
			b.recording = !b.recording
			b.since = l.journal.flushing()
			command := "block-dirty-bitmap-disable"
			if b.recording {
				command = "block-dirty-bitmap-enable"
			}
			l.must(func(m *model) {
				b.since = l.journal.flushing()
				m.bitmaps[a] = b
			}, command, "%s}", text)
		}
	default:
		if !there {
			granularity := uint32(512) << l.random.IntN(6)
			l.must(func(m *model) { m.bitmaps[a] = bits{granularity, true, l.journal.flushing()} }, "block-dirty-bitmap-add",
				`%s, "granularity": %d, "persistent": false}`, text, granularity)
		}
	}
}
