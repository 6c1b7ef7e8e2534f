// SPDX-License-Identifier: Apache-2.0

package sockets

import (
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func text(s string) *string { return &s }

func TestParseAccess(t *testing.T) {
	for _, c := range []struct {
		mode, group *string
		uids        []uint32
		want        string // of the error
	}{
		{nil, nil, nil, ""},
		{text("0660"), text("0"), []uint32{0}, ""},
		{text("666"), nil, nil, ""},
		{text("0770"), nil, nil, "'mode' expects"},
		{text("0060"), nil, nil, "'mode' expects"},
		{text("rw"), nil, nil, "'mode' expects"},
		{nil, text("no such group"), nil, "'group' expects"},
		{nil, text("-1"), nil, "'group' expects"},
		{nil, nil, []uint32{}, "'allow-uids' is empty"},
	} {
		_, err := ParseAccess(c.mode, c.group, c.uids)
		if (err == nil) != (c.want == "") || err != nil && !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%v: error %v, want %q", c, err, c.want)
		}
	}
}

func TestApply(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "socket")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := (Access{Mode: 0o660, GID: os.Getegid()}).Apply(path); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Lstat(path); err != nil || info.Mode() != os.ModeSocket|0o660 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	// What is not a socket is left alone, wherever a link leads.
	file, link := filepath.Join(dir, "file"), filepath.Join(dir, "link")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	for _, other := range []string{file, link} {
		if err := (Access{Mode: 0o666, GID: -1}).Apply(other); err == nil || !strings.Contains(err.Error(), "in its place") {
			t.Errorf("%s: %v", other, err)
		}
	}
	if info, err := os.Stat(file); err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

func TestGuard(t *testing.T) {
	me := uint32(os.Geteuid())
	for _, c := range []struct {
		uids []uint32
		in   bool
	}{{nil, true}, {[]uint32{me + 1, me}, true}, {[]uint32{me + 1}, false}} {
		path := filepath.Join(t.TempDir(), "socket")
		inner, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		refused := make(chan error, 1)
		l := Access{GID: -1, UIDs: c.uids}.Guard(inner, func(err error) { refused <- err })
		accepted := make(chan bool, 1)
		go func() {
			conn, err := l.Accept()
			if err == nil {
				_ = conn.Close()
			}
			accepted <- err == nil
		}()
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		if n, err := conn.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Errorf("%v: %d bytes, %v", c, n, err)
		}
		_ = conn.Close()
		if !c.in {
			select {
			case err := <-refused:
				if !strings.Contains(err.Error(), "takes clients of users") {
					t.Error(err)
				}
			case <-accepted:
				t.Fatalf("%v: it was let in", c)
			}
		}
		_ = l.Close()
		if in := <-accepted; in != c.in {
			t.Errorf("%v: let in is %v", c, in)
		}
	}
}
