// SPDX-License-Identifier: Apache-2.0

package mirror

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/blocktest"
)

// disk is a disk in memory that takes virtual time for its requests, carries long ones out in pieces, so that overlapping
// requests mix, and fails when told to. What a failed flush had to make durable may be lost for good, and the next flush
// knows nothing of it: so do kernels.
type disk struct {
	mem   *blocktest.Mem
	slow  time.Duration // most time that a request takes before and after it is carried out, 0 for none
	cut   int64         // requests are carried out in pieces of at most that many bytes, 0 for in one
	lossy bool          // a failed flush loses what it had to make durable
	keep  func() bool   // if set, says that nothing is to be lost now

	offloads    bool     // it copies ranges of other disks, now and then not all of them, or none
	permissions func()   // if set, is told of changes of the permissions
	base        []byte   // not nil: what a backing file has where this disk is not allocated
	net         *network // not nil: it is behind a connection
	far         bool     // it may be behind one later

	// hook, if set, is called before each request, and afterZero after a write of zeroes was carried out, without locks.
	hook      atomic.Pointer[func(c blocktest.Call) error]
	afterZero atomic.Pointer[func()]
	// spoils, if set, may change the data of a write on its way, of which nobody hears.
	spoils atomic.Pointer[func(p []byte, off int64)]

	mu struct {
		sync.Mutex
		random *rand.Rand
		faults []*fault
		own    []bool // with base: sectors that are allocated
		writes int    // requests that changed something or could have
		failed int
	}
}

// fault makes requests fail.
type fault struct {
	op    block.Op
	errno syscall.Errno
	after int  // so many requests go well first
	times int  // then so many fail
	late  bool // they are carried out all the same
}

func newDisk(seed uint64, data []byte, o blocktest.MemOptions) *disk {
	d := &disk{mem: blocktest.NewMemOf(data, o)}
	d.mu.random = rand.New(rand.NewPCG(seed, 0xd15c))
	return d
}

// driver is the driver for a node.
func (d *disk) driver() block.Driver {
	if d.far || d.net != nil {
		return remote{d}
	}
	return d
}

func (d *disk) onRequest(f func(c blocktest.Call) error) { d.hook.Store(&f) }
func (d *disk) onZeroed(f func())                        { d.afterZero.Store(&f) }

func (d *disk) addFault(f fault) {
	d.mu.Lock()
	d.mu.faults = append(d.mu.faults, &f)
	d.mu.Unlock()
}

func (d *disk) heal() {
	d.mu.Lock()
	d.mu.faults = nil
	d.mu.Unlock()
}

// wait passes time for a request, which is x if it came over a network.
func (d *disk) wait(x *exchange, share int) {
	if d.slow == 0 {
		return
	}
	d.mu.Lock()
	n := time.Duration(d.mu.random.Int64N(int64(d.slow)))
	skip := d.mu.random.IntN(4) < share
	d.mu.Unlock()
	switch {
	case skip:
	case x != nil:
		x.sleep(n)
	default:
		time.Sleep(n)
	}
}

// meet says what is wrong with a request, if anything, and whether it is carried out all the same.
func (d *disk) meet(op block.Op) (err error, late bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, f := range d.mu.faults {
		if f.op != op || f.times == 0 {
			continue
		}
		if f.after > 0 {
			f.after--
			continue
		}
		f.times--
		d.mu.failed++
		return f.errno, f.late
	}
	return nil, false
}

// carryOut is the way of every request but flushes.
func (d *disk) carryOut(ctx context.Context, c blocktest.Call, p []byte, do func(off, n int64, p []byte) error) error {
	if d.net == nil {
		return d.serve(nil, c, p, do)
	}
	return d.net.carryOut(ctx, c, p, func(x *exchange, p []byte) error { return d.serve(x, c, p, do) })
}

func (d *disk) serve(x *exchange, c blocktest.Call, p []byte, do func(off, n int64, p []byte) error) error {
	if hook := d.hook.Load(); hook != nil {
		if err := (*hook)(c); err != nil {
			return err
		}
	}
	if c.Op == block.OpWrite || c.Op == block.OpZero || c.Op == block.OpTrim || c.Op == block.OpFlush {
		d.mu.Lock()
		d.mu.writes++
		d.mu.Unlock()
	}
	if c.Op != block.OpStatus || c.Len > 64<<10 {
		d.wait(x, 1)
	}
	err, late := d.meet(c.Op)
	if err != nil && !late {
		return err
	}
	step := c.Len
	if d.cut > 0 && (c.Op == block.OpRead || c.Op == block.OpWrite || c.Op == block.OpZero || c.Op == block.OpTrim) {
		step = max(d.cut, c.Len/8) &^ 4095
	}
	for off, n := c.Off, c.Len; ; {
		piece := min(n, step)
		var part []byte
		if p != nil {
			part, p = p[:piece], p[piece:]
		}
		if x != nil && !x.alive() {
			return errDropped
		}
		d.mu.Lock()
		failed := do(off, piece, part)
		d.mu.Unlock()
		if failed != nil {
			return failed
		}
		if off, n = off+piece, n-piece; n == 0 {
			break
		}
		d.wait(x, 3)
	}
	if f := d.afterZero.Load(); c.Op == block.OpZero && f != nil && *f != nil {
		(*f)()
	}
	if c.Op != block.OpStatus {
		d.wait(x, 2)
	}
	return err
}

func (d *disk) Size() int64          { return d.mem.Size() }
func (d *disk) Limits() block.Limits { return d.mem.Limits() }
func (d *disk) CanZeroUnmap() bool   { return d.mem.CanZeroUnmap() }
func (d *disk) Close() error         { return d.mem.Close() }
func (d *disk) SetPermissions(need, share block.Perm) error {
	if d.permissions != nil {
		d.permissions()
	}
	return d.mem.SetPermissions(need, share)
}

func (d *disk) AllocatedBytes() (int64, error) { return d.mem.AllocatedBytes() }

// ownLocked makes the sectors of a range the disk's own, with the content of the backing file.
func (d *disk) ownLocked(ctx context.Context, off, n int64) {
	if d.base == nil {
		return
	}
	for s := off / 512; s*512 < min(off+n, d.mem.Size()); s++ {
		if !d.mu.own[s] {
			d.mu.own[s] = true
			_ = d.mem.WriteAt(ctx, d.base[s*512:s*512+512], s*512, 0)
		}
	}
}

// readLocked reads what users of the disk see.
func (d *disk) readLocked(ctx context.Context, p []byte, off int64) error {
	err := d.mem.ReadAt(ctx, p, off)
	if d.base != nil && err == nil {
		for i := int64(0); i < int64(len(p)); {
			at := off + i
			n := min(512-at%512, int64(len(p))-i)
			if !d.mu.own[at/512] {
				copy(p[i:i+n], d.base[at:])
			}
			i += n
		}
	}
	return err
}

// Bytes is what users of the disk see.
func (d *disk) Bytes() []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	b := make([]byte, d.mem.Size())
	if err := d.readLocked(bg, b, 0); err != nil {
		return d.mem.Bytes() // closed
	}
	return b
}

func (d *disk) ReadAt(ctx context.Context, p []byte, off int64) error {
	return d.carryOut(ctx, blocktest.Call{Op: block.OpRead, Off: off, Len: int64(len(p))}, p, func(off, n int64, p []byte) error {
		return d.readLocked(ctx, p, off)
	})
}

func (d *disk) WriteAt(ctx context.Context, p []byte, off int64, flags block.Flags) error {
	c := blocktest.Call{Op: block.OpWrite, Off: off, Len: int64(len(p)), Flags: flags}
	return d.carryOut(ctx, c, p, func(off, n int64, p []byte) error {
		d.ownLocked(ctx, off, n)
		if spoil := d.spoils.Load(); spoil != nil {
			p = bytes.Clone(p)
			(*spoil)(p, off)
		}
		return d.mem.WriteAt(ctx, p, off, flags)
	})
}

func (d *disk) WriteZeroes(ctx context.Context, off, n int64, flags block.Flags) error {
	c := blocktest.Call{Op: block.OpZero, Off: off, Len: n, Flags: flags}
	return d.carryOut(ctx, c, nil, func(off, n int64, _ []byte) error {
		d.ownLocked(ctx, off, n)
		return d.mem.WriteZeroes(ctx, off, n, flags)
	})
}

func (d *disk) Discard(ctx context.Context, off, n int64) error {
	return d.carryOut(ctx, blocktest.Call{Op: block.OpTrim, Off: off, Len: n}, nil, func(off, n int64, _ []byte) error {
		d.ownLocked(ctx, off, n)
		return d.mem.Discard(ctx, off, n)
	})
}

func (d *disk) BlockStatus(ctx context.Context, off, n int64) (block.Extent, error) {
	found := new(block.Extent) // a request that was given up has its own
	err := d.carryOut(ctx, blocktest.Call{Op: block.OpStatus, Off: off, Len: n}, nil, func(int64, int64, []byte) error {
		extent, err := d.mem.BlockStatus(ctx, off, n)
		if err != nil {
			return err
		}
		defer func() { *found = extent }()
		if d.base == nil {
			return nil
		}
		own := d.mu.own[off/512]
		end := off/512*512 + 512
		for end < off+extent.Len && d.mu.own[end/512] == own {
			end += 512
		}
		extent.Len = min(extent.Len, end-off)
		if !own {
			extent.Status = block.StatusData
		}
		return nil
	})
	if err != nil {
		return block.Extent{}, err
	}
	return *found, nil
}

func (d *disk) Flush(ctx context.Context) error {
	c := blocktest.Call{Op: block.OpFlush}
	if d.net == nil {
		return d.flush(ctx, nil, c)
	}
	return d.net.carryOut(ctx, c, nil, func(x *exchange, _ []byte) error { return d.flush(ctx, x, c) })
}

func (d *disk) flush(ctx context.Context, x *exchange, c blocktest.Call) error {
	if hook := d.hook.Load(); hook != nil {
		if err := (*hook)(c); err != nil {
			return err
		}
	}
	d.wait(x, 1)
	d.mu.Lock()
	d.mu.writes++
	d.mu.Unlock()
	if err, _ := d.meet(block.OpFlush); err != nil {
		if d.lossy {
			d.lose()
		}
		return err
	}
	if x != nil && !x.alive() {
		return errDropped
	}
	d.mu.Lock()
	err := d.mem.Flush(ctx)
	d.mu.Unlock()
	d.wait(x, 2)
	return err
}

// durable is what would be there after a loss of power, as users of the disk see it.
func (d *disk) durable() []byte {
	if d.base != nil {
		return d.Bytes() // nobody asks
	}
	return d.mem.DurableBytes()
}

// lose forgets some of what was written and not flushed, unless that is to be kept.
func (d *disk) lose() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.keep != nil && d.keep() {
		return
	}
	now, kept := d.mem.Bytes(), d.mem.DurableBytes()
	all := d.mu.random.IntN(2) == 0
	unit := int(max(d.mem.Limits().RequestAlign, 512))
	for off := 0; off < len(now); off += unit {
		end := min(off+unit, len(now))
		if !bytes.Equal(now[off:end], kept[off:end]) && (all || d.mu.random.IntN(2) == 0) {
			old := make([]byte, unit)
			copy(old, kept[off:end])
			_ = d.mem.WriteAt(bg, old, int64(off), 0)
		}
	}
}

// changes counts the requests that changed something or could have.
func (d *disk) changes() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.mu.writes
}

// CopyRange copies as a kernel might, for which both disks do what they do for a read and a write.
func (d *disk) CopyRange(ctx context.Context, from block.Driver, fromOff, off, n int64, _ bool) (int64, block.Offload, error) {
	source, ok := from.(*disk)
	if !ok || !d.offloads || d.net != nil {
		return 0, 0, block.NotSupported
	}
	d.mu.Lock()
	dice := d.mu.random.Uint64()
	d.mu.Unlock()
	if dice%4 == 0 {
		return 0, 0, errors.New("not this time")
	}
	how := block.OffloadCopied
	if dice%4 == 1 {
		how = block.OffloadCloned
	}
	if align := max(d.Limits().RequestAlign, 1); n > align && dice%3 == 0 {
		n = max(n/2&^(align-1), align)
	}
	p := make([]byte, n)
	if err := source.ReadAt(ctx, p, fromOff); err != nil {
		return 0, 0, err
	}
	if err := d.WriteAt(ctx, p, off, 0); err != nil {
		return 0, 0, err
	}
	return n, how, nil
}
