// SPDX-License-Identifier: Apache-2.0

package nbdguest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
)

// BlockSizes are the sizes a server wants requests to have, in bytes. All are
// zero when the server did not say.
type BlockSizes struct {
	Minimum, Preferred, Maximum uint32
}

// Info is what the server told about an export.
type Info struct {
	Name        string // as the server calls it, or as it was asked for
	Description string
	Size        uint64 // in bytes
	Flags       TransmissionFlags
	BlockSize   BlockSizes
	Structured  bool     // replies are structured
	Contexts    []string // metadata contexts selected, sorted
}

// ListedExport is one entry of the server's list.
type ListedExport struct {
	Name, Description string
}

// List asks for the exports that the server wants to show.
func (h *Handshake) List(ctx context.Context) ([]ListedExport, error) {
	var found []ListedExport
	err := h.exchange(ctx, OptList, nil, func(kind uint32, body []byte) error {
		if kind != repServer || len(body) < 4 {
			return violation("reply of type %d with %d bytes", kind, len(body))
		}
		length, rest := binary.BigEndian.Uint32(body), body[4:]
		if uint64(length) > uint64(len(rest)) {
			return violation("export name of %d bytes in %d", length, len(rest))
		}
		found = append(found, ListedExport{Name: string(rest[:length]), Description: string(rest[length:])})
		return nil
	})
	if err != nil {
		return nil, err
	}
	return found, nil
}

// StructuredReplies asks the server for structured replies, without which
// there is no block status.
func (h *Handshake) StructuredReplies(ctx context.Context) error {
	err := h.exchange(ctx, OptStructuredReply, nil, nil)
	if err == nil {
		h.structured = true
	}
	return err
}

// SetMetaContext selects metadata contexts of an export, which must be the
// one that Go then asks for, and returns the names selected. It needs
// structured replies.
func (h *Handshake) SetMetaContext(ctx context.Context, export string, queries ...string) ([]string, error) {
	payload := appendString(nil, export)
	payload = binary.BigEndian.AppendUint32(payload, uint32(len(queries)))
	for _, query := range queries {
		payload = appendString(payload, query)
	}
	// The server forgets earlier selections even if this one fails.
	h.metaExport, h.contexts = export, nil
	selected := map[uint32]string{}
	err := h.exchange(ctx, OptSetMetaContext, payload, func(kind uint32, body []byte) error {
		if kind != repMetaContext || len(body) < 4 {
			return violation("reply of type %d with %d bytes", kind, len(body))
		}
		id := binary.BigEndian.Uint32(body)
		if _, again := selected[id]; again {
			return violation("metadata context number %d twice", id)
		}
		selected[id] = string(body[4:])
		return nil
	})
	if err != nil {
		return nil, err
	}
	h.contexts = selected
	return slices.Sorted(maps.Values(selected)), nil
}

// Info asks about an export; wants names the information beyond size and
// flags. A server may tell more, or less.
func (h *Handshake) Info(ctx context.Context, export string, wants ...InfoType) (Info, error) {
	return h.describe(ctx, OptInfo, export, wants)
}

// Go enters transmission with an export. Asking for InfoBlockSize promises to
// keep to the sizes that the server then gives.
func (h *Handshake) Go(ctx context.Context, export string, wants ...InfoType) (*Client, error) {
	info, err := h.describe(ctx, OptGo, export, wants)
	if err != nil {
		return nil, err
	}
	return h.transmit(export, info), nil
}

func (h *Handshake) describe(ctx context.Context, option Option, export string, wants []InfoType) (Info, error) {
	payload := appendString(nil, export)
	payload = binary.BigEndian.AppendUint16(payload, uint16(len(wants)))
	for _, want := range wants {
		payload = binary.BigEndian.AppendUint16(payload, uint16(want))
	}
	info, complete := Info{Name: export, Structured: h.structured}, false
	err := h.exchange(ctx, option, payload, func(kind uint32, body []byte) error {
		if kind != repInfo || len(body) < 2 {
			return violation("reply of type %d with %d bytes", kind, len(body))
		}
		what, body := InfoType(binary.BigEndian.Uint16(body)), body[2:]
		complete = complete || what == InfoExport
		return info.take(what, body)
	})
	if err != nil {
		return Info{}, err
	}
	if !complete {
		return Info{}, fmt.Errorf("NBD %v: %w", option, violation("no size and flags"))
	}
	return info, nil
}

// take understands one piece of information; unknown ones are ignored, as
// the protocol demands.
func (i *Info) take(what InfoType, body []byte) error {
	switch what {
	case InfoExport:
		if len(body) != 10 {
			return violation("size and flags in %d bytes", len(body))
		}
		i.Size = binary.BigEndian.Uint64(body)
		i.Flags = TransmissionFlags(binary.BigEndian.Uint16(body[8:]))
	case InfoName, InfoDescription:
		if len(body) > maxStringBytes {
			return violation("name or description of %d bytes", len(body))
		}
		if what == InfoName {
			i.Name = string(body)
		} else {
			i.Description = string(body)
		}
	case InfoBlockSize:
		if len(body) != 12 {
			return violation("block sizes in %d bytes", len(body))
		}
		i.BlockSize = BlockSizes{
			Minimum:   binary.BigEndian.Uint32(body),
			Preferred: binary.BigEndian.Uint32(body[4:]),
			Maximum:   binary.BigEndian.Uint32(body[8:]),
		}
	}
	return nil
}

// ExportName enters transmission the old way. The server can refuse it only
// by closing the connection.
func (h *Handshake) ExportName(ctx context.Context, export string) (*Client, error) {
	info := Info{Name: export, Structured: h.structured}
	err := h.bounded(ctx, func() error {
		if err := h.sendOption(OptExportName, []byte(export)); err != nil {
			return err
		}
		reply := make([]byte, 10, 134)
		if !h.noZeroes {
			reply = reply[:134]
		}
		if err := h.receive(reply); err != nil {
			return err
		}
		return info.take(InfoExport, reply[:10])
	})
	if err != nil {
		return nil, fmt.Errorf("NBD EXPORT_NAME %q: %w", export, err)
	}
	return h.transmit(export, info), nil
}

// Options vary the handshake that Dial does.
type Options struct {
	// SimpleReplies leaves out structured replies, and with them block status.
	SimpleReplies bool
	// ExportName uses the old option in place of GO.
	ExportName bool
	// Infos are asked for with GO.
	Infos []InfoType
}

// Dial connects and enters transmission with an export: with structured
// replies and base:allocation as far as the server has them.
func Dial(ctx context.Context, network, address, export string, options Options) (*Client, error) {
	h, err := Connect(ctx, network, address)
	if err != nil {
		return nil, err
	}
	client, err := h.negotiate(ctx, export, options)
	if err != nil {
		h.Close()
		return nil, err
	}
	return client, nil
}

func (h *Handshake) negotiate(ctx context.Context, export string, options Options) (*Client, error) {
	var refused *OptionError
	if !options.SimpleReplies && h.fixed {
		if err := h.StructuredReplies(ctx); err != nil && !errors.As(err, &refused) {
			return nil, err
		}
	}
	if h.structured {
		// Refused also when the export is unknown; GO then says so.
		if _, err := h.SetMetaContext(ctx, export, BaseAllocation); err != nil && !errors.As(err, &refused) {
			return nil, err
		}
	}
	if options.ExportName || !h.fixed {
		return h.ExportName(ctx, export)
	}
	return h.Go(ctx, export, options.Infos...)
}

func appendString(message []byte, text string) []byte {
	message = binary.BigEndian.AppendUint32(message, uint32(len(text)))
	return append(message, text...)
}
