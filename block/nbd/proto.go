// SPDX-License-Identifier: Apache-2.0

package nbd

import "fmt"

// The magic numbers.
const (
	GreetingMagic        = 0x4e42444d41474943 // "NBDMAGIC"
	OptionMagic          = 0x49484156454f5054 // "IHAVEOPT", also second in the greeting
	OptionReplyMagic     = 0x0003e889045565a9
	RequestMagic         = 0x25609513
	SimpleReplyMagic     = 0x67446698
	StructuredReplyMagic = 0x668e33ef
	ExtendedRequestMagic = 0x21e41c71
	ExtendedReplyMagic   = 0x6e8a278c
)

const (
	// MaxString is the most bytes that a name, description or query may have.
	MaxString = 4096
	// MaxPayload is the most data that one read or write may carry unless the server says otherwise.
	MaxPayload = 32 << 20
)

// HandshakeFlags are the server's part of the greeting. The client's answer uses the same bits.
type HandshakeFlags uint16

// The handshake flags.
const (
	FixedNewstyle HandshakeFlags = 1 << iota
	NoZeroes                     // leave out 124 zero bytes after ExportName
)

// TransmissionFlags say what an export can do.
type TransmissionFlags uint16

// The transmission flags.
const (
	HasFlags TransmissionFlags = 1 << iota
	ReadOnly
	SendFlush
	SendFUA
	Rotational
	SendTrim
	SendWriteZeroes
	SendDF
	CanMultiConn
	SendResize
	SendCache
	SendFastZero
	BlockStatusPayload
)

// Option is a request of the handshake.
type Option uint32

// The options.
const (
	OptExportName      Option = 1
	OptAbort           Option = 2
	OptList            Option = 3
	OptStartTLS        Option = 5
	OptInfo            Option = 6
	OptGo              Option = 7
	OptStructuredReply Option = 8
	OptListMetaContext Option = 9
	OptSetMetaContext  Option = 10
	OptExtendedHeaders Option = 11
)

// ReplyType is the kind of an answer to an option. Errors have the top bit set.
type ReplyType uint32

// The types of answers to options.
const (
	RepAck         ReplyType = 1
	RepServer      ReplyType = 2
	RepInfo        ReplyType = 3
	RepMetaContext ReplyType = 4

	RepErrUnsupported  ReplyType = 1<<31 + 1
	RepErrPolicy       ReplyType = 1<<31 + 2
	RepErrInvalid      ReplyType = 1<<31 + 3
	RepErrPlatform     ReplyType = 1<<31 + 4
	RepErrTLSRequired  ReplyType = 1<<31 + 5
	RepErrUnknown      ReplyType = 1<<31 + 6
	RepErrShutdown     ReplyType = 1<<31 + 7
	RepErrBlockSize    ReplyType = 1<<31 + 8
	RepErrTooBig       ReplyType = 1<<31 + 9
	RepErrExtendedOnly ReplyType = 1<<31 + 10
)

// IsError says whether the option was refused.
func (t ReplyType) IsError() bool { return t&(1<<31) != 0 }

// InfoType is the kind of a fact about an export.
type InfoType uint16

// The types of facts.
const (
	InfoExport      InfoType = 0
	InfoName        InfoType = 1
	InfoDescription InfoType = 2
	InfoBlockSize   InfoType = 3
)

// Command is a request of the transmission phase.
type Command uint16

// The commands.
const (
	CmdRead        Command = 0
	CmdWrite       Command = 1
	CmdDisconnect  Command = 2
	CmdFlush       Command = 3
	CmdTrim        Command = 4
	CmdCache       Command = 5
	CmdWriteZeroes Command = 6
	CmdBlockStatus Command = 7
)

var commandNames = [...]string{"read", "write", "disconnect", "flush", "trim", "cache", "write-zeroes", "block-status"}

func (c Command) String() string {
	if int(c) < len(commandNames) {
		return commandNames[c]
	}
	return fmt.Sprintf("command %d", uint16(c))
}

// CommandFlags modify a request.
type CommandFlags uint16

// The command flags.
const (
	FlagFUA        CommandFlags = 1 << iota // durable before the reply
	FlagNoHole                              // write-zeroes: keep the range allocated
	FlagDF                                  // read: answer in one chunk
	FlagReqOne                              // block-status: one extent is enough
	FlagFastZero                            // write-zeroes: fail rather than be slow
	FlagPayloadLen                          // extended headers: length is that of a payload
)

// ChunkType is the kind of a chunk of a structured reply. Errors have the top bit set.
type ChunkType uint16

// The types of chunks.
const (
	ChunkNone           ChunkType = 0
	ChunkOffsetData     ChunkType = 1
	ChunkOffsetHole     ChunkType = 2
	ChunkBlockStatus    ChunkType = 5
	ChunkBlockStatusExt ChunkType = 6 // extended headers only, and always there
	ChunkError          ChunkType = 1<<15 + 1
	ChunkErrorOffset    ChunkType = 1<<15 + 2
)

// IsError says whether the chunk tells of a failure.
func (t ChunkType) IsError() bool { return t&(1<<15) != 0 }

// ChunkFlags modify a chunk.
type ChunkFlags uint16

// ChunkDone marks the last chunk of a reply.
const ChunkDone ChunkFlags = 1

// The names of metadata contexts, which say what block status tells.
const (
	BaseAllocation    = "base:allocation"       // holes and zeroes
	AllocationDepth   = "qemu:allocation-depth" // 0 for not allocated, 1 for the disk itself, 2 for its backing file, …
	DirtyBitmapPrefix = "qemu:dirty-bitmap:"    // followed by the name of a bitmap: what was written
)

// The flags of an extent in [BaseAllocation].
const (
	StateHole uint32 = 1 << iota
	StateZero
)

// StateDirty is the flag of an extent in a context that begins with [DirtyBitmapPrefix].
const StateDirty uint32 = 1
