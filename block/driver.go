// SPDX-License-Identifier: Apache-2.0

package block

import (
	"context"

	"github.com/blkmirror/blkmirror/block/bitmap"
)

// Flags modify a write or a write of zeroes.
type Flags uint8

// The request flags.
const (
	FUA        Flags = 1 << iota // durable before the request returns
	MayUnmap                     // zeroes: the range may become a hole
	NoFallback                   // zeroes: fail with KindNotSupported rather than write zero data
)

// Status says what is known of an extent.
type Status uint8

// What may hold for an extent.
const (
	StatusData      Status = 1 << iota // must be read to know what is there
	StatusZero                         // reads as zeroes
	StatusAllocated                    // this layer decides, not a backing node below it
)

// Extent is the answer to a question for block status: what holds for the first Len bytes asked about.
type Extent struct {
	Len    int64 // bytes, at least 1
	Status Status
}

// Driver does the I/O of one image format or protocol. The node that owns it has checked every request: the range lies
// inside Size (but for padding: by less than RequestAlign it may reach beyond; what is there reads as zeroes and is not kept),
// lengths are above zero and aligned to Limits, a read-only driver gets no write. All methods but Close may
// be called at once from many goroutines, for overlapping ranges too. Buffers belong to the caller and are only used
// until the call returns. A method that fails may have been carried out in part. ctx ends early only requests that
// cannot be trusted to end by themselves (a network peer); local I/O may ignore it.
type Driver interface {
	// Size is the length of the disk in bytes, a multiple of 512. It changes in Resize only.
	Size() int64
	// ReadAt fills p from offset off.
	ReadAt(ctx context.Context, p []byte, off int64) error
	// WriteAt writes all of p at offset off; of the flags only FUA may be set.
	WriteAt(ctx context.Context, p []byte, off int64, flags Flags) error
	// Flush makes every write that returned before the call durable.
	Flush(ctx context.Context) error
	// Close releases everything. No request is under way.
	Close() error
}

// ZeroWriter is a driver that can write zeroes without being sent them. NotSupported makes the node write a buffer of
// zeroes instead, unless the flags say NoFallback.
type ZeroWriter interface {
	WriteZeroes(ctx context.Context, off, n int64, flags Flags) error
}

// ZeroUnmapper is a ZeroWriter that says whether zeroes with MayUnmap really free space at present.
type ZeroUnmapper interface {
	CanZeroUnmap() bool
}

// Discarder is a driver that can free a range. What the range reads as afterwards is up to the driver; BlockStatus
// tells. NotSupported counts as done.
type Discarder interface {
	Discard(ctx context.Context, off, n int64) error
}

// StatusReporter is a driver that knows what is data and what reads as zero. It may answer for less than n bytes, never
// for more, and never for none.
type StatusReporter interface {
	BlockStatus(ctx context.Context, off, n int64) (Extent, error)
}

// Resizer is a driver whose disk can change its length, to a multiple of 512 bytes.
type Resizer interface {
	Resize(ctx context.Context, size int64) error
}

// Limits are the constraints that a driver puts on requests. Zero values mean none.
type Limits struct {
	RequestAlign int64 // offsets and lengths of reads and writes; a power of two
	MemoryAlign  int   // addresses of buffers; a power of two
	MaxTransfer  int64 // bytes in one read or write; a multiple of both alignments
	Granularity  int64 // preferred unit of change, such as the cluster size
}

// Limiter is a driver with constraints. They are asked for once, when the node opens.
type Limiter interface {
	Limits() Limits
}

// ChildPermitter decides what a node needs of a child and leaves to the other users of that child, from what its own
// users need and share. Drivers without it pass both on unchanged, as a filter does.
type ChildPermitter interface {
	ChildPermissions(child string, need, share Perm) (childNeed, childShare Perm)
}

// BackingSetter is a driver that can get a backing node while it is open, and do without. b leads to it; nil when there is
// none. The node that it leads to, and its length, may change later without another call. No request is under way.
type BackingSetter interface {
	SetBacking(b *Edge)
}

// BackingChanger is a driver whose image names its backing file, and that can write another name there: that of the image
// file, or "" for none, and its format, which may be "" for unknown. What the driver reads from is not changed by that. No
// request of the node's users is under way.
type BackingChanger interface {
	ChangeBackingFile(ctx context.Context, name, format string) error
}

// Settler is a driver that puts off part of what it writes about its image. Settle brings the image to rest: nothing is left
// in memory only, and no mark says that it is in use. It is called while no request is under way and while all permissions are
// still held, before the node is closed and before another driver takes over the image. The driver goes on afterwards as if
// nothing had been if there are more requests; without them, Close writes nothing.
type Settler interface {
	Settle(ctx context.Context) error
}

// PermissionHolder carries permissions to the world outside the graph, such as to locks on an image file. need is what
// the users of the node need together, share what all of them leave to others. A failure leaves the old state in place;
// giving up needs or sharing more cannot fail for long.
type PermissionHolder interface {
	SetPermissions(need, share Perm) error
}

// Delayer is a driver that holds requests back for longer than they take, such as to keep to a rate. Between BeginDrain
// and as many calls of EndDrain it lets all of them go at once, because a drain waits for them. Neither may block;
// EndDrain may come after Close.
type Delayer interface {
	BeginDrain()
	EndDrain()
}

// EventListener is a driver that wants to know what happens to requests on their way: "pwritev" and "pwritev_zero" before
// its node writes data or zeroes, "pwritev_done" afterwards, and what the nodes above say through [Edge.Event].
type EventListener interface {
	Event(name string)
}

// FileNamer is a driver that can be told by a file name.
type FileNamer interface {
	FileName() string
}

// AllocationReporter is a driver that knows how many bytes its image takes on the host.
type AllocationReporter interface {
	AllocatedBytes() (int64, error)
}

// SpaceReporter is a driver that knows where its image takes space on the host, whether anything was written there or not.
// What takes none reads as zero. It answers for the first length bytes of the n at off, at least one.
type SpaceReporter interface {
	Space(ctx context.Context, off, n int64) (length int64, taken bool, err error)
}

// LossForgiver is a driver whose Flush goes on failing after writes were lost. A user that alone writes to the node calls
// ForgiveLoss when it will write everything anew that it wrote since the last flush that succeeded.
type LossForgiver interface {
	ForgiveLoss()
}

// Withholder is a driver that keeps a part of what was written in the memory of the process until it is flushed, such as the tables
// of a format. What was not flushed is gone when the process dies, not only when the host does.
type Withholder interface {
	Withholds()
}

// Reconnector is a driver that makes a new session with its server when the connection is lost. f is called after a new
// session began and before any request is sent on it; unflushed says that writes which were answered and not flushed since
// may be lost, because the server may have restarted. A flush that is called before f and answered after it is one of the
// new session and says nothing about those writes. f must not wait for requests of this driver; a call may still be under
// way when cancel returns.
//
// While anybody is registered, writes, zeroes, discards and flushes that were under way when the connection was lost fail at
// once and are not sent again; the former three with an error that [IsSuspect] recognises. Reads are sent again, and so is
// what had not been sent yet, within the time that the driver may take to reconnect.
//
// The server may also say nothing while the connection lives. A request returns at once then when its context ends, whoever
// is at its buffers, and is given up. Whatever overlaps a change that was given up is sent when the server has answered that,
// or the connection is lost; so only a loss makes a given up request harmful later. A flush waits in the same way for those
// that were given up, and fails if one of them failed.
type Reconnector interface {
	OnReconnect(f func(unflushed bool)) (cancel func())
}

// SuspectReporter is a Reconnector that remembers for good where changes were under way, given up or not, when a connection
// was lost. Suspects calls f with these ranges, in the driver's own offsets; see [IsSuspect].
type SuspectReporter interface {
	Suspects(f func(off, n int64))
}

// ServerWaiter is a driver whose requests may wait for its server to come back. Waiting is nil unless they would do so now;
// it is closed when that may have changed.
type ServerWaiter interface {
	Waiting() <-chan struct{}
}

// BitmapInfo describes a dirty bitmap of a node.
type BitmapInfo struct {
	Name        string // "" for one that belongs to a job
	Granularity int64  // bytes
	Count       int64  // dirty bytes, whole granules
	Recording   bool
	Busy        bool
	Persistent  bool
	// Inconsistent: the image that keeps it was not closed properly, so that its bits mean nothing.
	Inconsistent bool
}

// StoredBitmap is a dirty bitmap as an image keeps it.
type StoredBitmap struct {
	Name         string
	Granularity  int64          // bytes, a power of two
	Recording    bool           // it takes note of writes as soon as the node is open
	Inconsistent bool           // it was in use when its image was closed improperly
	Bits         *bitmap.Bitmap // for StoreBitmaps, read only; nil for one that is inconsistent
}

// BitmapKeeper is a driver whose image can keep dirty bitmaps, so that they outlive the node. While the node is open, its
// bitmaps live in memory; the image has them as they were when it was opened, and after UseBitmaps a mark that they are not to
// be trusted. Nothing is under way on the node when the methods are called, and there is one call at a time.
type BitmapKeeper interface {
	// StoredBitmaps lists what the image has, without the bits. It does no I/O.
	StoredBitmaps() []StoredBitmap
	// ReadBitmap sets in bits, all of which are clear, those of the stored bitmap of a name, which is consistent. bits has its
	// granularity and the size of the disk.
	ReadBitmap(ctx context.Context, name string, bits *bitmap.Bitmap) error
	// CanKeepBitmap says why a bitmap cannot be stored beside n others; nil if it can.
	CanKeepBitmap(b BitmapInfo, n int) error
	// UseBitmaps marks, durably, all stored bitmaps as in use: whoever finds that mark on a disk that nobody has open takes them
	// for inconsistent. It is called, with the permission to write to the image, before the first write to the disk and before
	// the first change of a bitmap. An image that has none stays as it is.
	UseBitmaps(ctx context.Context) error
	// StoreBitmaps makes list, whose bits do not change meanwhile, all that the image keeps, and takes the mark away. What was
	// stored before is given up, but after a failure or a crash on the way none that lacks a write is there without the mark.
	// The permission to write to the image is held. What must not be written to any more, because it is corrupt, keeps its mark;
	// that is no failure.
	StoreBitmaps(ctx context.Context, list []StoredBitmap) error
}

// BitmapReporter is a driver that keeps dirty bitmaps of its own.
type BitmapReporter interface {
	Bitmaps() []BitmapInfo
}
