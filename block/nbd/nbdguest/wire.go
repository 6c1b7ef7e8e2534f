// SPDX-License-Identifier: Apache-2.0

package nbdguest

import "fmt"

// Magic numbers of the fixed newstyle protocol.
const (
	magicGreeting        uint64 = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption          uint64 = 0x49484156454f5054 // "IHAVEOPT"
	magicOptionReply     uint64 = 0x0003e889045565a9
	magicRequest         uint32 = 0x25609513
	magicSimpleReply     uint32 = 0x67446698
	magicStructuredReply uint32 = 0x668e33ef
)

// Handshake flags, the same bits in both directions.
const (
	flagFixedNewstyle = 1 << 0
	flagNoZeroes      = 1 << 1
)

// Bounds on what a server may make us allocate.
const (
	maxOptionReply   = 64 << 10 // bytes of one option reply
	maxOptionReplies = 64 << 10 // replies to one option
	maxStringBytes   = 4096     // the protocol's limit for names and messages
	maxErrorChunk    = 64 << 10
	maxStatusChunk   = 4 + 8<<17
	// maxTransfer is what a server accepts that announced no maximum.
	maxTransfer = 32 << 20
)

// Option is what a client asks for during the handshake.
type Option uint32

// The options this package sends.
const (
	OptExportName      Option = 1
	OptAbort           Option = 2
	OptList            Option = 3
	OptInfo            Option = 6
	OptGo              Option = 7
	OptStructuredReply Option = 8
	OptSetMetaContext  Option = 10
)

var optionNames = map[Option]string{
	OptExportName: "EXPORT_NAME", OptAbort: "ABORT", OptList: "LIST", OptInfo: "INFO",
	OptGo: "GO", OptStructuredReply: "STRUCTURED_REPLY", OptSetMetaContext: "SET_META_CONTEXT",
}

func (o Option) String() string {
	if name, ok := optionNames[o]; ok {
		return name
	}
	return fmt.Sprintf("option %d", uint32(o))
}

// Types of replies to an option; those with the high bit are errors.
const (
	repAck         uint32 = 1
	repServer      uint32 = 2
	repInfo        uint32 = 3
	repMetaContext uint32 = 4
	repErrorBit    uint32 = 1 << 31
)

// InfoType is a kind of information about an export.
type InfoType uint16

// Information an INFO or GO option may ask for.
const (
	InfoExport      InfoType = 0
	InfoName        InfoType = 1
	InfoDescription InfoType = 2
	InfoBlockSize   InfoType = 3
)

// TransmissionFlags say what an export can do.
type TransmissionFlags uint16

// Transmission flags.
const (
	HasFlags        TransmissionFlags = 1 << 0
	ReadOnly        TransmissionFlags = 1 << 1
	SendFlush       TransmissionFlags = 1 << 2
	SendFUA         TransmissionFlags = 1 << 3
	Rotational      TransmissionFlags = 1 << 4
	SendTrim        TransmissionFlags = 1 << 5
	SendWriteZeroes TransmissionFlags = 1 << 6
	SendDF          TransmissionFlags = 1 << 7
	CanMultiConn    TransmissionFlags = 1 << 8
	SendResize      TransmissionFlags = 1 << 9
	SendCache       TransmissionFlags = 1 << 10
	SendFastZero    TransmissionFlags = 1 << 11
)

// Has tells whether all the given flags are set.
func (f TransmissionFlags) Has(flags TransmissionFlags) bool { return f&flags == flags }

// CommandType is what a request asks the server to do.
type CommandType uint16

// Request types.
const (
	CmdRead        CommandType = 0
	CmdWrite       CommandType = 1
	cmdDisconnect  CommandType = 2 // only Disconnect sends it: there is no reply
	CmdFlush       CommandType = 3
	CmdTrim        CommandType = 4
	CmdCache       CommandType = 5
	CmdWriteZeroes CommandType = 6
	CmdBlockStatus CommandType = 7
)

var commandNames = map[CommandType]string{
	CmdRead: "read", CmdWrite: "write", cmdDisconnect: "disconnect", CmdFlush: "flush", CmdTrim: "trim",
	CmdCache: "cache", CmdWriteZeroes: "write zeroes", CmdBlockStatus: "block status",
}

func (t CommandType) String() string {
	if name, ok := commandNames[t]; ok {
		return name
	}
	return fmt.Sprintf("command %d", uint16(t))
}

// CommandFlags modify a request.
type CommandFlags uint16

// Request flags.
const (
	FUA      CommandFlags = 1 << 0 // answer once it is on stable storage
	NoHole   CommandFlags = 1 << 1 // write zeroes: keep the blocks allocated
	DF       CommandFlags = 1 << 2 // read: in one piece
	ReqOne   CommandFlags = 1 << 3 // block status: one extent
	FastZero CommandFlags = 1 << 4 // write zeroes: fail unless faster than writing
)

// Structured reply chunks.
const (
	chunkDone        uint16 = 1 // flag: the last chunk of a reply
	chunkNone        uint16 = 0
	chunkData        uint16 = 1
	chunkHole        uint16 = 2
	chunkStatus      uint16 = 5
	chunkError       uint16 = 1<<15 + 1
	chunkErrorOffset uint16 = 1<<15 + 2
	chunkErrorBit    uint16 = 1 << 15
)

// BaseAllocation is the metadata context that tells data, holes and zeroes.
const BaseAllocation = "base:allocation"

// Extent flags of base:allocation.
const (
	StateHole uint32 = 1 << 0 // not allocated
	StateZero uint32 = 1 << 1 // reads as zeroes
)
