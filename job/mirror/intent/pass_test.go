// SPDX-License-Identifier: Apache-2.0

package intent

import (
	"bytes"
	"testing"

	"github.com/blkmirror/blkmirror/block/bitmap"
)

// A comparison is found again as far as it came, with what is dirty besides; damage costs comparing again.
func TestPass(t *testing.T) {
	none, _ := bitmap.New(regions*minRegion, minRegion)
	d := &disk{}
	l, err := Create("log", d, testConfig(Process, false), Copying, none)
	if err != nil {
		t.Fatal(err)
	}
	set := func(p Pass) {
		t.Helper()
		if err := l.SetPass(p); err != nil {
			t.Fatal(err)
		}
	}
	load := func(file []byte) *Pass { return Load("log", reader(file), expect()).Pass }
	if p := load(d.afterKill()); p != nil {
		t.Errorf("before the first: %+v", p)
	}
	set(Pass{Number: 2})
	if p := load(d.afterKill()); p == nil || p.Number != 2 || p.Left.Len() != regions {
		t.Errorf("at the beginning: %+v", p)
	}
	left, _ := bitmap.New(regions*minRegion, minRegion/4)
	left.Set(left.Outward(5*minRegion+1, 1))
	set(Pass{2, 512, left})
	if err := l.Mark(9*minRegion, 1); err != nil {
		t.Fatal(err)
	}
	good := d.afterKill()
	if p := load(good); p.Differing != 512 || p.Left.Len() != 2 || !p.Left.Test(5) || !p.Left.Test(9) {
		t.Errorf("%+v", p)
	}
	bad := bytes.Clone(good)
	bad[recordAt(recordsFor(regions))+7] ^= 1
	if p := load(bad); p.Left.Len() != perRecord {
		t.Errorf("a damaged record: %d regions are left", p.Left.Len())
	}
	if p := load(good[:recordAt(recordsFor(regions)+1)]); p.Left.Len() != regions-perRecord+2 {
		t.Errorf("cut: %d regions are left", p.Left.Len())
	}
	set(Pass{1, 7, none}) // one that came late
	if p := load(d.afterKill()); p.Number != 2 || p.Differing != 512 || p.Left.Len() != 2 {
		t.Errorf("after an older one: %+v", p)
	}
	set(Pass{Number: 3})
	if p := load(d.afterKill()); p.Number != 3 || p.Differing != 0 || p.Left.Len() != regions {
		t.Errorf("the next one: %+v", p)
	}
	set(Pass{3, 0, none})
	if p := load(d.afterKill()); p.Left.Len() != 1 {
		t.Errorf("the next one is over: %d regions are left", p.Left.Len())
	}
}

// Files of version 1 have no comparison.
func TestVersion1(t *testing.T) {
	file := image(t, Ready)
	var h header
	var b [sector]byte
	copy(b[:], file)
	if err := h.decode(&b); err != nil {
		t.Fatal(err)
	}
	h.version = 1
	h.encode(&b)
	copy(file, b[:])
	if found := Load("log", reader(file), expect()); found.Phase != Ready || found.Pass != nil || len(found.Whys) > 0 {
		t.Errorf("%+v", found)
	}
}
