// SPDX-License-Identifier: Apache-2.0

package blackbox

import (
	"os/exec"
	"strings"
	"testing"
)

// disks makes a thin source and an empty target of the same size, opens both, exports the source and returns the paths.
func (d *daemon) disks(size int64, options args) (source, target string) {
	d.t.Helper()
	source, target = d.path("src.img"), d.path("dst.img")
	image(d.t, source, size, 1<<20, 0, size/2)
	image(d.t, target, size, 0)
	d.disk("src", source, options)
	d.disk("dst", target, options)
	d.export("src")
	return source, target
}

// mirror starts a full mirror of src to dst as job m; a has what differs.
func (d *daemon) mirror(a args) {
	d.t.Helper()
	d.do("blockdev-mirror", mirrorArgs(a))
}

func mirrorArgs(a args) args {
	all := args{"job-id": "m", "device": "src", "target": "dst", "sync": "full"}
	for name, value := range a {
		all[name] = value
	}
	return all
}

// blockJob is what query-block-jobs tells about the mirror.
type blockJob struct {
	Status         string
	IOStatus       string `json:"io-status"`
	Len, Offset    int64
	ActivelySynced bool  `json:"actively-synced"`
	DirtyBytes     int64 `json:"dirty-bytes"`
	Error          string
}

func (d *daemon) job() (j blockJob) {
	d.t.Helper()
	var list []blockJob
	must(d.t, d.query("query-block-jobs", nil, &list))
	if len(list) != 1 {
		d.t.Fatalf("there are %d block jobs", len(list))
	}
	return list[0]
}

// pivot completes the mirror.
func (d *daemon) pivot() {
	d.t.Helper()
	d.do("job-complete", args{"id": "m"})
	e := d.wait("BLOCK_JOB_COMPLETED", args{"device": "m"})
	if text, failed := e.Data.Get("error"); failed {
		d.t.Fatalf("the mirror failed: %v", text)
	}
	d.wait("JOB_STATUS_CHANGE", args{"status": "null"})
}

func TestFioVerifiesAcrossPivot(t *testing.T) {
	for _, mode := range []string{"background", "write-blocking"} {
		t.Run(mode, func(t *testing.T) {
			fio := tool(t, "fio")
			if out, err := attempt(t, "fio", "--enghelp"); err != nil || !strings.Contains(out, "nbd") {
				t.Skip("fio has no nbd engine")
			}
			d := start(t)
			_, target := d.disks(64<<20, args{"discard": "unmap"})
			// Four seconds of writes at least, so that everything happens beside them; then all is read back and checked.
			cmd := exec.Command(fio, "--name=guest", "--ioengine=nbd", "--uri="+d.uri("src"), "--rw=randwrite", "--bs=512-64k",
				"--blockalign=512", "--size=64m", "--io_size=64m", "--iodepth=8", "--verify=crc32c", "--verify_fatal=1",
				"--serialize_overlap=1", "--rate=,16m", "--randseed=7", "--output="+d.path("fio.log"))
			cmd.Dir = d.dir // it leaves a file there when it fails
			var printed output
			cmd.Stdout, cmd.Stderr = &printed, &printed
			must(t, cmd.Start())
			ended := make(chan error, 1)
			go func() { ended <- cmd.Wait() }()
			defer func() {
				_ = cmd.Process.Kill()
			}()
			eventually(t, "fio writes", func() bool { return d.written("src") > 1<<20 })

			d.mirror(args{"copy-mode": mode})
			d.wait("BLOCK_JOB_READY", nil)
			before := d.written("src")
			eventually(t, "fio writes while the mirror is ready", func() bool { return d.written("src") > before+4<<20 })
			select {
			case err := <-ended:
				t.Fatalf("fio ended too early: %v", err)
			default:
			}
			d.pivot()
			if d.written("dst") == 0 {
				t.Error("nothing was written to the target")
			}
			if err := <-ended; err != nil {
				t.Fatalf("fio: %v\n%s\n%s", err, printed.String(), run(t, "cat", d.path("fio.log")))
			}
			var exports []struct {
				NodeName string `json:"node-name"`
			}
			must(t, d.query("query-block-exports", nil, &exports))
			if len(exports) != 1 || exports[0].NodeName != "dst" {
				t.Errorf("the export stands on %v, not on the target", exports)
			}
			run(t, "nbdcopy", d.uri("src"), d.path("seen.img"))
			same(t, target, d.path("seen.img"))
		})
	}
}

// written is how many bytes were written through a node.
func (d *daemon) written(node string) int64 {
	d.t.Helper()
	var list []struct {
		NodeName string `json:"node-name"`
		Stats    struct {
			Bytes int64 `json:"wr_bytes"`
		}
	}
	must(d.t, d.query("query-blockstats", args{"query-nodes": true}, &list))
	for _, n := range list {
		if n.NodeName == node {
			return n.Stats.Bytes
		}
	}
	d.t.Fatalf("no node %s", node)
	return 0
}
