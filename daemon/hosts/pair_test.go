// SPDX-License-Identifier: Apache-2.0

package hosts

import (
	"bytes"
	"hash/fnv"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"
)

const (
	port = "10809"

	// slow is a speed at which the mirror is not ready soon, bytes per second.
	slow = 4 << 20

	// quick is the longest that a guest may wait for a write while nothing, or only a connection that is known to be lost,
	// stands between it and its disk. Eight test programs may share two processors with it.
	quick = 8 * time.Second
	// noticed is the longest that a guest may wait in write-blocking mode for a peer that says nothing any more: what
	// docs/mirror-algorithm.md says, and what is quick.
	noticed = 2*time.Second + quick
)

// setup is what differs between pairs. What is zero has a default.
type setup struct {
	wire       *wire         // in place of a cable
	folder     string        // for the target's image
	size, data int           // of the disk, and of what is on it at the start, bytes
	delay      int           // the reconnect-delay, seconds
	connection int           // connections
	pace       time.Duration // between the writes of each of the guest's lanes
}

// pair is a source host with a guest, and a target host.
type pair struct {
	t          *testing.T
	setup      setup
	dir        string
	cable      *cable // nil if there is a wire
	targetHost *host
	source     *daemon
	target     *daemon
	guest      *guest
	src, dst   string // images
	bound      time.Duration
}

// newPair makes the hosts, starts their daemons and the guest, and connects the source to the target.
func newPair(t *testing.T, s setup) *pair {
	t.Helper()
	s.size, s.data = max(s.size, 8<<20), max(s.data, 0)
	if s.data == 0 {
		s.data = s.size / 2
	}
	if s.delay == 0 {
		s.delay = 60
	}
	s.connection = max(s.connection, 1)
	if s.pace == 0 {
		s.pace = 10 * time.Millisecond
	}
	hash := fnv.New64()
	_, _ = hash.Write([]byte(t.Name()))
	seed := hash.Sum64()
	dir, err := os.MkdirTemp("/tmp", "hs-") // short, for sockets
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if s.folder == "" {
		s.folder = dir
	}
	p := &pair{t: t, setup: s, dir: dir, src: filepath.Join(dir, "src.img"), dst: filepath.Join(s.folder, "dst.img"), bound: quick}
	p.images(rand.New(rand.NewPCG(seed, 0)))

	near := newHost(t)
	p.targetHost = newHost(t)
	if s.wire != nil {
		s.wire.connect(t, near, p.targetHost, seed)
	} else {
		p.cable = join(t, near, p.targetHost)
	}
	p.startTarget()
	home := filepath.Join(dir, "source")
	must(t, os.Mkdir(home, 0o700))
	d := start(t, near, home, "--nbd-server", "addr.type=unix,addr.path="+filepath.Join(home, "nbd"),
		"--object", "tls-creds-x509,id=tls,endpoint=client,dir="+pki)
	p.source = d
	d.do("blockdev-add", args{"driver": "raw", "node-name": "src", "file": args{"driver": "file", "filename": p.src}})
	d.do("block-export-add", args{"type": "nbd", "id": "e", "node-name": "src", "writable": true})
	d.do("blockdev-add", args{"driver": "nbd", "node-name": "dst", "export": "dst", "tls-creds": "tls",
		"server":          args{"type": "inet", "host": targetAddress, "port": port},
		"reconnect-delay": s.delay, "connections": s.connection})
	p.guest = startGuest(t, d.guest("src"), p.src, s.pace, seed)
	return p
}

// images makes a source with data in its first part and an empty target.
func (p *pair) images(random *rand.Rand) {
	p.t.Helper()
	data := make([]byte, p.setup.data)
	for i := 0; i < len(data); i += 8 {
		data[i], data[i+1], data[i+2] = byte(random.Uint32()), byte(random.Uint32()), 1
	}
	must(p.t, os.WriteFile(p.src, data, 0o600))
	must(p.t, os.Truncate(p.src, int64(p.setup.size)))
	must(p.t, os.WriteFile(p.dst, nil, 0o600))
	must(p.t, os.Truncate(p.dst, int64(p.setup.size)))
}

// startTarget starts the daemon of the target host, for the first time or again.
func (p *pair) startTarget() {
	p.t.Helper()
	home, err := os.MkdirTemp(p.dir, "target-")
	must(p.t, err)
	p.target = start(p.t, p.targetHost, home,
		"--object", "tls-creds-x509,id=tls,endpoint=server,verify-peer=on,dir="+pki,
		"--blockdev", "driver=raw,node-name=dst,discard=unmap,file.driver=file,file.filename="+p.dst,
		"--nbd-server", "addr.type=inet,addr.host="+targetAddress+",addr.port="+port+",tls-creds=tls",
		"--export", "type=nbd,id=e,node-name=dst,name=dst,writable=on")
}

// mirror starts a full mirror to the target as job m; a has what differs.
func (p *pair) mirror(a args) {
	p.t.Helper()
	all := args{"job-id": "m", "device": "src", "target": "dst", "sync": "full", "on-target-error": "stop",
		"filter-node-name": "filter"}
	for name, value := range a {
		all[name] = value
	}
	p.source.do("blockdev-mirror", all)
}

// copied waits until the mirror has brought so much of the disk to the target.
func (p *pair) copied(n int64) {
	p.t.Helper()
	eventually(p.t, "the mirror copies", patience, func() bool { return p.job().Offset >= n })
}

// blockJob is what query-block-jobs tells about the mirror.
type blockJob struct {
	Status      string
	Offset, Len int64
	IOStatus    string `json:"io-status"`
	Mode        string `json:"copy-mode"`
}

func (p *pair) job() blockJob {
	p.t.Helper()
	var list []blockJob
	must(p.t, p.source.query("query-block-jobs", nil, &list))
	if len(list) != 1 {
		p.t.Fatalf("there are %d block jobs; came:\n%s", len(list), show(p.source.events))
	}
	return list[0]
}

// ready waits until the mirror is.
func (p *pair) ready() {
	p.t.Helper()
	p.source.do("block-job-set-speed", args{"device": "m", "speed": 0})
	if p.source.told("BLOCK_JOB_READY", nil) == 0 {
		p.source.waitFor(2*patience, "BLOCK_JOB_READY", nil)
	}
}

// ending is how a mirror ends well.
type ending int

const (
	pivot      ending = iota // over to the target, while the guest holds still for a comparison
	pivotUnder               // the same while the guest writes
	leave                    // the guest stays, and holds still for a comparison
)

// finish brings the mirror to its end and shows that both disks are what they have to be.
func (p *pair) finish(how ending) {
	p.t.Helper()
	d, g := p.source, p.guest
	p.ready()
	g.more(10, noticed)
	if how != pivotUnder {
		g.hold()
	}
	if how == leave {
		d.do("block-job-cancel", args{"device": "m"})
	} else {
		d.do("job-complete", args{"id": "m"})
	}
	e := d.waitFor(2*patience, "BLOCK_JOB_COMPLETED", args{"device": "m"})
	if text, failed := e.Data.Get("error"); failed {
		p.t.Fatalf("the mirror failed: %v; came:\n%s", text, show(d.events))
	}
	d.wait("JOB_STATUS_CHANGE", args{"status": "null"})
	if how != pivotUnder {
		p.same()
		g.goOn()
	}
	g.more(10, noticed)
	disk := p.dst
	if how == leave {
		disk = p.src
	}
	g.check(disk)
	p.waits()
	p.t.Logf("what the operator saw:\n%s", show(d.events))
}

// same sees that the copy is one.
func (p *pair) same() {
	p.t.Helper()
	source, err := os.ReadFile(p.src)
	must(p.t, err)
	target, err := os.ReadFile(p.dst)
	must(p.t, err)
	if len(source) != len(target) {
		p.t.Fatalf("the source has %d bytes and the target %d", len(source), len(target))
	}
	if bytes.Equal(source, target) {
		return
	}
	var differ []int
	for at := 0; at < len(source); at += unit {
		if !bytes.Equal(source[at:at+unit], target[at:at+unit]) {
			differ = append(differ, at/unit)
		}
	}
	p.t.Fatalf("source and target differ in %d units, from %d to %d; came:\n%s", len(differ), differ[0], differ[len(differ)-1],
		show(p.source.events))
}

// waits sees that the guest did not wait too long.
func (p *pair) waits() {
	p.t.Helper()
	slowest := p.guest.slowest()
	p.t.Logf("the guest did %d writes; the slowest took %v", p.guest.count(), slowest.Round(time.Millisecond))
	if slowest > p.bound {
		p.t.Errorf("a guest's write took %v, more than %v", slowest, p.bound)
	}
}

// gaveUp sees that a mirror that was given up has left nothing, and that the guest has its disk.
func (p *pair) gaveUp() {
	p.t.Helper()
	d := p.source
	d.wait("JOB_STATUS_CHANGE", args{"status": "null"})
	var exports []struct {
		Node string `json:"node-name"`
	}
	must(p.t, d.query("query-block-exports", nil, &exports))
	if len(exports) != 1 || exports[0].Node != "src" {
		p.t.Errorf("the guest's export is on %v", exports)
	}
	var nodes []struct {
		Name string `json:"node-name"`
	}
	must(p.t, d.query("query-named-block-nodes", nil, &nodes))
	for _, n := range nodes {
		if n.Name == "filter" {
			p.t.Error("the mirror's filter is still there")
		}
	}
	p.guest.more(10, quick)
	if took := d.do("blockdev-del", args{"node-name": "dst"}); took > quick {
		p.t.Errorf("blockdev-del took %v", took)
	}
	p.guest.more(10, quick)
	p.guest.check(p.src)
	p.waits()
	p.t.Logf("what the operator saw:\n%s", show(d.events))
}
