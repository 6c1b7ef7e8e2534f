// SPDX-License-Identifier: Apache-2.0

package blocktest

import (
	"context"
	"fmt"
	"runtime"
	"sync"

	"github.com/blkmirror/blkmirror/block"
)

// OnDiscard says what a discarded range reads as.
type OnDiscard uint8

// What may become of a discarded range. Block status tells the truth about each.
const (
	DiscardZeroes  OnDiscard = iota // zeroes, and no space taken
	DiscardKeeps                    // what was there
	DiscardGarbage                  // something that nobody wrote
)

// MemOptions describe a disk in memory.
type MemOptions struct {
	Size      int64
	Limits    block.Limits
	OnDiscard OnDiscard

	NoZeroUnmap bool // zeroes always keep or take space
	NoZeroes    bool // writes of zeroes are not supported
	SlowZeroes  bool // writes of zeroes are not supported with NoFallback
	NoDiscard   bool // discards are not supported
	NoStatus    bool // everything is data
	CopyRange   bool // ranges can be copied from other disks in memory

	// StatusMost bounds the extents of block status, 0 for no bound.
	StatusMost int64
	// NonAtomic carries out requests in pieces of 4 KiB, each with the hooks around it, so that overlapping requests mix.
	NonAtomic bool
}

// Mem is a disk in memory.
type Mem struct {
	options MemOptions
	hooks   hooks
	mu      struct {
		sync.Mutex
		size     int64
		pages    pages    // what reads see
		durable  pages    // what was flushed
		pending  unsynced // what was not
		calls    []Call
		need     block.Perm
		share    block.Perm
		closed   int
		garbage  byte
		requests uint64
	}
}

// NewMem returns a disk full of holes.
func NewMem(o MemOptions) *Mem {
	m := &Mem{options: o}
	m.mu.size = (o.Size + sector - 1) &^ (sector - 1)
	m.mu.pages, m.mu.durable, m.mu.pending = pages{}, pages{}, unsynced{}
	m.mu.share = block.PermAll
	return m
}

// NewMemOf returns a disk that holds data, all of it flushed.
func NewMemOf(data []byte, o MemOptions) *Mem {
	o.Size = max(o.Size, int64(len(data)))
	m := NewMem(o)
	m.mu.pages.write(data, 0)
	m.mu.durable.write(data, 0)
	return m
}

// Size is the length of the disk.
func (m *Mem) Size() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.mu.size
}

// Limits are those of the options.
func (m *Mem) Limits() block.Limits { return m.options.Limits }

// FileName is a name that no file has.
func (m *Mem) FileName() string { return "mem:" }

// AllocatedBytes counts the sectors that take space.
func (m *Mem) AllocatedBytes() (int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.mu.pages.allocated(), nil
}

// CanZeroUnmap is as the options say.
func (m *Mem) CanZeroUnmap() bool { return !m.options.NoZeroUnmap && !m.options.NoZeroes }

// Bytes is a copy of what the disk reads as.
func (m *Mem) Bytes() []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	b := make([]byte, m.mu.size)
	m.mu.pages.read(b, 0)
	return b
}

// DurableBytes is a copy of what the disk would read as if nothing but what was flushed survived.
func (m *Mem) DurableBytes() []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	b := make([]byte, m.mu.size)
	m.mu.durable.read(b, 0)
	return b
}

// ReadAt reads.
func (m *Mem) ReadAt(ctx context.Context, p []byte, off int64) error {
	c := Call{Op: block.OpRead, Off: off, Len: int64(len(p))}
	return m.carryOut(ctx, c, p, func(c Call, p []byte) error {
		m.mu.pages.read(p, c.Off)
		return nil
	})
}

// WriteAt writes.
func (m *Mem) WriteAt(ctx context.Context, p []byte, off int64, flags block.Flags) error {
	c := Call{Op: block.OpWrite, Off: off, Len: int64(len(p)), Flags: flags}
	if flags&^block.FUA != 0 {
		return violation(c, "flags that a write does not have")
	}
	return m.carryOut(ctx, c, p, func(c Call, p []byte) error {
		if over := c.Off + c.Len - m.mu.size; over > 0 {
			p = p[:max(0, c.Len-over)]
		}
		m.mu.pages.write(p, c.Off)
		m.changedLocked(c)
		return nil
	})
}

// WriteZeroes writes zeroes, or makes a hole.
func (m *Mem) WriteZeroes(ctx context.Context, off, n int64, flags block.Flags) error {
	c := Call{Op: block.OpZero, Off: off, Len: n, Flags: flags}
	return m.carryOut(ctx, c, nil, func(c Call, _ []byte) error {
		if m.options.NoZeroes || (m.options.SlowZeroes && flags&block.NoFallback != 0) {
			return block.NotSupported
		}
		n := min(c.Len, m.mu.size-c.Off)
		if flags&block.MayUnmap != 0 && !m.options.NoZeroUnmap {
			m.mu.pages.punch(c.Off, n)
		} else {
			m.mu.pages.zero(c.Off, n)
		}
		m.changedLocked(c)
		return nil
	})
}

// Discard does to a range what the options say.
func (m *Mem) Discard(ctx context.Context, off, n int64) error {
	c := Call{Op: block.OpTrim, Off: off, Len: n}
	return m.carryOut(ctx, c, nil, func(c Call, _ []byte) error {
		if m.options.NoDiscard {
			return block.NotSupported
		}
		switch m.options.OnDiscard {
		case DiscardZeroes:
			m.mu.pages.punch(c.Off, c.Len)
		case DiscardGarbage:
			m.mu.garbage++
			b := make([]byte, c.Len)
			for i := range b {
				b[i] = 0xd0 | m.mu.garbage&0xf
			}
			m.mu.pages.write(b, c.Off)
		}
		m.changedLocked(c)
		return nil
	})
}

// BlockStatus tells holes and zeroes from data.
func (m *Mem) BlockStatus(ctx context.Context, off, n int64) (block.Extent, error) {
	extent := block.Extent{Len: n, Status: block.StatusData | block.StatusAllocated}
	err := m.carryOut(ctx, Call{Op: block.OpStatus, Off: off, Len: n}, nil, func(Call, []byte) error {
		if !m.options.NoStatus {
			extent = m.mu.pages.status(off, n)
		}
		if most := m.options.StatusMost; most > 0 {
			extent.Len = min(extent.Len, most)
		}
		return nil
	})
	return extent, err
}

// Flush makes everything durable that was written.
func (m *Mem) Flush(ctx context.Context) error {
	return m.carryOut(ctx, Call{Op: block.OpFlush}, nil, func(Call, []byte) error {
		m.flushLocked()
		return nil
	})
}

// Resize changes the length, durably.
func (m *Mem) Resize(ctx context.Context, size int64) error {
	return m.carryOut(ctx, Call{Op: block.OpResize, Off: size}, nil, func(Call, []byte) error {
		if size < m.mu.size {
			m.flushLocked()
			m.mu.pages.punch(size, m.mu.size-size)
			m.mu.durable.punch(size, m.mu.size-size)
		}
		m.mu.size = size
		return nil
	})
}

// SetPermissions keeps what it is told, unless the permission hook forbids it.
func (m *Mem) SetPermissions(need, share block.Perm) error {
	if hook := m.hooks.permissions.Load(); hook != nil {
		if err := (*hook)(need, share); err != nil {
			return err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mu.need, m.mu.share = need, share
	return nil
}

// Permissions are those of the last successful SetPermissions.
func (m *Mem) Permissions() (need, share block.Perm) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.mu.need, m.mu.share
}

// Close makes all later requests fail.
func (m *Mem) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mu.closed++
	return nil
}

// Closed is how often the disk was closed.
func (m *Mem) Closed() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.mu.closed
}

// carryOut is the way of every request: checked, listed, and done under the lock in one or many pieces, with the hooks
// around each piece outside of it.
func (m *Mem) carryOut(ctx context.Context, c Call, p []byte, do func(Call, []byte) error) error {
	m.mu.Lock()
	m.mu.calls = append(m.mu.calls, c)
	m.mu.requests++
	c.request = m.mu.requests
	err := m.checkLocked(c, p)
	m.mu.Unlock()
	if err != nil {
		return err
	}
	step := c.Len
	if splits := c.Op == block.OpRead || c.Op == block.OpWrite || c.Op == block.OpZero || c.Op == block.OpTrim; m.options.NonAtomic && splits {
		step = pageSize
	}
	for {
		piece := c
		piece.Len = min(c.Len, step)
		if err := m.piece(ctx, piece, p[:min(len(p), int(piece.Len))], do); err != nil {
			return err
		}
		c.Off, c.Len = c.Off+piece.Len, c.Len-piece.Len
		if c.Len == 0 {
			return nil
		}
		p = p[min(len(p), int(piece.Len)):]
		runtime.Gosched()
	}
}

func (m *Mem) piece(ctx context.Context, c Call, p []byte, do func(Call, []byte) error) error {
	if err := callHook(ctx, &m.hooks.before, c); err != nil {
		return err
	}
	m.mu.Lock()
	err := do(c, p)
	m.mu.Unlock()
	if err != nil {
		return err
	}
	return callHook(ctx, &m.hooks.after, c)
}

// checkLocked holds the node above to the contract of drivers.
func (m *Mem) checkLocked(c Call, p []byte) error {
	limits := m.options.Limits
	align := max(limits.RequestAlign, 1)
	ranged := c.Op != block.OpFlush && c.Op != block.OpResize
	transfer := c.Op == block.OpRead || c.Op == block.OpWrite
	end := (m.mu.size + align - 1) &^ (align - 1)
	switch {
	case m.mu.closed > 0:
		return violation(c, "after Close")
	case ranged && (c.Off < 0 || c.Len <= 0 || c.Off+c.Len > end):
		return violation(c, fmt.Sprintf("outside of the disk of %d bytes", m.mu.size))
	case (transfer || c.Op == block.OpZero) && (c.Off|c.Len)&(align-1) != 0:
		return violation(c, fmt.Sprintf("not aligned to %d", align))
	case transfer && !block.IsAligned(p, max(limits.MemoryAlign, 1)):
		return violation(c, fmt.Sprintf("buffer not aligned to %d", limits.MemoryAlign))
	case transfer && limits.MaxTransfer > 0 && c.Len > limits.MaxTransfer:
		return violation(c, fmt.Sprintf("longer than %d", limits.MaxTransfer))
	}
	return nil
}

func violation(c Call, what string) error {
	return &block.Error{Kind: block.KindInvalid, Op: c.Op, Off: c.Off, Len: c.Len, Err: fmt.Errorf("breach of the driver's contract: %s", what)}
}

var (
	_ block.Driver             = (*Mem)(nil)
	_ block.ZeroWriter         = (*Mem)(nil)
	_ block.ZeroUnmapper       = (*Mem)(nil)
	_ block.Discarder          = (*Mem)(nil)
	_ block.StatusReporter     = (*Mem)(nil)
	_ block.Resizer            = (*Mem)(nil)
	_ block.Limiter            = (*Mem)(nil)
	_ block.PermissionHolder   = (*Mem)(nil)
	_ block.FileNamer          = (*Mem)(nil)
	_ block.AllocationReporter = (*Mem)(nil)
)
