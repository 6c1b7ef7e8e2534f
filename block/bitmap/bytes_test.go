// SPDX-License-Identifier: Apache-2.0

package bitmap

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

// Bits that go out as bytes, in pieces, come in again, and are those of WriteTo.
func TestBytes(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for range 300 {
		chunks := 1 + r.Int64N(3000)
		from, err := New(chunks*512-r.Int64N(512), 512)
		if err != nil {
			t.Fatal(err)
		}
		for range r.IntN(20) {
			first := r.Int64N(chunks)
			from.Set(Chunks{first, min(first+1+r.Int64N(1+r.Int64N(400)), chunks)})
		}
		to, _ := New(from.Size(), 512)
		var all []byte
		for at := int64(0); at < chunks; {
			n := 1 + r.IntN(64)
			piece := from.AppendBytes(nil, at, n)
			to.MergeBytes(at, piece)
			all = append(all, piece...)
			at += int64(n) * 8
		}
		var want, got bytes.Buffer
		_, _ = from.WriteTo(&want)
		_, _ = to.WriteTo(&got)
		if !bytes.Equal(want.Bytes(), got.Bytes()) || to.Len() != from.Len() {
			t.Fatalf("%d chunks: %x became %x", chunks, want.Bytes(), got.Bytes())
		}
		n := min(len(all), want.Len())
		if !bytes.Equal(all[:n], want.Bytes()[:n]) {
			t.Fatalf("%d chunks: bytes are %x, not %x", chunks, all[:n], want.Bytes()[:n])
		}
	}
}

// What stands beyond the last chunk is no bit.
func TestMergeBytesBeyondTheEnd(t *testing.T) {
	b, _ := New(3*512, 512)
	b.MergeBytes(0, []byte{0xff, 0xff})
	if b.Len() != 3 {
		t.Errorf("%d bits of 3", b.Len())
	}
	b.MergeBytes(8, []byte{0xff})
	if p := b.AppendBytes(nil, 0, 2); p[0] != 7 || p[1] != 0 {
		t.Errorf("bytes %x", p)
	}
	if p := b.AppendBytes(nil, 8, 2); p[0] != 0 || p[1] != 0 {
		t.Errorf("bytes beyond the end %x", p)
	}
}
