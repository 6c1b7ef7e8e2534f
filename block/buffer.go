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

	// Buffers from this size on are put into huge pages: direct I/O has to look up and hold every page of a buffer, so small pages
	// make it take about twice the processor time.
	hugeShift = 20
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

// newBuffer makes a buffer of a class.
func newBuffer(class int) *Buffer {
	b := &Buffer{whole: alignedBytes(1 << class), class: class}
	if class >= hugeShift {
		askHuge(b.whole)
	}
	return b
}

// askHuge has the kernel back memory with huge pages, and what lies around it up to their borders: that is the heap's, too. Where
// the kernel has none, or small pages are there already, it is only slower.
func askHuge(p []byte) {
	start := uintptr(unsafe.Pointer(&p[0])) &^ (hugePage - 1)
	end := (uintptr(unsafe.Pointer(&p[0])) + uintptr(len(p)) + hugePage - 1) &^ (hugePage - 1)
	_, _, _ = syscall.Syscall(syscall.SYS_MADVISE, start, end-start, syscall.MADV_HUGEPAGE)
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

func alignedBytes(n int) []byte {
	raw := make([]byte, n+BufferAlign)
	skip := 0
	if rest := uintptr(unsafe.Pointer(&raw[0])) % BufferAlign; rest != 0 {
		skip = int(BufferAlign - rest)
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
