// SPDX-License-Identifier: Apache-2.0

package block

import (
	"math/bits"
	"sync"
	"syscall"
	"unsafe"
)

// BufferAlign is the alignment in memory of every buffer of [GetBuffer], enough for direct I/O on any device.
const BufferAlign = 4096

const (
	minBufferShift = 12 // 4 KiB
	maxBufferShift = 25 // 32 MiB, the largest request that an export takes

	// Buffers from this size on are cut from huge pages: direct I/O has to look up and hold every page of a buffer, so small pages
	// make it take about twice the processor time.
	hugeShift = 18
	hugePage  = 2 << 20
)

// Buffer is pooled memory. It has one owner, who gives it back with Release and does not touch it afterwards.
type Buffer struct {
	B     []byte // as long as was asked for, aligned to BufferAlign
	whole []byte
	class int
}

var bufferPools [maxBufferShift + 1]sync.Pool

// GetBuffer returns a buffer of n bytes with arbitrary content.
func GetBuffer(n int) *Buffer {
	class := max(bits.Len(uint(max(n, 1)-1)), minBufferShift)
	if class > maxBufferShift {
		return &Buffer{B: alignedBytes(n)[:n], class: -1}
	}
	b, _ := bufferPools[class].Get().(*Buffer)
	if b == nil {
		b = newBuffer(class)
	}
	b.B = b.whole[:n]
	return b
}

// newBuffer makes buffers of a class, returns one and leaves the others to whoever asks next.
func newBuffer(class int) *Buffer {
	size := 1 << class
	if class < hugeShift {
		return &Buffer{whole: alignedBytes(size), class: class}
	}
	memory := hugeBytes(max(size, hugePage))
	for rest := memory[size:]; len(rest) > 0; rest = rest[size:] {
		bufferPools[class].Put(&Buffer{whole: rest[:size:size], class: class})
	}
	return &Buffer{whole: memory[:size:size], class: class}
}

// hugeBytes is memory made of huge pages where the kernel has some; n is a multiple of their size.
func hugeBytes(n int) []byte {
	p := bytesAt(n, hugePage)
	_ = syscall.Madvise(p, syscall.MADV_HUGEPAGE) // without them it is only slower
	return p
}

// BufferBytes is how much memory a buffer of n bytes takes, 0 for none.
func BufferBytes(n int64) int64 {
	if n > 1<<maxBufferShift {
		return n
	}
	if n <= 0 {
		return 0
	}
	return 1 << max(bits.Len64(uint64(n-1)), minBufferShift)
}

// Release gives the buffer back.
func (b *Buffer) Release() {
	if b.class < 0 {
		return
	}
	b.B = nil
	bufferPools[b.class].Put(b)
}

func alignedBytes(n int) []byte { return bytesAt(n, BufferAlign) }

// bytesAt is memory that starts at a multiple of align.
func bytesAt(n, align int) []byte {
	raw := make([]byte, n+align)
	skip := 0
	if rest := int(uintptr(unsafe.Pointer(&raw[0])) % uintptr(align)); rest != 0 {
		skip = align - rest
	}
	return raw[skip : skip+n : skip+n]
}

// IsAligned says whether the memory of p starts at a multiple of align, a power of two.
func IsAligned(p []byte, align int) bool {
	return len(p) == 0 || uintptr(unsafe.Pointer(&p[0]))&uintptr(align-1) == 0
}

// IsZero says whether p holds nothing but zero bytes.
func IsZero(p []byte) bool {
	for len(p) >= 8 && uintptr(unsafe.Pointer(&p[0]))&7 != 0 {
		if p[0] != 0 {
			return false
		}
		p = p[1:]
	}
	if len(p) >= 8 {
		words := unsafe.Slice((*uint64)(unsafe.Pointer(&p[0])), len(p)/8)
		for len(words) >= 8 {
			if words[0]|words[1]|words[2]|words[3]|words[4]|words[5]|words[6]|words[7] != 0 {
				return false
			}
			words = words[8:]
		}
		for _, w := range words {
			if w != 0 {
				return false
			}
		}
		p = p[len(p)&^7:]
	}
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}
