// SPDX-License-Identifier: Apache-2.0

package state

import (
	"bytes"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"io"
)

const (
	magic   = "blkmirror-state"
	version = 3 // 1 had no jobs, 2 only mirrors
	// maxSize is how long a state may be, in bytes.
	maxSize = 64 << 20
	// maxBitmap is how long the bits of one bitmap may be, in bytes, in whole words.
	maxBitmap = 256<<20 + 8
)

// State is what a restart brings back. Definitions are JSON objects as the commands and options take them.
type State struct {
	Objects []Item   `json:"objects,omitempty"`
	Nodes   []Item   `json:"nodes,omitempty"`
	Bitmaps []Bitmap `json:"bitmaps,omitempty"`
	Server  *Item    `json:"nbd-server,omitempty"`
	Exports []Item   `json:"exports,omitempty"`
	Jobs    []Job    `json:"jobs,omitempty"`
}

// Job is a job that goes on.
type Job struct {
	// Command is what made it, "" for blockdev-mirror.
	Command    string          `json:"command,omitempty"`
	Definition json.RawMessage `json:"definition"` // the arguments of the command, as they would be now
	Paused     bool            `json:"paused,omitempty"`
	// Complete is what it was asked to do when it is ready: [CompleteFull], [CompleteSoft], "" for nothing.
	Complete string `json:"complete,omitempty"`
	Finalize bool   `json:"finalize,omitempty"` // it was asked to when it was pending
	// Intent is the name of the file in the directory that knows what the job has left to do; "" for a job without one.
	Intent string `json:"intent,omitempty"`
	// Flight is the name of the file that knows what may be on its way to a target behind a connection; "" for others.
	Flight string `json:"flight,omitempty"`
	// Source and Target are the files or the URIs that the disks are in, where it matters that they are the same.
	Source string `json:"source,omitempty"`
	Target string `json:"target,omitempty"`
	// Compared is how far a comparison has come, nil for nothing.
	Compared *Compared `json:"compared,omitempty"`
}

// How a job is to complete.
const (
	CompleteFull = "full" // do what it is for
	CompleteSoft = "soft" // end without that
)

// Compared is how far two disks have been compared.
type Compared struct {
	End       int64  `json:"end"`       // where it goes on, in bytes
	Differing int64  `json:"differing"` // bytes of sectors that differ before
	First     int64  `json:"first"`     // offset of the first of them
	Source    string `json:"source"`    // what tells this disk from others, and from what it was before
	Target    string `json:"target"`
	Boot      string `json:"boot"` // of the host: after another one the disks may have lost what was not durable
}

// Item is one thing with a definition.
type Item struct {
	Definition json.RawMessage `json:"definition"`
	// CommandLine is what the command line gave, for what it made and what was changed since; nil for everything else.
	CommandLine json.RawMessage `json:"command-line,omitempty"`
	// Size is the length of a node's disk in bytes, nil where it is not known to stay.
	Size *int64 `json:"size,omitempty"`
}

// Bitmap is a dirty bitmap that no image keeps.
type Bitmap struct {
	Node        string    `json:"node"`
	Name        string    `json:"name"`
	Granularity int64     `json:"granularity"` // bytes
	Recording   bool      `json:"recording"`
	Contents    *Contents `json:"contents,omitempty"` // nil while the daemon runs, and so after a crash
}

// Contents is where the bits of a bitmap are: the first chunk is the lowest bit of the first byte.
type Contents struct {
	File   string `json:"file"`
	Length int64  `json:"length"` // bytes
	CRC32C uint32 `json:"crc32c"`
	Disk   int64  `json:"disk"` // length of the disk in bytes
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksum is over everything in the file but itself.
func checksum(of, sequence uint64, body []byte) uint32 {
	crc := crc32.Checksum(fmt.Appendf(nil, "%s %d %d %d\n", magic, of, sequence, len(body)), castagnoli)
	return crc32.Update(crc, castagnoli, body)
}

// encode is a state as a file has it: a line "MAGIC VERSION SEQUENCE LENGTH CRC32C" and a body of LENGTH bytes.
func encode(sequence uint64, body []byte) []byte { return encodeAs(version, sequence, body) }

func encodeAs(of, sequence uint64, body []byte) []byte {
	head := fmt.Appendf(nil, "%s %d %d %d %08x\n", magic, of, sequence, len(body), checksum(of, sequence, body))
	return append(head, body...)
}

// decode is the way back. It takes only what encode makes, or made in an earlier version.
func decode(file []byte) (sequence uint64, body []byte, s *State, err error) {
	head, body, found := bytes.Cut(file, []byte("\n"))
	if !bytes.HasPrefix(head, []byte(magic+" ")) {
		if len(file) == 0 {
			return 0, nil, nil, fmt.Errorf("it is empty")
		}
		return 0, nil, nil, fmt.Errorf("it is no state of blkmirror: it does not begin with '%s'", magic)
	}
	var of, length uint64
	var crc uint32
	if _, err := fmt.Sscanf(string(head), magic+" %d", &of); err == nil && (of < 1 || of > version) {
		return 0, nil, nil, fmt.Errorf("it has version %d, and this program knows versions up to %d", of, version)
	}
	if !found {
		return 0, nil, nil, fmt.Errorf("it is cut off in its first line")
	}
	_, err = fmt.Sscanf(string(head), magic+" %d %d %d %x", &of, &sequence, &length, &crc)
	if err != nil {
		return 0, nil, nil, fmt.Errorf("its first line is damaged")
	}
	switch {
	case length > uint64(len(body)):
		return 0, nil, nil, fmt.Errorf("it is cut off: %d bytes of %d are there", len(body), length)
	case length < uint64(len(body)):
		return 0, nil, nil, fmt.Errorf("it is damaged: %d bytes follow its end", uint64(len(body))-length)
	case !bytes.Equal(file, encodeAs(of, sequence, body)):
		return 0, nil, nil, fmt.Errorf("it is damaged: its CRC32C is %08x and should be %08x", checksum(of, sequence, body), crc)
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	s = new(State)
	if err := d.Decode(s); err != nil {
		return 0, nil, nil, fmt.Errorf("its document makes no sense: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return 0, nil, nil, fmt.Errorf("its document is followed by something else")
	}
	if of == 1 && s.Jobs != nil {
		return 0, nil, nil, fmt.Errorf("its document makes no sense: version 1 has no jobs")
	}
	for _, j := range s.Jobs {
		if of == 2 && (j.Command != "" || j.Complete != "" || j.Finalize || j.Compared != nil) {
			return 0, nil, nil, fmt.Errorf("its document makes no sense: version 2 has only mirrors")
		}
	}
	return sequence, body, s, nil
}
