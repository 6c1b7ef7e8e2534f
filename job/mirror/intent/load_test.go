// SPDX-License-Identifier: Apache-2.0

package intent

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/block/bitmap"
)

// image is a file in order, with the regions 1 and perRecord+5 marked.
func image(t testing.TB, phase Phase) []byte {
	t.Helper()
	marked, _ := bitmap.New(regions*minRegion, minRegion)
	for _, r := range []int64{1, perRecord + 5} {
		marked.Set(bitmap.Chunks{First: r, End: r + 1})
	}
	d := &disk{}
	l, err := Create("log", d, testConfig(Process, false), Copying, marked)
	if err == nil {
		err = l.SetPhase(phase)
	}
	if err != nil {
		t.Fatal(err)
	}
	return d.afterKill()
}

func expect() Expect { return Expect{[16]byte{9}, testDisks[0], testDisks[1]} }

func TestLoad(t *testing.T) {
	good := image(t, Ready)
	damaged := func(at int, to byte) []byte {
		b := bytes.Clone(good)
		b[at] ^= to
		return b
	}
	swapped := bytes.Clone(good)
	copy(swapped[recordAt(0):], good[recordAt(1):recordAt(2)])
	other := expect()
	for _, c := range []struct {
		name  string
		file  []byte
		want  func(*Expect)
		phase Phase
		dirty int64 // -1 for everything
		why   string
	}{
		{"in order", good, nil, Ready, 2, ""},
		{"copying", image(t, Copying), nil, Copying, 2, ""},
		{"pivoted", image(t, Pivoted), nil, Pivoted, -1, ""},
		{"ended", image(t, Ended), nil, Ended, -1, ""},
		{"empty", nil, nil, Scanning, -1, "'log': it is empty"},
		{"header cut", good[:100], nil, Scanning, -1, "offset 0"},
		{"foreign", append([]byte("QFI\xfb"), good[4:]...), nil, Scanning, -1, "no intent file"},
		{"newer", damaged(8, 1), nil, Scanning, -1, "version 3"},
		{"header", damaged(300, 1), nil, Scanning, -1, "header at offset 0 is damaged: its CRC32C"},
		{"record", damaged(int(recordAt(1))+20, 1), nil, Ready, 1 + perRecord, "record at offset 4608 is damaged, so that 4160749568 bytes of the disk from 4160749568"},
		{"records swapped", swapped, nil, Ready, perRecord + 1, "record at offset 4096"},
		{"last record cut", good[:len(good)-1], nil, Ready, 2 + regions - 2*perRecord, "record at offset 5120"},
		{"records cut", good[:recordsAt], nil, Ready, regions, "record at offset 4096"},
		{"source", good, func(e *Expect) { e.Source.Inode++ }, Scanning, -1, "the source is another disk"},
		{"target", good, func(e *Expect) { e.Target.Name[0]++ }, Scanning, -1, "the target is another disk"},
		{"size", good, func(e *Expect) { e.Target.Size-- }, Scanning, -1, "the target has"},
		{"boot", good, func(e *Expect) { e.Boot[0]++ }, Scanning, -1, "the host was started anew"},
	} {
		want := expect()
		if c.want != nil {
			c.want(&want)
		}
		found := Load("log", reader(c.file), want)
		dirty := int64(-1)
		if found.Dirty != nil {
			dirty = found.Dirty.Len()
		}
		if found.Phase != c.phase || dirty != c.dirty {
			t.Errorf("%s: phase %s, %d regions, %v", c.name, found.Phase, dirty, found.Whys)
		}
		if text := errors.Join(found.Whys...); (text != nil) != (c.why != "") || text != nil && !strings.Contains(text.Error(), c.why) {
			t.Errorf("%s: %v", c.name, text)
		}
	}
	for at := range good {
		if at >= sector && at < recordsAt {
			continue // nothing is there
		}
		if found := Load("log", reader(damaged(at, 0x10)), other); len(found.Whys) == 0 {
			t.Fatalf("damage at %d is missed", at)
		}
	}
}

func TestOrderlyStop(t *testing.T) {
	d := &disk{}
	none, _ := bitmap.New(regions*minRegion, minRegion)
	l, err := Create("log", d, testConfig(Host, false), Copying, none)
	if err != nil {
		t.Fatal(err)
	}
	at := [2]Identity{testDisks[0], testDisks[1]}
	at[0].Modified = time.Unix(1e9, 5)
	l.Keep()
	if err := errors.Join(l.End(), l.Rest(at[0], at[1])); err != nil {
		t.Fatal(err)
	}
	want := expect()
	want.Source.Modified = time.Unix(1e9, 5)
	if found := Load("log", d, want); found.Dirty == nil || found.Dirty.Len() != 0 {
		t.Errorf("%+v", found)
	}
	want.Source.Modified = time.Unix(1e9, 6)
	if found := Load("log", d, want); found.Dirty != nil || !strings.Contains(errors.Join(found.Whys...).Error(), "was written since") {
		t.Errorf("%+v", found)
	}
}

func TestFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	source, err := Identify(path, regions*minRegion)
	if err != nil {
		t.Fatal(err)
	}
	target, err := Identify("nbd://host/export", regions*minRegion)
	if err != nil {
		t.Fatal(err)
	}
	boot, err := BootID()
	if err != nil {
		t.Fatal(err)
	}
	want := Expect{boot, source, target}
	log := filepath.Join(t.TempDir(), "log")
	if found := loadFile(log, want); found.Phase != Scanning || !strings.Contains(found.Whys[0].Error(), log) {
		t.Errorf("%+v", found)
	}
	c := testConfig(Process, false)
	c.Boot, c.Source, c.Target = boot, source, target
	l, err := createFile(log, c, Scanning, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if found := loadFile(log, want); found.Phase != Scanning || len(found.Whys) != 0 {
		t.Errorf("%+v", found)
	}
	if err := l.Known(func(int64, int64) bool { return true }); err != nil {
		t.Fatal(err)
	}
	if err := l.Mark(7*minRegion, 1); err != nil {
		t.Fatal(err)
	}
	if found := loadFile(log, want); found.Phase != Copying || found.Dirty.Len() != 1 || !found.Dirty.Test(7) {
		t.Errorf("%+v", found)
	}
	if err := os.Rename(path, path+".old"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if want.Source, err = Identify(path, source.Size); err != nil {
		t.Fatal(err)
	}
	if found := loadFile(log, want); found.Dirty != nil || len(found.Whys) != 1 {
		t.Errorf("another file under the name: %+v", found)
	}
}

func createFile(path string, c Config, phase Phase, dirty *bitmap.Bitmap) (*Log, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	return Create(path, f, c, phase, dirty)
}

func loadFile(path string, want Expect) *Found {
	f, err := os.Open(path)
	if err != nil {
		return Lost(path, err)
	}
	defer f.Close()
	return Load(path, f, want)
}

// A mark that cannot be recorded makes the file say that everything may differ, and if that cannot be said either, it fails.
func TestFullDisk(t *testing.T) {
	broken := 0
	d := &disk{random: rand.New(rand.NewPCG(3, 3)), broken: func(bool) bool { broken--; return broken >= 0 }}
	none, _ := bitmap.New(regions*minRegion, minRegion)
	l, err := Create("log", d, testConfig(Host, false), Copying, none)
	if err != nil {
		t.Fatal(err)
	}
	clean := func(int64, int64) bool { return true }
	for _, fails := range []int{1, 2} { // the record; and the header, too
		broken = fails
		if err := l.Mark(0, 1); err != nil {
			t.Fatal(err)
		}
		if found := Load("log", d, expect()); found.Dirty != nil {
			t.Errorf("%+v", found)
		}
		if err := l.Trouble(); !errors.Is(err, errDisk) || !strings.Contains(err.Error(), "'log': cannot write 512 bytes at offset 4096") {
			t.Errorf("%v", err)
		}
		if !l.Begin(5*minRegion, 1) {
			t.Error("a guest waits")
		}
		l.Done(5*minRegion, 1)
		broken = 1
		if err := l.Known(clean); err != nil || l.Phase() != Scanning || l.Trouble() == nil {
			t.Errorf("%v, phase %s", err, l.Phase())
		}
		l.Flushed(l.BeginFlush())
		if err := l.Known(clean); err != nil || l.Phase() != Copying {
			t.Errorf("%v, phase %s", err, l.Phase())
		}
		if found := Load("log", d, expect()); found.Dirty == nil || found.Dirty.Len() != 0 || len(found.Whys) > 0 {
			t.Errorf("%+v", found)
		}
	}
	broken = 3
	if err := l.Mark(0, 1); !errors.Is(err, errDisk) {
		t.Errorf("%v", err)
	}
	if l.Begin(0, 1) {
		t.Error("a guest goes on")
	}
	if err := l.Mark(0, 1); err != nil || !l.Begin(0, 1) {
		t.Errorf("%v", err)
	}
	broken = 1
	if _, err := Create("log", &disk{random: d.random, broken: d.broken}, testConfig(Process, false), Scanning, nil); !errors.Is(err, errDisk) {
		t.Errorf("%v", err)
	}
}

func FuzzLoad(f *testing.F) {
	good := image(f, Ready)
	f.Add(good, true)
	f.Add(good[:sector], true)
	f.Add(good[:600], false)
	f.Add([]byte(nil), false)
	f.Add([]byte(magic+"\x01\x00\x00\x00"), true)
	f.Fuzz(func(t *testing.T, file []byte, mend bool) {
		want := expect()
		var b [sector]byte
		if copy(b[:], file); mend && len(file) >= sector { // what the checksum keeps out must be taken well when it is right
			var h header
			_ = h.decode(&b)
			h.encode(&b)
			copy(file, b[:])
			want = Expect{h.boot, h.source, h.target}
			h.source.Size = h.size
			want.Source.Size = h.size
		}
		found := Load("log", reader(file), want)
		if found.Dirty == nil && found.Phase != Scanning && found.Phase < Pivoted {
			t.Errorf("%+v", found)
		}
		if found.Dirty != nil && len(found.Whys) == 0 && int64(len(file)) < recordsAt && found.Dirty.All().End > 0 {
			t.Errorf("no record was missed: %+v", found)
		}
	})
}

// ---- What a guest pays

func benchmarkLog(b *testing.B, d Durability) *Log {
	marked, _ := bitmap.New(regions*minRegion, minRegion)
	c := testConfig(d, false)
	c.Hot = 1024
	l, err := createFile(filepath.Join(b.TempDir(), "log"), c, Copying, marked)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = l.Close() })
	b.ReportAllocs()
	return l
}

func BenchmarkMarkHot(b *testing.B) {
	l := benchmarkLog(b, Process)
	if err := l.Mark(0, 4096); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if !l.Begin(0, 4096) {
			b.Fatal("it is not marked")
		}
		l.Done(0, 4096)
	}
}

func benchmarkCold(b *testing.B, d Durability) {
	l := benchmarkLog(b, d)
	random := rand.New(rand.NewPCG(1, 1))
	for b.Loop() {
		off := random.Int64N(regions) * minRegion
		for !l.Begin(off, 4096) {
			if err := l.Mark(off, 4096); err != nil {
				b.Fatal(err)
			}
		}
		l.Done(off, 4096)
		if l.Full() {
			l.Flushed(l.BeginFlush())
			if err := l.Retire(func(int64, int64) bool { return true }, false); err != nil {
				b.Fatal(err)
			}
		}
	}
}

func BenchmarkMarkCold(b *testing.B)     { benchmarkCold(b, Process) }
func BenchmarkMarkColdHost(b *testing.B) { benchmarkCold(b, Host) }
