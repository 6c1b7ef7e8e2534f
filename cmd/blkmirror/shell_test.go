// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestShell is a person who types commands.
func TestShell(t *testing.T) {
	if testing.Short() {
		t.Skip("builds programs")
	}
	h := newHouse(t)
	home := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	start := func() *console {
		cmd := h.command(0, "qmp")
		cmd.Env = append(cmd.Env, "XDG_STATE_HOME="+home)
		c := onConsole(t, cmd)
		context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
		c.see("qmp> ")
		return c
	}
	c := start()
	c.enter("query-bl\t\t") // what they share, and then all of them
	c.see("query-block-exports")
	c.see("query-blockstats")
	c.enter("-jo\t\r")
	c.see("query-block-jobs ")
	c.see("[]")
	c.enter("blockdev-add dri\tnul\t")
	c.see("driver=null-")
	c.enter("co no\tx si\t1048576\r")
	c.see("node-name=x size=1048576")
	c.see("{}")
	c.enter("blockdev-del node-name=nobody\r")
	c.see("error: Failed to find node with node-name='nobody'")
	c.enter("half a line\x03help job-pause\r") // Ctrl-C gives the line up
	c.see("job-pause\r\n  id ")
	c.enter("quit\r")
	c.see("quit ends the daemon")
	c.enter("{\"execute\":\r")
	c.see("... ")
	c.enter("\"query-version\"}\r")
	c.see(`"major": 11`)
	c.enter("blockdev-create job-id=j options.driver=file options.size=512 options.filename=" + filepath.Join(home, "made") + "\r")
	c.see("JOB_STATUS_CHANGE id=j status=concluded")
	c.enter(" job-dismiss id=j\r") // not kept, for the blank
	c.see("status=null")
	c.enter("exit\r")
	if status := c.end(); status != exitOK {
		t.Errorf("status %d", status)
	}

	// What was typed before comes back.
	text, err := os.ReadFile(filepath.Join(home, "blkmirror", "history"))
	if err != nil || !strings.Contains(string(text), "blockdev-del node-name=nobody\n") || strings.Contains(string(text), "job-dismiss") {
		t.Errorf("%v: %q", err, text)
	}
	c = start()
	c.enter("\x1b[A\x1b[A\x1b[A")
	c.see("\"query-version\"}")
	c.enter("\x03")
	c.enter("\x04") // Ctrl-D
	if status := c.end(); status != exitOK {
		t.Errorf("status %d after Ctrl-D", status)
	}

	// A signal ends it, and leaves the terminal as it was.
	c = start()
	if err := c.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if status := c.end(); status != exitInterrupted {
		t.Errorf("status %d after a signal", status)
	}
}

// TestScript is a file of commands.
func TestScript(t *testing.T) {
	socket := daemon(t, echo)
	path := filepath.Join(t.TempDir(), "script")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("# a comment\n\na x=1 y='two words' # and another\n{\"execute\": \"b\",\n \"arguments\": {\"z\": 3}}\n")
	want := `"a {\"x\": 1, \"y\": \"two words\"}"` + "\n" + `"b {\"z\": 3}"` + "\n"
	try(t.Context(), socket, "qmp", "--file", path).expect(t, exitOK, want, "")

	write("a\nrefuse\nb\n")
	try(t.Context(), socket, "qmp", "-f", path).expect(t, exitFailed, "\"a {}\"\n", path+":2: no such thing")
	try(t.Context(), socket, "qmp", "-f", path, "--keep-going").expect(t, exitFailed, "\"a {}\"\n\"b {}\"\n", path+":2: no such thing\nblkmirror: not all")
	for text, complaint := range map[string]string{
		"a\n\n{\"execute\": \n": ":3: the message is not complete", "a 'b\n": ":1: a quote is not closed", "a b\n": ":1: 'b' is not KEY=VALUE",
		"{} {}\n": ":1: the message"} {
		write(text)
		r := try(t.Context(), socket, "qmp", "-f", path)
		r.expect(t, exitUsage, r.stdout, path+complaint)
	}
	try(t.Context(), socket, "qmp", "-f", path+"x").expect(t, exitFailed, "", "no such file")
	try(t.Context(), socket, "qmp", "-f", path, "a").expect(t, exitUsage, "", "either --file or a command")
}
