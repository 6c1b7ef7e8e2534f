// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"slices"
	"strings"
	"testing"
)

const diskSize = 32 << 20

// TestSameSeedSameDisk: guest and host agree without talking.
func TestSameSeedSameDisk(t *testing.T) {
	a, b := New(7, diskSize), New(7, diskSize)
	kinds := map[Kind]int{}
	for range 500 {
		group := a.Next()
		if !slices.Equal(group, b.Next()) {
			t.Fatal("two disks of one seed differ")
		}
		for i, op := range group {
			kinds[op.Kind]++
			if op.First < 0 || op.Count < 1 || op.First+op.Count > a.Sectors() {
				t.Fatalf("%+v is beyond the disk", op)
			}
			if op.Kind == Discard && (op.First%alignDiscard != 0 || op.Count%alignDiscard != 0) {
				t.Fatalf("%+v is not aligned", op)
			}
			if slices.ContainsFunc(group[:i], op.overlaps) {
				t.Fatalf("%+v overlaps an operation of its group", op)
			}
		}
	}
	if a.Done() != Initial+500*GroupSize {
		t.Errorf("%d operations done", a.Done())
	}
	for kind := Write; kind <= Discard; kind++ {
		if kinds[kind] < 100 {
			t.Errorf("kind %d came %d times", kind, kinds[kind])
		}
	}
	if slices.Equal(a.Next(), New(8, diskSize).Next()) {
		t.Error("another seed makes the same operations")
	}
}

// TestIdentify: a record is known by its content, and nothing else is taken for one.
func TestIdentify(t *testing.T) {
	record := func(change func(data []byte)) []byte {
		data := make([]byte, SectorBytes)
		Fill(data, 3, 42)
		change(data)
		return data
	}
	for _, c := range []struct {
		name    string
		data    []byte
		sector  int64
		version Version
		fault   string
	}{
		{"record", record(func([]byte) {}), 42, 3, ""},
		{"zeroes", make([]byte, SectorBytes), 42, 0, ""},
		{"elsewhere", record(func([]byte) {}), 43, 0, "holds version 3 of sector 42"},
		{"damaged", record(func(d []byte) { d[100] ^= 1 }), 42, 0, "damaged"},
		{"torn", record(func(d []byte) { clear(d[256:]) }), 42, 0, "damaged"},
		{"foreign", record(func(d []byte) { d[0]++ }), 42, 0, "no record"},
	} {
		version, err := Identify(c.data, c.sector)
		if c.fault == "" && err != nil || c.fault != "" && (err == nil || !strings.Contains(err.Error(), c.fault)) {
			t.Errorf("%s: error %v", c.name, err)
		}
		if version != c.version {
			t.Errorf("%s: version %d", c.name, version)
		}
	}
}

// TestCheck: old content is no more right than none.
func TestCheck(t *testing.T) {
	d := New(1, diskSize)
	data := make([]byte, 2*SectorBytes)
	Fill(data, Initial, 4)
	if err := d.Check(data, 4); err != nil {
		t.Error(err)
	}
	d.sectors[5] = 9
	if err := d.Check(data, 4); err == nil || !strings.Contains(err.Error(), "sector 5 has version 1, not 9") {
		t.Errorf("error %v", err)
	}
}
