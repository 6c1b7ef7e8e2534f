// SPDX-License-Identifier: Apache-2.0

package web

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/blkmirror/blkmirror/qmp/api"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestOptions(t *testing.T) {
	for _, c := range []struct {
		o    Options
		want string // of the error
	}{
		{Options{}, ""},
		{Options{Address: "127.0.0.1:80"}, ""},
		{Options{Address: "[::1]:80", Control: true, Token: "f", Hosts: []string{"storage.example"}}, ""},
		{Options{Address: "localhost:0"}, ""},
		{Options{Address: "/run/web", Mode: "0660", Group: "0"}, ""},
		{Options{Address: "0.0.0.0:80", Remote: true}, ""},
		{Options{Control: true}, "need --web"},
		{Options{Address: "0.0.0.0:80"}, "only this host reaches"},
		{Options{Address: ":80"}, "only this host reaches"},
		{Options{Address: "192.0.2.1:80"}, "only this host reaches"},
		{Options{Address: "storage.example:80"}, "only this host reaches"},
		{Options{Address: "0.0.0.0:80", Remote: true, Control: true}, "in the clear"},
		{Options{Address: "/run/web", Remote: true}, "for TCP"},
		{Options{Address: "/run/web", Mode: "0777"}, "'mode' expects"},
		{Options{Address: "127.0.0.1:80", Mode: "0600"}, "for a socket with a path"},
		{Options{Address: "80"}, "expects HOST:PORT"},
		{Options{Address: "127.0.0.1:80", Token: "f"}, "needs --web-control"},
		{Options{Address: "127.0.0.1:80", Hosts: []string{"http://a"}}, "without a port"},
	} {
		err := c.o.Check()
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: error %v, want %q", c.o, err, c.want)
		}
	}
}

func TestListenOnSocket(t *testing.T) {
	o := Options{Address: filepath.Join(t.TempDir(), "web"), Mode: "0660"}
	l, err := o.listen()
	must(t, err)
	defer l.Close()
	if info, err := os.Lstat(o.Address); err != nil || info.Mode() != os.ModeSocket|0o660 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

func TestGuard(t *testing.T) {
	inBubble(t, Options{Hosts: []string{"storage.example"}}, func(r *rig) {
		for _, c := range []struct {
			path    string
			headers []string
			want    int
		}{
			{"/", nil, 200},
			{"/", []string{"Host", "127.0.0.1:8080"}, 200},
			{"/", []string{"Host", "[::1]:8080"}, 200},
			{"/", []string{"Host", "LOCALHOST"}, 200},
			{"/", []string{"Host", "storage.example"}, 200},
			{"/", []string{"Host", "evil.example"}, 421},
			{"/", []string{"Host", "127.0.0.1.evil.example:80"}, 421},
			{"/", []string{"Host", "evil.example@localhost"}, 421},
			{"/metrics", nil, 200},
			{"/metrics", []string{"Host", "evil.example"}, 421},
			{"/metrics", []string{"Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "no-cors"}, 403},
			{"/metrics", []string{"Sec-Fetch-Site", "same-site"}, 403},
			{"/metrics", []string{"Origin", "http://evil.example"}, 403},
			{"/metrics", []string{"Origin", "null"}, 403},
			{"/metrics", []string{"Origin", "http://localhost:3000"}, 403},
			{"/metrics", []string{"Origin", "http://localhost", "Sec-Fetch-Site", "same-origin"}, 200},
			{"/", []string{"Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "document"}, 200},
			{"/", []string{"Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "iframe"}, 403},
			{"/nothing", nil, 404},
			{"/page/index.html", nil, 404},
		} {
			answer := r.do("GET", c.path, "", c.headers...)
			_ = answer.Body.Close()
			if answer.StatusCode != c.want {
				t.Errorf("%s %v: status %d, want %d", c.path, c.headers, answer.StatusCode, c.want)
			}
			if answer.Header.Get("Content-Security-Policy") != policy || answer.Header.Get("X-Content-Type-Options") != "nosniff" {
				t.Errorf("%s: %v", c.path, answer.Header)
			}
		}
	})
}

// TestPageFiles holds the page to its policy: everything comes from here, and no script stands within the page.
func TestPageFiles(t *testing.T) {
	files, err := page.ReadDir("page")
	must(t, err)
	inBubble(t, Options{}, func(r *rig) {
		for _, f := range files {
			text, err := page.ReadFile("page/" + f.Name())
			must(t, err)
			for _, address := range regexp.MustCompile(`(?:https?:)?//[a-z0-9.]+\.[a-z]+[^\s"']*`).FindAllString(string(text), -1) {
				if !strings.HasPrefix(address, "http://www.w3.org/") {
					t.Errorf("%s has the address %s of another server", f.Name(), address)
				}
			}
			for _, bad := range []string{"innerHTML", "eval(", " style=\"", "onclick=\"", "javascript:"} {
				if strings.Contains(string(text), bad) && f.Name() != "format.js" {
					t.Errorf("%s has %s", f.Name(), bad)
				}
			}
			at := "/" + f.Name()
			if f.Name() == "index.html" {
				at = "/"
				if regexp.MustCompile(`<script[^>]*>[^<]`).Match(text) || strings.Contains(string(text), "<style") {
					t.Error("the page has a script or a style within it")
				}
			}
			answer := r.do("GET", at, "")
			_ = answer.Body.Close()
			tag := answer.Header.Get("ETag")
			if answer.StatusCode != 200 || answer.Header.Get("Content-Type") == "" || tag == "" {
				t.Errorf("%s: status %d, %v", at, answer.StatusCode, answer.Header)
			}
			if status, _ := r.status("GET", at, "", "If-None-Match", tag); status != http.StatusNotModified {
				t.Errorf("%s again: status %d", at, status)
			}
			if status, _ := r.status("POST", at, ""); status != http.StatusMethodNotAllowed {
				t.Errorf("POST of %s: status %d", at, status)
			}
		}
	})
}

func TestStream(t *testing.T) {
	inBubble(t, Options{}, func(r *rig) {
		r.set("x-query-mirror-map", `{"size": 4096, "copied": [1]}`)
		time.Sleep(3 * time.Second) // in the bubble: some samples
		synctest.Wait()
		r.monitor.Emit(&api.JobStatusChangeEvent{ID: "j", Status: api.JobStatusReady})
		synctest.Wait()
		seen := map[string]string{}
		r.events("/api/stream?job=j&offset=512&length=1024&cells=7", func(name, data string) bool {
			seen[name] = data
			return len(seen) == 4
		})
		var s state
		must(t, json.Unmarshal([]byte(seen["state"]), &s))
		if len(s.Nodes) != 1 || len(s.Exports) != 1 || len(s.Jobs) != 1 || s.Jobs[0].Block.Speed != 7 || s.Exports[0].Clients[0] != "192.0.2.1:99" || s.Trouble != "" {
			t.Errorf("state: %s", seen["state"])
		}
		for name, want := range map[string]string{"history": `"job j":[{"t":`, "log": `"name":"JOB_STATUS_CHANGE","data":{"id":"j","status":"ready"}`,
			"map": `{"job":"j","map":{"size":4096,"copied":[1]}}`} {
			if !strings.Contains(strings.ReplaceAll(seen[name], ": ", ":"), strings.ReplaceAll(want, ": ", ":")) {
				t.Errorf("%s: %s", name, seen[name])
			}
		}
		if asked := r.asked(); len(asked) == 0 || asked[0] != `x-query-mirror-map {"id": "j", "offset": 512, "length": 1024, "cells": 7}` {
			t.Errorf("asked %v", asked)
		}
		// What is known is not sent again; what cannot be drawn says why.
		r.set("x-query-mirror-map", `!`)
		r.events("/api/stream?after=1&history=no&job=gone", func(name, data string) bool {
			if name == "history" || name == "log" {
				t.Errorf("%s: %s", name, data)
			}
			return name == "map" && strings.Contains(data, `"error"`)
		})
	})
}

// TestBusyMonitor has a page that is told when the daemon does not answer, and goes on afterwards.
func TestBusyMonitor(t *testing.T) {
	inBubble(t, Options{}, func(r *rig) {
		time.Sleep(time.Second)
		r.set("query-jobs", `!`) // the reader fails: an error
		r.events("/api/stream", func(name, data string) bool { return name == "state" && strings.Contains(data, "does not answer") })
		r.set("query-jobs", `[]`)
		r.events("/api/stream", func(name, data string) bool { return name == "state" && strings.Contains(data, `"jobs":[]`) })
	})
}

func TestStreamsAreBounded(t *testing.T) {
	inBubble(t, Options{}, func(r *rig) {
		var open []*http.Response
		for range maxStreams {
			answer := r.do("GET", "/api/stream", "")
			if answer.StatusCode != 200 {
				t.Fatalf("status %d", answer.StatusCode)
			}
			open = append(open, answer)
		}
		if status, text := r.status("GET", "/api/stream", ""); status != http.StatusServiceUnavailable || !strings.Contains(text, "open already") {
			t.Errorf("status %d, %s", status, text)
		}
		if status, _ := r.status("GET", "/", ""); status != 200 {
			t.Errorf("the page itself has status %d", status)
		}
		for _, o := range open {
			_ = o.Body.Close()
		}
		time.Sleep(2 * time.Second) // it is noticed with the next sample
		synctest.Wait()
		if status, _ := r.status("GET", "/api/stream?after=x", ""); status != http.StatusBadRequest {
			t.Errorf("status %d", status)
		}
		if n := len(r.web.streams); n != 0 {
			t.Errorf("%d streams are left", n)
		}
	})
}

// TestSlowReader drops a browser that reads nothing, without holding up anybody.
func TestSlowReader(t *testing.T) {
	inBubble(t, Options{}, func(r *rig) {
		conn, err := r.lines.dial(t.Context(), "", "")
		must(t, err)
		defer conn.Close()
		_, err = fmt.Fprint(conn, "GET /api/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
		must(t, err)
		synctest.Wait()
		if n := len(r.web.streams); n != 1 {
			t.Fatalf("%d streams", n)
		}
		r.events("/api/stream", func(name, _ string) bool { return name == "state" })
		time.Sleep(writeTime + time.Second)
		synctest.Wait()
		if n := len(r.web.streams); n != 0 {
			t.Errorf("it is still served after %v", writeTime)
		}
	})
}

// TestIdleConnections are closed, so that they do not keep others out for good.
func TestIdleConnections(t *testing.T) {
	inBubble(t, Options{}, func(r *rig) {
		var idle []net.Conn
		for range maxConnections {
			conn, err := r.lines.dial(t.Context(), "", "")
			must(t, err)
			idle = append(idle, conn)
		}
		began := time.Now()
		if status, _ := r.status("GET", "/", ""); status != 200 {
			t.Errorf("status %d", status)
		}
		if took := time.Since(began); took > headerTime {
			t.Errorf("somebody waited for %v", took)
		}
		for _, c := range idle {
			_ = c.Close()
		}
	})
}

func TestControl(t *testing.T) {
	const content, right = "application/json", "Bearer secret of the test"
	inBubble(t, Options{Control: true}, func(r *rig) {
		r.set("job-pause", "{}")
		r.set("block-job-set-speed", "{}")
		r.set("query-version", "{}")
		time.Sleep(time.Second)
		synctest.Wait()
		for _, c := range []struct {
			content, token, body string
			want                 int
			asked                string
		}{
			{content, right, `{"job": "j", "verb": "check"}`, 200, `query-version {}`},
			{content, right, `{"job": "j", "verb": "pause"}`, 200, `job-pause {"id": "j"}`},
			{content, right, `{"job": "j", "verb": "speed", "speed": 9}`, 200, `block-job-set-speed {"device": "j", "speed": 9}`},
			{content, right, `{"job": "j", "verb": "complete"}`, 409, `job-complete {"id": "j"}`},
			{content, right, `{"job": "j", "verb": "quit"}`, 400, ""},
			{content, right, `{"job": "j", "verb": "pause", "more": 1}`, 400, ""},
			{content, right, `[`, 400, ""},
			{content, right, `{"job": "` + strings.Repeat("x", maxOrder) + `"}`, 400, ""},
			{"text/plain", right, `{"job": "j", "verb": "pause"}`, 415, ""},
			{"", right, `{"job": "j", "verb": "pause"}`, 415, ""},
			{content, "", `{"job": "j", "verb": "pause"}`, 401, ""},
			{content, "Bearer secret of the tes", `{"job": "j", "verb": "pause"}`, 401, ""},
			{content, "Basic secret of the test", `{"job": "j", "verb": "pause"}`, 401, ""},
		} {
			before := len(r.asked())
			status, text := r.status("POST", "/api/control", c.body, "Content-Type", c.content, "Authorization", c.token)
			asked := r.asked()[before:]
			if status != c.want || strings.Contains(text, "secret") || len(asked) > 1 || c.asked != strings.Join(asked, "") {
				t.Errorf("%+v: status %d, %s; asked %v", c, status, text, asked)
			}
		}
		for _, origin := range []string{"http://evil.example", "null", "http://localhost:81"} {
			if status, _ := r.status("POST", "/api/control", `{"job": "j", "verb": "pause"}`, "Content-Type", content, "Authorization", right, "Origin", origin); status != 403 {
				t.Errorf("origin %s: status %d", origin, status)
			}
		}
		if status, _ := r.status("GET", "/api/control", "", "Authorization", right); status != http.StatusMethodNotAllowed {
			t.Errorf("GET: status %d", status)
		}
	})
	inBubble(t, Options{}, func(r *rig) {
		if status, _ := r.status("POST", "/api/control", `{"job": "j", "verb": "pause"}`, "Content-Type", content, "Authorization", right); status != 403 {
			t.Errorf("without --web-control: status %d", status)
		}
	})
}

func TestToken(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "token")
	made, text, err := readToken(file)
	must(t, err)
	info, err := os.Stat(file)
	must(t, err)
	kept, err := os.ReadFile(file)
	must(t, err)
	if info.Mode() != 0o600 || text != "" || !made.is(strings.TrimSpace(string(kept))) || len(kept) < leastToken {
		t.Errorf("mode %v, %q", info.Mode(), kept)
	}
	again, _, err := readToken(file)
	must(t, err)
	if again != made {
		t.Error("the token is another one the second time")
	}
	must(t, os.Chmod(file, 0o640))
	if _, _, err := readToken(file); err == nil || !strings.Contains(err.Error(), "can be used by others") {
		t.Errorf("mode 0640: %v", err)
	}
	must(t, os.Chmod(file, 0o600))
	must(t, os.WriteFile(file, []byte("short\n"), 0o600))
	if _, _, err := readToken(file); err == nil || !strings.Contains(err.Error(), "less than") {
		t.Errorf("a short token: %v", err)
	}
	if _, _, err := readToken(dir); err == nil {
		t.Error("a folder was taken")
	}
	first, text, err := readToken("")
	must(t, err)
	if !first.is(text) || len(text) < leastToken {
		t.Errorf("token %q", text)
	}
}

func FuzzWish(f *testing.F) {
	for _, q := range []string{"", "job=j&offset=0&length=1&cells=4096", "after=18446744073709551615", "job=&cells=-1", "history=no&job=%ff&length=9223372036854775807"} {
		f.Add(q)
	}
	f.Fuzz(func(t *testing.T, text string) {
		q, _ := url.ParseQuery(text)
		w, err := parseWish(q)
		if err != nil || w.view == nil {
			return
		}
		v := w.view
		if v.Offset < 0 || v.Cells < 1 || v.Cells > maxCells || v.Length != nil && *v.Length < 1 || len(v.Job) > maxID || v.Job == "" {
			t.Errorf("%q: %+v", text, v)
		}
	})
}

func FuzzHost(f *testing.F) {
	for _, h := range []string{"localhost", "[::1]:1", "127.0.0.1:x", "[[::1]]", "localhost:1:2", ""} {
		f.Add(h)
	}
	o := Options{Address: "127.0.0.1:80"}
	known := newHosts(&o, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	f.Fuzz(func(t *testing.T, host string) {
		if !known.take(host) {
			return
		}
		// Nothing is taken that names another host by any reading.
		if lower := strings.ToLower(host); !strings.Contains(lower, "localhost") && !strings.Contains(lower, "127.0.0.1") && !strings.Contains(lower, "::1") {
			t.Errorf("%q was taken", host)
		}
	})
}
