// SPDX-License-Identifier: Apache-2.0

package logging

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
)

func TestFormats(t *testing.T) {
	for _, c := range []struct {
		format Format
		want   []string
	}{
		{Text, []string{"time=", "level=warning", `msg="it broke"`, "node=disk", "err=no"}},
		{Auto, []string{"time=", "level=warning"}},
		{Journald, []string{"<4>level=warning", `msg="it broke"`, "node=disk"}},
	} {
		var out bytes.Buffer
		New(&out, c.format, logrus.InfoLevel).WithFields(logrus.Fields{"node": "disk", "err": errors.New("no")}).Warn("it broke")
		for _, w := range c.want {
			if !strings.Contains(out.String(), w) {
				t.Errorf("%s: %q lacks %q", c.format, out.String(), w)
			}
		}
		if c.format == Journald && strings.Contains(out.String(), "time=") {
			t.Errorf("the journal gets a time: %q", out.String())
		}
	}
	var out bytes.Buffer
	l := New(&out, JSON, logrus.InfoLevel)
	l.WithFields(logrus.Fields{"job": "m<0>", "off": int64(1) << 40, "err": errors.New("no")}).Error("it broke")
	l.Debug("not asked for")
	var line map[string]any
	if err := json.Unmarshal(out.Bytes(), &line); err != nil {
		t.Fatalf("%v: %q", err, out.String())
	}
	if _, err := time.Parse(time.RFC3339Nano, line["time"].(string)); err != nil {
		t.Error(err)
	}
	delete(line, "time")
	if got := fmt.Sprint(line); got != "map[err:no job:m<0> level:error msg:it broke off:1.099511627776e+12]" {
		t.Error(got)
	}
}

func TestParse(t *testing.T) {
	for _, name := range levels {
		level, err := ParseLevel(name)
		if err != nil || level.String() != name {
			t.Errorf("%s is %v, %v", name, level, err)
		}
	}
	if _, err := ParseLevel("loud"); err == nil || !strings.Contains(err.Error(), "debug") {
		t.Error(err)
	}
	if _, err := ParseFormat("xml"); err == nil || !strings.Contains(err.Error(), "journald") {
		t.Error(err)
	}
}

func TestJournalIsFound(t *testing.T) {
	f, err := os.Create(t.TempDir() + "/stream")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var st syscall.Stat_t
	if err := syscall.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	for stream, want := range map[string]bool{
		fmt.Sprintf("%d:%d", st.Dev, st.Ino): true, fmt.Sprintf("%d:%d", st.Dev, st.Ino+1): false, "": false, "x": false, "1:x": false,
	} {
		if got := toJournal(f, stream); got != want {
			t.Errorf("%q: %v", stream, got)
		}
	}
	if toJournal(&bytes.Buffer{}, fmt.Sprintf("%d:%d", st.Dev, st.Ino)) {
		t.Error("a buffer is the journal")
	}
}

// A message that comes all the time is written now and then, with how often it was left out; another one is not held up.
func TestFlood(t *testing.T) {
	var out bytes.Buffer
	now := time.Unix(0, 0)
	l := logrus.New()
	l.SetOutput(&out)
	l.SetFormatter(newLimiter(&logrus.TextFormatter{DisableColors: true, DisableTimestamp: true}, func() time.Time { return now }))
	const each = 10 * time.Millisecond
	for i := range 6000 { // one minute
		now = now.Add(each)
		l.WithField("i", i).Warn("again")
		if i%1000 == 0 {
			l.Warn("other")
		}
	}
	lines := strings.Count(out.String(), "msg=again")
	if lines < burst+10 || lines > burst+13 {
		t.Errorf("%d lines", lines)
	}
	if n := strings.Count(out.String(), "msg=other"); n != 6 {
		t.Errorf("%d other lines", n)
	}
	if !strings.Contains(out.String(), "suppressed=49") {
		t.Errorf("nothing says how many were left out:\n%s", out.String())
	}
	for i := range 3 * maxKnown { // texts that are not constant cost no more memory than this
		l.Warn(fmt.Sprint("text ", i))
	}
	if n := len(l.Formatter.(*limiter).mu.known); n > maxKnown {
		t.Errorf("%d messages are known", n)
	}
}
