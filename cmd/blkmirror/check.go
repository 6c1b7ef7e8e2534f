// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/blkmirror/blkmirror/cmd/blkmirror/bytesize"
	"github.com/blkmirror/blkmirror/cmd/blkmirror/internal/holders"
	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
)

// check is what was found out about one thing.
type check struct {
	name   string
	state  checkState
	detail string
}

// checkState is what a check came to.
type checkState string

// The states.
const (
	checkOK      checkState = "ok"
	checkWarning checkState = "warning" // may be as it should be
	checkProblem checkState = "problem"
	checkUnknown checkState = "unknown" // could not be checked from here
)

// checks are what was found out, in the order in which it is told.
type checks []check

func (l *checks) add(state checkState, name, format string, args ...any) {
	*l = append(*l, check{name, state, fmt.Sprintf(format, args...)})
}

func (l checks) count(s checkState) (n int) {
	for _, c := range l {
		if c.state == s {
			n++
		}
	}
	return n
}

func (l checks) objects() []any {
	list := []any{}
	for _, c := range l {
		list = append(list, qmp.NewObject(qmp.Member{Name: "check", Value: c.name}, qmp.Member{Name: "result", Value: string(c.state)},
			qmp.Member{Name: "detail", Value: c.detail}))
	}
	return list
}

func (l checks) table(c *cli) error {
	return printTable(c, "CHECK\tRESULT\tDETAIL", l, func(c check) []string { return []string{c.name, string(c.state), or(c.detail)} })
}

// err is an error that names all problems, nil if there are none.
func (l checks) err(what string) error {
	n := l.count(checkProblem)
	if n == 0 {
		return nil
	}
	details := ""
	for _, c := range l {
		if c.state == checkProblem {
			details += "\n  " + c.name + ": " + c.detail
		}
	}
	return &checksError{what, n, details}
}

// host is what can be seen of the daemon's host.
type host struct {
	local  bool // it is ours
	daemon int  // process that answers, 0 if that is not known
}

// checkMirror looks for everything that stands between a mirror and its start. It changes nothing.
func checkMirror(ctx context.Context, e executor, h host, a *api.BlockdevMirrorArguments) (checks, error) {
	m := mirrorCheck{host: h, a: a}
	var err error
	if m.nodes, err = queryNodes(ctx, e); err != nil {
		return nil, err
	}
	if err := e.Execute(ctx, "query-block-exports", nil, &m.exports); err != nil {
		return nil, err
	}
	if err := e.Execute(ctx, "query-jobs", nil, &m.jobs); err != nil {
		return nil, err
	}
	if !m.find() {
		return m.checks, nil
	}
	m.job()
	m.users()
	m.files()
	m.shape()
	m.space()
	m.locks()
	return m.checks, nil
}

// mirrorCheck is what checkMirror works on.
type mirrorCheck struct {
	checks
	host
	a              *api.BlockdevMirrorArguments
	nodes          nodeList
	exports        []api.BlockExportInfo
	jobs           []api.JobInfo
	source, target api.BlockDeviceInfo
}

// find looks the nodes up, and tells whether both are there.
func (m *mirrorCheck) find() bool {
	var missing []string
	for _, n := range []struct {
		name string
		node *api.BlockDeviceInfo
	}{{m.a.Device, &m.source}, {m.a.Target, &m.target}} {
		var ok bool
		if *n.node, ok = m.nodes.find(n.name); !ok {
			missing = append(missing, "'"+n.name+"'")
		}
	}
	if missing != nil {
		m.add(checkProblem, "nodes", "there is no node %s; see blkmirror nodes", strings.Join(missing, " and no node "))
		return false
	}
	m.add(checkOK, "nodes", "%s (%s, %s) to %s (%s, %s)", m.a.Device, m.source.Drv, bytesize.Format(m.source.Image.VirtualSize),
		m.a.Target, m.target.Drv, bytesize.Format(m.target.Image.VirtualSize))
	return true
}

// job checks the id of the job.
func (m *mirrorCheck) job() {
	id := qmp.Or(m.a.JobID, "")
	for _, j := range m.jobs {
		if j.ID == id {
			m.add(checkProblem, "job", "there is a job '%s' already, which is %s: choose another one with --job", id, j.Status)
			return
		}
	}
	m.add(checkOK, "job", "'%s'", id)
}

// users checks who else has something to do with the nodes.
func (m *mirrorCheck) users() {
	before := len(m.checks)
	for _, n := range m.nodes.above(m.a.Device) {
		if isFilter(n) {
			m.add(checkProblem, "source", "a job works on '%s' already (its filter is '%s')", m.a.Device, nameOf(n))
		} else {
			m.add(checkProblem, "source", "node '%s' stands on '%s': mirror that one", nameOf(n), m.a.Device)
		}
	}
	if m.target.Ro {
		m.add(checkProblem, "target", "'%s' is read-only", m.a.Target)
	}
	for _, n := range m.nodes.above(m.a.Target) {
		m.add(checkProblem, "target", "node '%s' stands on '%s'", nameOf(n), m.a.Target)
	}
	for _, e := range m.exports {
		if e.NodeName == m.a.Target {
			m.add(checkProblem, "target", "export '%s' serves '%s': remove it with blkmirror export remove %s", e.ID, m.a.Target, e.ID)
		}
	}
	if len(m.checks) == before {
		m.add(checkOK, "users", "nobody is in the way")
	}
}

// files checks that source and target are two.
func (m *mirrorCheck) files() {
	source, target := m.nodes.leaf(m.source), m.nodes.leaf(m.target)
	a, b := m.nodes.path(m.source), m.nodes.path(m.target)
	switch {
	case m.a.Device == m.a.Target:
		m.add(checkProblem, "same disk", "source and target are the same node")
	case nameOf(source) != "" && nameOf(source) == nameOf(target):
		m.add(checkProblem, "same disk", "both stand on node '%s'", nameOf(source))
	case a != "" && (a == b || m.local && b != "" && sameFile(a, b)):
		m.add(checkProblem, "same disk", "both are in the file '%s'", a)
	case source.Drv == "nbd" && target.Drv == "nbd" && source.Image.Filename == target.Image.Filename:
		m.add(checkProblem, "same disk", "both are '%s'", source.Image.Filename)
	default:
		m.add(checkOK, "same disk", "they are two")
	}
}

// shape checks sizes and alignments.
func (m *mirrorCheck) shape() {
	from, to := m.source.Image.VirtualSize, m.target.Image.VirtualSize
	if from != to {
		m.add(checkProblem, "size", "'%s' has %d bytes and '%s' %d: make them equal, for instance with blkmirror qmp block_resize node-name=%s size=%d",
			m.a.Device, from, m.a.Target, to, m.a.Target, from)
	} else {
		m.add(checkOK, "size", "%s", bytesize.Format(from))
	}
	have, need := alignment(m.source), alignment(m.target)
	switch g := int64(qmp.Or(m.a.Granularity, 0)); {
	case to%need != 0:
		m.add(checkProblem, "alignment", "'%s' takes requests in multiples of %s, and its size is none", m.a.Target, bytesize.Format(need))
	case g > 0 && g < need:
		m.add(checkWarning, "alignment", "'%s' takes requests in multiples of %s: with --granularity %s smaller ones read and write more than they must",
			m.a.Target, bytesize.Format(need), bytesize.Format(g))
	case need > have:
		m.add(checkWarning, "alignment", "'%s' takes requests in multiples of %s, '%s' of %s: guests' smaller writes become slower", m.a.Target,
			bytesize.Format(need), m.a.Device, bytesize.Format(have))
	default:
		m.add(checkOK, "alignment", "%s", bytesize.Format(need))
	}
}

func alignment(n api.BlockDeviceInfo) int64 {
	if n.Image.Limits == nil {
		return 1
	}
	return max(int64(n.Image.Limits.RequestAlignment), 1)
}

// space checks whether the target's file system has room for what the source has.
func (m *mirrorCheck) space() {
	path := m.nodes.path(m.target)
	need, known := m.need()
	switch leaf := m.nodes.leaf(m.target); {
	case !known:
		m.add(checkUnknown, "space", "how much '%s' has is not known", m.a.Device)
	case leaf.Drv != "file" && path != "":
		m.add(checkOK, "space", "'%s' is a device", m.a.Target)
	case path == "":
		m.add(checkUnknown, "space", "'%s' is not in a file", m.a.Target)
	case !m.local:
		m.add(checkUnknown, "space", "the daemon may run on another host")
	default:
		free, err := freeSpace(path)
		if err != nil {
			m.add(checkUnknown, "space", "'%s': %v", path, err)
			return
		}
		need -= qmp.Or(leaf.Image.ActualSize, 0)
		if free < need {
			m.add(checkProblem, "space", "'%s' may need %s more, and its file system has %s", m.a.Target, bytesize.Format(need), bytesize.Format(free))
			return
		}
		m.add(checkOK, "space", "%s more at most, %s are there", bytesize.Format(max(need, 0)), bytesize.Format(free))
	}
}

// need is how much the target will have at most of what the source has now.
func (m *mirrorCheck) need() (bytes int64, known bool) {
	n, size := m.source, m.source.Image.VirtualSize
	switch m.a.Sync {
	case api.MirrorSyncModeNone:
		return 0, true
	case api.MirrorSyncModeBitmap, api.MirrorSyncModeIncremental:
		for _, b := range n.DirtyBitmaps {
			if qmp.Or(b.Name, "") == qmp.Or(m.a.Bitmap, "") {
				return b.Count, true
			}
		}
		return 0, false
	}
	for range m.nodes { // down the backing chain
		allocated := m.nodes.leaf(n).Image.ActualSize
		if allocated == nil {
			return 0, false
		}
		bytes += *allocated
		below, ok := m.nodes.child(n, "backing")
		if !ok || m.a.Sync == api.MirrorSyncModeTop {
			break
		}
		n = below
	}
	return min(bytes, size), true
}

// locks checks whether other processes use the images in a way that the mirror does not allow.
func (m *mirrorCheck) locks() {
	before := len(m.checks)
	for _, side := range []struct {
		name string
		node api.BlockDeviceInfo
		bad  holders.Perm
	}{{m.a.Device, m.source, holders.Write | holders.Resize}, {m.a.Target, m.target, holders.ConsistentRead | holders.Write | holders.Resize}} {
		path := m.nodes.path(side.node)
		if path == "" {
			continue
		}
		if !m.local || m.daemon <= 1 {
			m.add(checkUnknown, "locks", "'%s': which process the daemon is cannot be told from here", side.name)
			continue
		}
		others, err := holders.Find(path, m.daemon)
		if err != nil {
			m.add(checkUnknown, "locks", "'%s': %v", side.name, err)
			continue
		}
		for _, o := range others {
			if o.Uses&side.bad != 0 {
				m.add(checkProblem, "locks", "%s in the image of '%s', too", o, side.name)
			}
		}
	}
	if len(m.checks) == before {
		m.add(checkOK, "locks", "no other process is in the way")
	}
}

// access tells how we may use a file.
func access(path string) (read, write bool) {
	for _, try := range []struct {
		flag int
		ok   *bool
	}{{os.O_RDONLY, &read}, {os.O_RDWR, &write}} {
		if f, err := os.OpenFile(path, try.flag, 0); err == nil {
			*try.ok = true
			f.Close()
		}
	}
	return read, write
}
