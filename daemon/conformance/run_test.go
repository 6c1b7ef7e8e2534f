// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"net"
	"os"
	"strings"
	"testing"
	"time"
)

// fakeOptions run scenarios against the fake daemon.
func fakeOptions(t *testing.T) Options {
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return Options{
		Daemon: []string{"/usr/bin/env", envFake + "=1", program}, Folder: shortFolder(),
		Bound: 20 * time.Second, Patience: 10 * time.Second,
	}
}

// transcript runs a scenario and gives the diff as one text.
func transcript(t *testing.T, text string, options Options) string {
	t.Helper()
	s, err := Parse("fake", text)
	if err != nil {
		t.Fatal(err)
	}
	result, err := Run(t.Context(), s, options)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(Compare(s, result.Outcomes), "\n")
}

func TestRunPasses(t *testing.T) {
	got := transcript(t, `# most steps that need no disk
daemon raw
greeting | fields=QMP.version
< message {"QMP.version": {"package": "*", "qemu": {"major": "*", "micro": "*", "minor": "*"}}}
negotiate
qmp echo a=1 dir=$dir/x b.c=d
< return {"a": 1, "dir": "$dir/x", "b": {"c": "d"}}
qmp refuse
< error GenericError  # other words
qmp emit job=a
< return {}
flow emit job=b
< HAPPENED {"job": "a"}
< HAPPENED {"job": "b"}
< return {}
qmp emit job=c
< return {}
qmp emit job=d
< return {}
wait HAPPENED job=d
< HAPPENED {"job": "c"}
< HAPPENED {"job": "d"}
ignore HAPPENED job=e
qmp emit job=e
< return {}
qmp emit job=f
< return {}
events | full
< message {"data": {"job": "f"}, "event": "HAPPENED", "timestamp": {"microseconds": "*", "seconds": "*"}}
qmp emit job=g
< return {}
forget
image disk 1M full 4K,4K=0x11
content disk 0,12K
< content disk 0,4K=0x00 4K,4K=0x11 8K,4K=0x00
image twin 1M 4K,4K=0x11
same disk twin
< same disk twin yes
alloc disk
< alloc disk 1M of 1M
alloc twin
< alloc twin 0 of 1M
exists nothing
< exists nothing no
exists disk
< exists disk 1M
sleep 0.001
quit
< return {}
< daemon exit status 0
`, fakeOptions(t))
	if got != "" {
		t.Error(got)
	}
}

// What a runner must notice.
func TestRunFails(t *testing.T) {
	for name, test := range map[string]struct {
		scenario string
		patience time.Duration
		want     []string
	}{
		"wrong value":         {"daemon\nqmp echo a=1\n< return {\"a\": 2}", 0, []string{`-< return {"a": 2}`, `+< return {"a": 1}`}},
		"line too many":       {"daemon\nqmp echo a=1", 0, []string{`+< return {"a": 1}`}},
		"line too few":        {"daemon\nqmp echo\n< return {}\n< X {}", 0, []string{"-< X {}"}},
		"left-over event":     {"daemon\nqmp emit a=1\n< return {}", 0, []string{`+< left over on main: HAPPENED {"a": 1}`}},
		"bad exit":            {"daemon\nqmp quit-badly\n< return {}", 0, []string{"+< daemon exit status 3"}},
		"death":               {"daemon\nqmp die\n< return {}\nquit", 0, []string{"+< stopped: monitor main, waiting for a reply: monitor closed; daemon exit status 4", "@@ line 4: this step and those behind it were not run @@"}},
		"death at birth":      {"daemon --fail", 0, []string{"+< stopped: daemon ended, it said: failing as told; daemon exit status 1"}},
		"silence":             {"daemon\nqmp hang", time.Second, []string{"+< stopped: monitor main, waiting for a reply: nothing came in time"}},
		"no event":            {"daemon\nwait NEVER", time.Second, []string{"+< timeout waiting for NEVER"}},
		"no events any more":  {"daemon\nqmp quit\n< return {}\nwait NEVER", 0, []string{"+< no more events"}},
		"garbage":             {"daemon\nqmp garbage", 0, []string{"+< stopped: monitor main, waiting for a reply: unreadable message"}},
		"no daemon":           {"qmp echo", 0, []string{`+< stopped: no monitor "main"`}},
		"unknown guest":       {"daemon\nguest g: flush", 0, []string{`+< stopped: no guest "g"`}},
		"condition not met":   {"daemon\nuntil query-jobs a = 1", time.Second, []string{"+< not reached: a is null"}},
		"does not end itself": {"daemon-exits", time.Second, []string{"+< daemon exit status still running silently"}},
		"missing file":        {"content nothing", 0, []string{"+< stopped: open "}},
		"different":           {"image a 1M\nimage b 1M 0,1=1\nsame a b\n< same a b yes", 0, []string{"+< same a b no"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			options := fakeOptions(t)
			if test.patience > 0 {
				options.Patience = test.patience
			}
			got := transcript(t, test.scenario, options)
			for _, want := range test.want {
				if !strings.Contains(got, "\n"+want) {
					t.Errorf("diff is\n%s\nwithout\n%s", got, want)
				}
			}
		})
	}
}

func TestRunIsBounded(t *testing.T) {
	options := fakeOptions(t)
	options.Bound = 300 * time.Millisecond
	if got := transcript(t, "daemon\nqmp hang", options); !strings.Contains(got, "+< stopped: the scenario took too long (300ms)") {
		t.Error(got)
	}
}

func TestRunKeeps(t *testing.T) {
	options := fakeOptions(t)
	options.Keep = true
	s, err := Parse("fake", "image a 1M")
	if err != nil {
		t.Fatal(err)
	}
	result, err := Run(t.Context(), s, options)
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(result.Folder)
	if info, err := os.Stat(result.Folder + "/a"); err != nil || info.Size() != 1<<20 {
		t.Error(err)
	}
	options.Folder = "/tmp/" + strings.Repeat("x", maxFolder)
	if _, err := Run(t.Context(), s, options); err == nil {
		t.Error("a long folder was accepted")
	}
}

// Golden text of a diff with two places, far from each other and near.
func TestCompare(t *testing.T) {
	s, err := Parse("golden", `daemon
qmp one
< return 1
qmp two
< return 2
qmp three
< return 3
< X {"a": 1}
< Y {"a": 1}
qmp four
< return 4
qmp five
< return 5
qmp six
< return 6
qmp seven
< return 7
`)
	if err != nil {
		t.Fatal(err)
	}
	outcomes := make([][]Outcome, 0, len(s.Steps))
	for _, step := range s.Steps {
		outcomes = append(outcomes, step.Expected)
	}
	if got := Compare(s, outcomes); got != nil {
		t.Fatalf("nothing differs, but: %q", got)
	}
	outcomes[3] = []Outcome{parseOutcome("return 3"), parseOutcome(`Y {"a": 1, "b": 2}`), parseOutcome("Z {}")}
	outcomes[6] = []Outcome{parseOutcome("return 0")}
	outcomes = outcomes[:7]
	want := `--- golden (recorded)
+++ golden (this run)
@@ line 2 @@
 qmp one
 < return 1
 qmp two
 < return 2
 qmp three
 < return 3
-< X {"a": 1}
 < Y {"a": 1}
+< Z {}
 qmp four
 < return 4
 qmp five
 < return 5
 qmp six
-< return 6
+< return 0
@@ line 16: this step and those behind it were not run @@`
	if got := strings.Join(Compare(s, outcomes), "\n"); got != want {
		t.Errorf("diff is\n%s", got)
	}
}

// Jobs that pause for a drain and go on are left out, others are not.
func TestIgnoreDrains(t *testing.T) {
	ours, theirs := net.Pipe()
	m := newMonitor("main", ours, 10*time.Second)
	defer m.close()
	defer theirs.Close()
	m.drains = map[string]string{}
	var want []string
	for _, event := range []struct {
		job, status string
		seen        bool
	}{
		{"m", "created", true}, {"m", "running", true}, {"m", "paused", false}, {"n", "running", true},
		{"m", "running", false}, {"m", "ready", true}, {"m", "standby", false}, {"m", "ready", false}, {"n", "ready", true},
	} {
		line := `{"event": "JOB_STATUS_CHANGE", "data": {"id": "` + event.job + `", "status": "` + event.status + `"}}` + "\n"
		if _, err := theirs.Write([]byte(line)); err != nil {
			t.Fatal(err)
		}
		if event.seen {
			want = append(want, event.job+" "+event.status)
		}
	}
	for _, wanted := range want {
		event, err := m.event(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got := dig(event, "data.id").(string) + " " + dig(event, "data.status").(string); got != wanted {
			t.Errorf("event is %s, want %s", got, wanted)
		}
	}
}
