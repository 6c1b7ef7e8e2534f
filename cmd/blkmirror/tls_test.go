// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestTLS(t *testing.T) {
	dir := t.TempDir()
	try := func(args ...string) (status int, out string) {
		t.Helper()
		var text bytes.Buffer
		status = run(t.Context(), append([]string{"tls"}, args...), nil, &text, &text, func(string) string { return "" })
		return status, text.String()
	}
	for _, step := range []struct {
		args   string
		status int
		words  string
	}{
		{"init DIR/a --host server.example,192.0.2.1 --organization Example", 0, "a client that connects to 'server.example' gets in"},
		{"init DIR/a", 1, "ca-cert.pem is there already"},
		{"check DIR/a", 0, "subject  O=Example,CN=client"},
		{"check DIR/a --host 192.0.2.1", 0, "gets in"},
		{"check DIR/a --host other.example", 1, "does not get in"},
		{"check DIR/none", 1, "none/ca-cert.pem: no such file"},
		{"issue server DIR/s --ca DIR/a --host s.example --name boss", 0, "CN=boss"},
		{"issue client DIR/c --ca DIR/a --name guest", 0, "CN=guest"},
		{"issue client DIR/c --ca DIR/a --name guest", 1, "there already"},
		{"issue client DIR/c --ca DIR/a --name again --force", 0, "CN=again"},
		{"issue client DIR/s --ca DIR/a", 0, "a client that connects to 's.example' gets in"},
		{"issue client DIR/x --ca DIR/c", 1, "ca-key.pem"},
		{"issue client DIR/x --ca DIR/a --host x", 2, "--host is for servers"},
		{"issue both DIR/x --ca DIR/a", 2, "neither server nor client"},
		{"issue server DIR/x --ca DIR/a --host a/b", 2, "no host name"},
		{"issue server DIR/x --ca DIR/a --days 0", 2, "--days"},
		{"issue server DIR/x", 2, "ca"},
		{"init DIR/y --ca-days 0", 2, "--ca-days"},
		{"", 2, "no command"},
		{"--json check DIR/c", 0, `"subject": "CN=again"`},
	} {
		status, out := try(strings.Fields(strings.ReplaceAll(step.args, "DIR", dir))...)
		if status != step.status || !strings.Contains(out, step.words) {
			t.Errorf("tls %s: status %d, want %d with %q:\n%s", step.args, status, step.status, step.words, out)
		}
	}
	if _, err := os.Lstat(filepath.Join(dir, "x")); err == nil {
		t.Error("a refused command made a folder")
	}
	for _, file := range []string{"a/ca-key.pem", "a/server-key.pem", "c/client-key.pem", "c/ca-cert.pem"} {
		if info, err := os.Lstat(filepath.Join(dir, file)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", file, info, err)
		}
	}
	if _, err := os.Lstat(filepath.Join(dir, "c", "ca-key.pem")); err == nil {
		t.Error("the authority's key went to a client")
	}
}
