// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
)

func TestSplitWords(t *testing.T) {
	for text, want := range map[string][]string{
		"":                      nil,
		"  a  b\tc ":            {"a", "b", "c"},
		`a 'b c' "d \" e" f\ g`: {"a", "b c", `d " e`, "f g"},
		`--x='a"b' ''`:          {`--x=a"b`, ""},
		`'a\b'`:                 {`a\b`},
	} {
		if got, err := splitWords(text); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %q, %v, want %q", text, got, err, want)
		}
	}
	for _, text := range []string{"'a", `"a`, `a\`} {
		if got, err := splitWords(text); err == nil {
			t.Errorf("%s: %q", text, got)
		}
	}
}

func TestParseContender(t *testing.T) {
	for text, want := range map[string]contender{
		"a=b": {name: "a", command: []string{"b"}, aio: "threads"},
		"qsd=chroot /x qemu-storage-daemon --a=[b]=c": {name: "qsd", command: []string{"chroot", "/x", "qemu-storage-daemon", "--a=[b]=c"}, aio: "threads"},
		"n[aio=io_uring,iothread=on,cache.direct=on,granularity=1M,buf-size=64M,target-is-zero=on,root=/r,state-dir=host,scenarios=s1+S4]=d": {name: "n",
			command: []string{"d"}, aio: "io_uring", iothread: true, direct: true, granularity: 1 << 20, bufSize: 64 << 20, targetIsZero: true,
			root: "/r", durability: "host", scenarios: []string{"S1", "S4"}},
	} {
		got, err := parseContender(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if strings.Contains(got.options, "/") {
			t.Errorf("%s: reports would show a path: %s", text, got.options)
		}
		got.options = ""
		if !reflect.DeepEqual(*got, want) {
			t.Errorf("%s: %+v, want %+v", text, *got, want)
		}
	}
	for _, bad := range []string{"", "a", "=b", "a=", "a b=c", "a[aio=x]=b", "a[aio]=b", "a[iothread=yes]=b", "a[granularity=-1]=b", "a[what=x]=b", "a[state-dir=x]=b", "a[aio=threads=b", "a='b"} {
		if c, err := parseContender(bad); err == nil {
			t.Errorf("%q: %+v", bad, c)
		}
	}
}

func TestInside(t *testing.T) {
	c := &contender{root: "/opt/new", command: []string{"prog", "{file}"}}
	for path, want := range map[string]string{"/opt/new/tmp/a": "/tmp/a", "/tmp/a": "/tmp/a", "/opt/newer/a": "/opt/newer/a"} {
		if got := c.inside(path); got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
	if got := c.argv(strings.NewReplacer("{file}", "/x"), "y"); !slices.Equal(got, []string{"chroot", "/opt/new", "prog", "/x", "y"}) {
		t.Errorf("%q", got)
	}
	root := t.TempDir()
	c = &contender{name: "c", root: root}
	if err := c.sees(filepath.Dir(root)); err == nil {
		t.Error("it sees what is outside of its root")
	}
	below := filepath.Join(root, "tmp")
	if err := os.Mkdir(below, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := c.sees(below); err != nil {
		t.Error(err)
	}
}

func TestParseFlags(t *testing.T) {
	s, err := parseFlags([]string{"--daemon", "a=x", "--daemon", "b=y", "--only", "s1,S4", "--scale", "0.5", "--case", "^depth"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if len(s.daemons) != 2 || s.daemons[0].name != "a" || !slices.Equal(s.only, []string{"S1", "S4"}) || s.scale != 0.5 ||
		s.loadTime != 1500*time.Millisecond || !s.cases.MatchString("depth 1") {
		t.Errorf("%+v", s)
	}
	for _, bad := range [][]string{
		{"--only", "S10"}, {"--scale", "0"}, {"--scale", "NaN"}, {"--rounds", "0"}, {"--load", "x"}, {"--case", "("}, {"--seconds", "-1"},
		{"--timeout", "0s"}, {"--plots", "."}, {"--growth", "--plots", "/nonexistent"}, {"word"}, {"--nbd-server", "a=b {file}"},
		{"--daemon", "a=x", "--daemon", "a=y"}, {"--daemon", "a=x", "--nbd-server", "a=x {file} {socket}"},
	} {
		if s, err := parseFlags(bad, io.Discard); err == nil {
			t.Errorf("%q: %+v", bad, s)
		}
	}
}

// TestHelp sees to it that the help names every scenario and every option of a contender.
func TestHelp(t *testing.T) {
	var out strings.Builder
	if _, err := parseFlags([]string{"--help"}, &out); !errors.Is(err, pflag.ErrHelp) {
		t.Fatal(err)
	}
	want := []string{"aio=", "cache.direct=", "iothread=", "granularity=", "buf-size=", "target-is-zero=", "state-dir=", "scenarios=", "root=", "--growth"}
	for _, sc := range scenarios {
		want = append(want, sc.id+"  "+sc.title)
	}
	for _, w := range want {
		if !strings.Contains(out.String(), w) {
			t.Errorf("no %q", w)
		}
	}
}
