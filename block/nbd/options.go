// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"errors"
	"fmt"
	"math"
)

// ExportQuery is the data of Info and Go: an export, and what the client wants to know about it.
type ExportQuery struct {
	Name  string
	Infos []InfoType
}

// Append adds the data.
func (q ExportQuery) Append(b []byte) []byte {
	b = appendString(b, q.Name)
	b = be.AppendUint16(b, uint16(len(q.Infos)))
	for _, t := range q.Infos {
		b = be.AppendUint16(b, uint16(t))
	}
	return b
}

// ParseExportQuery reads the data of Info and Go.
func ParseExportQuery(b []byte) (ExportQuery, error) {
	f := fields{rest: b}
	q := ExportQuery{Name: f.string()}
	for range f.uint16() {
		t := InfoType(f.uint16())
		if f.err != nil {
			break
		}
		q.Infos = append(q.Infos, t)
	}
	return q, f.end()
}

// MetaQuery is the data of ListMetaContext and SetMetaContext: an export and patterns of metadata contexts.
type MetaQuery struct {
	Name    string
	Queries []string
}

// Append adds the data.
func (q MetaQuery) Append(b []byte) []byte {
	b = appendString(b, q.Name)
	b = be.AppendUint32(b, uint32(len(q.Queries)))
	for _, s := range q.Queries {
		b = appendString(b, s)
	}
	return b
}

// ParseMetaQuery reads the data of ListMetaContext and SetMetaContext.
func ParseMetaQuery(b []byte) (MetaQuery, error) {
	f := fields{rest: b}
	q := MetaQuery{Name: f.string()}
	for range f.uint32() {
		s := f.string()
		if f.err != nil {
			break
		}
		q.Queries = append(q.Queries, s)
	}
	return q, f.end()
}

// MetaContext is the data of an answer of type RepMetaContext.
type MetaContext struct {
	ID   uint32 // names the context in block status replies
	Name string
}

// Append adds the data.
func (c MetaContext) Append(b []byte) []byte { return append(be.AppendUint32(b, c.ID), c.Name...) }

// ParseMetaContext reads the data of an answer of type RepMetaContext.
func ParseMetaContext(b []byte) (MetaContext, error) {
	f := fields{rest: b}
	id := f.uint32()
	return MetaContext{id, string(f.rest)}, f.err
}

// ServerEntry is the data of an answer of type RepServer: one export of a list.
type ServerEntry struct{ Name, Description string }

// Append adds the data.
func (e ServerEntry) Append(b []byte) []byte {
	return append(appendString(b, e.Name), e.Description...)
}

// ParseServerEntry reads the data of an answer of type RepServer.
func ParseServerEntry(b []byte) (ServerEntry, error) {
	f := fields{rest: b}
	name := f.string()
	return ServerEntry{name, string(f.rest)}, f.err
}

// ExportInfo is the fact of type InfoExport.
type ExportInfo struct {
	Size  uint64 // bytes
	Flags TransmissionFlags
}

// Append adds the fact.
func (i ExportInfo) Append(b []byte) []byte {
	b = be.AppendUint16(b, uint16(InfoExport))
	b = be.AppendUint64(b, i.Size)
	return be.AppendUint16(b, uint16(i.Flags))
}

// BlockSizes is the fact of type InfoBlockSize: what requests an export takes, in bytes.
type BlockSizes struct{ Minimum, Preferred, Maximum uint32 }

// Append adds the fact.
func (s BlockSizes) Append(b []byte) []byte {
	b = be.AppendUint16(b, uint16(InfoBlockSize))
	b = be.AppendUint32(b, s.Minimum)
	b = be.AppendUint32(b, s.Preferred)
	return be.AppendUint32(b, s.Maximum)
}

// AppendTextInfo adds a fact of type InfoName or InfoDescription.
func AppendTextInfo(b []byte, t InfoType, text string) []byte {
	return append(be.AppendUint16(b, uint16(t)), text...)
}

// Info is any fact about an export; the field that belongs to its type is set.
type Info struct {
	Type       InfoType
	Export     ExportInfo
	BlockSizes BlockSizes
	Text       string // name or description
}

// ParseInfo reads a fact. Types that it does not know have nothing but their type set.
func ParseInfo(b []byte) (Info, error) {
	f := fields{rest: b}
	info := Info{Type: InfoType(f.uint16())}
	switch info.Type {
	case InfoExport:
		info.Export = ExportInfo{f.uint64(), TransmissionFlags(f.uint16())}
	case InfoBlockSize:
		info.BlockSizes = BlockSizes{f.uint32(), f.uint32(), f.uint32()}
		if f.err == nil {
			f.err = info.BlockSizes.check()
		}
	case InfoName, InfoDescription:
		if len(f.rest) > MaxString {
			return info, fmt.Errorf("a string of %d bytes, %d is the most", len(f.rest), MaxString)
		}
		info.Text = string(f.bytes(len(f.rest)))
	default:
		return info, f.err
	}
	return info, f.end()
}

func (s BlockSizes) check() error {
	power := func(n uint32) bool { return n != 0 && n&(n-1) == 0 }
	switch {
	case !power(s.Minimum), !power(s.Preferred), s.Minimum > s.Preferred:
		return fmt.Errorf("block sizes %d and %d are no powers of two in order", s.Minimum, s.Preferred)
	case s.Maximum < s.Minimum, s.Maximum%s.Minimum != 0 && s.Maximum != math.MaxUint32:
		return errors.New("the largest request is no multiple of the smallest")
	}
	return nil
}
