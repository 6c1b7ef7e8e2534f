// SPDX-License-Identifier: Apache-2.0

package state

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
)

func TestDecode(t *testing.T) {
	body, err := json.Marshal(named("a"))
	if err != nil {
		t.Fatal(err)
	}
	file := encode(7, body)
	if sequence, again, s, err := decode(file); err != nil || sequence != 7 || !bytes.Equal(again, body) || len(s.Objects) != 1 {
		t.Fatalf("%d %q %v %v", sequence, again, s, err)
	}
	if sequence, _, s, err := decode(encodeAs(1, 7, body)); err != nil || sequence != 7 || len(s.Objects) != 1 {
		t.Errorf("version 1: %d %v %v", sequence, s, err)
	}
	jobs := []byte(`{"jobs":[{"definition":{"device":"a"},"paused":true,"intent":"intent-1","source":"/a","target":"/b"}]}`)
	if _, _, s, err := decode(encode(1, jobs)); err != nil || len(s.Jobs) != 1 || !s.Jobs[0].Paused || s.Jobs[0].Target != "/b" {
		t.Errorf("jobs: %v %v", s, err)
	}
	if _, _, s, err := decode(encodeAs(2, 1, jobs)); err != nil || len(s.Jobs) != 1 {
		t.Errorf("version 2: %v %v", s, err)
	}
	later := []byte(`{"jobs":[{"command":"block-stream","definition":{"device":"a"},"finalize":true,"compared":{"end":5}}]}`)
	if _, _, s, err := decode(encode(1, later)); err != nil || s.Jobs[0].Command != "block-stream" || s.Jobs[0].Compared.End != 5 {
		t.Errorf("version 3: %v %v", s, err)
	}
	for _, c := range []struct {
		name, file, want string
	}{
		{"empty", "", "empty"},
		{"foreign", "QFI\xfb\x00\x00", "no state of blkmirror"},
		{"newer", "blkmirror-state 4 more to come\n{}", "version 4"},
		{"first line cut", string(file[:20]), "cut off in its first line"},
		{"first line", "blkmirror-state 1 x\n{}", "first line is damaged"},
		{"sign", strings.Replace(string(file), " 7 ", " +7 ", 1), "damaged"},
		{"cut", string(file[:len(file)-1]), "cut off"},
		{"longer", string(file) + "\n", "1 bytes follow"},
		{"sequence", strings.Replace(string(file), " 7 ", " 8 ", 1), "CRC32C"},
		{"body", strings.Replace(string(file), `"a"`, `"b"`, 1), "CRC32C"},
		{"member", string(encode(1, []byte(`{"monitors":[]}`))), "monitors"},
		{"jobs too early", string(encodeAs(1, 1, jobs)), "version 1 has no jobs"},
		{"stream too early", string(encodeAs(2, 1, later)), "version 2 has only mirrors"},
		{"two", string(encode(1, []byte(`{}{}`))), "followed"},
		{"no JSON", string(encode(1, []byte(`{`))), "no sense"},
	} {
		if _, _, _, err := decode([]byte(c.file)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	for i := range file {
		for bit := range 8 {
			damaged := bytes.Clone(file)
			damaged[i] ^= 1 << bit
			if _, _, _, err := decode(damaged); err == nil {
				t.Errorf("bit %d of byte %d is not missed", bit, i)
			}
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(encode(1, []byte(`{}`)))
	f.Add(encode(2, []byte(`{"nodes":[{"definition":{"driver":"null-co"},"size":1}],"bitmaps":[{"node":"n","contents":{"disk":1}}]}`)))
	f.Add([]byte("blkmirror-state 1 1 2 00000000\n{}"))
	f.Add([]byte("blkmirror-state 2"))
	f.Add(encodeAs(1, 1, []byte(`{}`)))
	f.Add(encodeAs(2, 1, []byte(`{}`)))
	f.Add(encode(1, []byte(`{"jobs":[{"command":"blockdev-verify","definition":{},"complete":"soft","compared":{"end":1,"boot":"x"}}]}`)))
	f.Add(encode(1, []byte(`{"jobs":[{"definition":{},"intent":"intent-1","source":"","target":""}]}`)))
	f.Fuzz(func(t *testing.T, file []byte) {
		if sequence, body, s, err := decode(file); err == nil && (s == nil || !bytes.Equal(encode(sequence, body), file) && !bytes.Equal(encodeAs(1, sequence, body), file) &&
			!bytes.Equal(encodeAs(2, sequence, body), file)) {
			t.Errorf("%q", file)
		}
		// What the checksum keeps out must be taken well when it is right.
		_, _, _, _ = decode(encode(1, file))
	})
}
