// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"

	"github.com/blkmirror/blkmirror/cmd/blkmirror/internal/fakedaemon"
	"github.com/blkmirror/blkmirror/qmp"
)

// echo returns the command with its arguments.
func echo(_ *fakedaemon.Conn, command string, arguments *qmp.Object) (any, error) {
	if command == "refuse" {
		return nil, qmp.ClassErrorf(qmp.DeviceNotFound, "no such thing")
	}
	return command + " " + string(qmp.Encode(arguments)), nil
}

func TestQMP(t *testing.T) {
	socket := daemon(t, echo)
	for _, test := range []struct {
		args string // separated by |
		want string
	}{
		{`query-jobs`, `query-jobs {}`},
		{`{"execute": "a", "arguments": {"b": 1}, "id": "mine"}`, `a {"b": 1}`},
		{`  {'execute': 'a'}`, `a {}`},
		{`a|id=m|n=5|neg=-5|big=18446744073709551615|f=1.5`, `a {"id": "m", "n": 5, "neg": -5, "big": 18446744073709551615, "f": 1.5}`},
		{`a|on=true|off=false|none=null|empty=`, `a {"on": true, "off": false, "none": null, "empty": ""}`},
		{`a|size=10M|when=2026-01-01|host=10.0.0.1|port="10809"|two=1 2`,
			`a {"size": "10M", "when": "2026-01-01", "host": "10.0.0.1", "port": "10809", "two": "1 2"}`},
		{`a|addr.type=unix|addr.data.path=/x=y|list=[1, {"a": 'b'}]`, `a {"addr": {"type": "unix", "data": {"path": "/x=y"}}, "list": [1, {"a": "b"}]}`},
	} {
		args := append([]string{"qmp"}, strings.Split(test.args, "|")...)
		try(t.Context(), socket, args...).expect(t, exitOK, string(qmp.Encode(test.want))+"\n", "")
	}
	try(t.Context(), socket, "qmp", "refuse").expect(t, exitFailed, "", "blkmirror: no such thing\n")
	try(t.Context(), socket, "qmp", "refuse", "--json").expect(t, exitFailed, "",
		`{"error": {"desc": "no such thing", "exit-status": 1, "class": "DeviceNotFound"}}`+"\n")
}

// FuzzParseCommand checks that no words on the command line bring it down.
func FuzzParseCommand(f *testing.F) {
	f.Add(`{"execute": "a", "arguments": {}}`, "")
	f.Add("a", "b.c={}")
	f.Add("a", "b..=-1e999")
	f.Add("{'a", "\xff")
	f.Fuzz(func(t *testing.T, command, argument string) {
		args := []string{command}
		if argument != "" {
			args = append(args, argument)
		}
		name, arguments, err := parseCommand(args)
		if err == nil && (arguments == nil || name == "" && command != "") {
			t.Errorf("%q: %q, %v", args, name, arguments)
		}
		if err != nil && exitStatus(ranError{err}) != exitUsage {
			t.Errorf("%q: %v", args, err)
		}
	})
}
