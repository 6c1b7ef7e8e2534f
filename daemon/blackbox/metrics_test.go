// SPDX-License-Identifier: Apache-2.0

package blackbox

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
)

// scrape fetches the metrics of a daemon at a local socket.
func scrape(t *testing.T, socket string) string {
	t.Helper()
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	r, err := c.Get("http://localhost/metrics")
	must(t, err)
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	must(t, err)
	if r.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s", r.Status, text)
	}
	return string(text)
}

// observed is a daemon whose metrics have all kinds of series: a mirror to an NBD server, a guest with requests that succeed and that
// fail, a bitmap, a comparison and a state directory.
func observed(t *testing.T) (text string) {
	t.Helper()
	dir := folder(t)
	for _, name := range []string{"a.img", "b.img", "c.img"} {
		must(t, os.WriteFile(dir+"/"+name, []byte(strings.Repeat("data", 1<<18)), 0o600))
	}
	far := start(t, "--blockdev", "file,node-name=t,filename="+dir+"/b.img", "--export", "nbd,id=t,node-name=t,writable=on")
	d := start(t, "--state-dir", dir+"/state", "--metrics", dir+"/metrics", "--blockdev", "file,node-name=a,filename="+dir+"/a.img",
		"--blockdev", "file,node-name=c,filename="+dir+"/c.img,read-only=on", "--export", "nbd,id=e,node-name=a,writable=on",
		"--blockdev", "nbd,node-name=b,export=t,reconnect-delay=10,server.type=unix,server.path="+far.path("nbd"))
	d.do("block-dirty-bitmap-add", args{"node": "a", "name": "since"})
	d.do("blockdev-mirror", args{"job-id": "m", "device": "a", "target": "b", "sync": "full", "x-verify": true})
	d.wait("BLOCK_JOB_READY", nil)
	g := d.guest("a")
	must(t, g.WriteAt(t.Context(), make([]byte, 4096), 0, 0))
	must(t, g.Flush(t.Context()))
	must(t, g.ReadAt(t.Context(), make([]byte, 4096), 0))
	eventually(t, "the mirror has caught up", func() bool {
		text = scrape(t, dir+"/metrics")
		return strings.Contains(text, "blkmirror_mirror_time_left_seconds{job_id=\"m\"} 0")
	})
	return text
}

// names are the metrics in a scrape.
func names(text string) (list []string) {
	for _, m := range regexp.MustCompile(`(?m)^([a-z_]+)(?:\{| )`).FindAllStringSubmatch(text, -1) {
		list = append(list, m[1])
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// mentioned are the metrics that a document names.
func mentioned(t *testing.T, path string) []string {
	t.Helper()
	text, err := os.ReadFile(path)
	must(t, err)
	list := regexp.MustCompile(`blkmirror_[a-z_]+`).FindAllString(string(text), -1)
	slices.Sort(list)
	return slices.Compact(list)
}

const monitoring = "../../docs/monitoring/"

// TestMetrics has Prometheus' own rules about names hold for a scrape, and everything that dashboard and alerts use exist in it.
func TestMetrics(t *testing.T) {
	text := observed(t)
	problems, err := promlint.New(strings.NewReader(text)).Lint()
	must(t, err)
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	there := names(text)
	for _, file := range []string{"grafana.json", "alerts.yaml"} {
		used := mentioned(t, monitoring+file)
		if len(used) < 5 {
			t.Errorf("%s uses %v", file, used)
		}
		for _, name := range used {
			if !slices.Contains(there, name) {
				t.Errorf("%s uses %s, which a scrape does not have", file, name)
			}
		}
	}
	listed := mentioned(t, monitoring+"README.md")
	for _, name := range there {
		base := strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(name, "_bucket"), "_count"), "_sum")
		if strings.HasPrefix(name, "blkmirror_") && !slices.Contains(listed, base) {
			t.Errorf("README.md does not list %s", base)
		}
	}
	for _, want := range []string{
		`blkmirror_mirror_bytes_total\{class="copied",job_id="m"\} [1-9]`, `blkmirror_export_operations_total\{export="e",operation="write"\} 1`,
		`blkmirror_connection_bytes_total\{connection="\d+",export="e",operation="read"\} 4096`,
		`blkmirror_export_latency_seconds_count\{export="e",operation="write"\} 1`,
		`blkmirror_node_latency_seconds_bucket\{node="a",operation="write",le="[0-9.e-]+"\}`, `blkmirror_node_connected\{node="b"\} 1`,
		`blkmirror_bitmap_dirty_bytes\{bitmap="since",node="a"\} 65536`, `blkmirror_state_directory 1`,
		`blkmirror_monitor_commands_total\{command="blockdev-mirror",result="ok"\} 1`, `blkmirror_verify_equal_bytes\{job_id="m"\}`,
	} {
		if !regexp.MustCompile(want).MatchString(text) {
			t.Errorf("no %s", want)
		}
	}
	if t.Failed() {
		t.Log(text)
	}
}

// TestPromtool has Prometheus' program check a scrape and the alerts, where it is installed.
func TestPromtool(t *testing.T) {
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		promtool, err = exec.LookPath("../../.cache/prometheus/usr/bin/promtool") // by .ci/peers
	}
	if err != nil {
		t.Skip("promtool (Debian package prometheus) is not installed")
	}
	check := exec.Command(promtool, "check", "metrics")
	check.Stdin = strings.NewReader(observed(t))
	if out, err := check.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("metrics: %v\n%s", err, out)
	}
	for _, words := range [][]string{{"check", "rules", "alerts.yaml"}, {"test", "rules", "alerts.test.yaml"}} {
		cmd := exec.Command(promtool, words...)
		cmd.Dir = filepath.Clean(monitoring)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v: %v\n%s", words, err, out)
		}
	}
}

// TestMetricsStayLocal has addresses that other hosts reach refused unless they are asked for.
func TestMetricsStayLocal(t *testing.T) {
	for options, want := range map[string]string{
		"--metrics 0.0.0.0:0":                       "only this host reaches",
		"--metrics nonsense":                        "expects HOST:PORT",
		"--metrics-remote":                          "needs --metrics",
		"--metrics /tmp/x --metrics-remote":         "is for TCP",
		"--log-format xml":                          "expects auto, text, json or journald",
		"--log-level loud":                          "expects error, warning, info, debug",
		"--metrics [::]:0 --log-level debug":        "only this host reaches",
		"--metrics 127.0.0.1:0 --log-format badly ": "expects auto",
	} {
		out, err := exec.Command(program, strings.Fields(options)...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), want) {
			t.Errorf("%s: %v, %s", options, err, out)
		}
	}
}
