// SPDX-License-Identifier: Apache-2.0

package nbdguest

import (
	"context"
	"fmt"
)

// pieceBytes is the largest read or write that the server takes.
func (c *Client) pieceBytes() int {
	if maximum := c.info.BlockSize.Maximum; maximum > 0 && maximum < maxTransfer {
		return int(maximum)
	}
	return maxTransfer
}

// transfer reads or writes in as many requests as it takes, all of them in
// flight at once, and waits for them.
func (c *Client) transfer(ctx context.Context, kind CommandType, data []byte, offset uint64, flags CommandFlags) error {
	var requests []*Request
	for size := c.pieceBytes(); len(data) > 0; {
		piece := data[:min(size, len(data))]
		requests = append(requests, c.Submit(Command{Type: kind, Flags: flags, Offset: offset, Data: piece}))
		offset, data = offset+uint64(len(piece)), data[len(piece):]
	}
	var first error
	for _, request := range requests {
		if err := request.Wait(ctx); err != nil && first == nil {
			first = err
		}
	}
	return first
}

// ReadAt fills data from the given offset on. If it fails because ctx ended,
// data still belongs to the client until that is closed.
func (c *Client) ReadAt(ctx context.Context, data []byte, offset uint64) error {
	return c.transfer(ctx, CmdRead, data, offset, 0)
}

// WriteAt writes data to the given offset. If it fails because ctx ended, data
// still belongs to the client until that is closed.
func (c *Client) WriteAt(ctx context.Context, data []byte, offset uint64, flags CommandFlags) error {
	return c.transfer(ctx, CmdWrite, data, offset, flags)
}

func (c *Client) once(ctx context.Context, command Command) error {
	return c.Submit(command).Wait(ctx)
}

// Zero makes a range read as zeroes.
func (c *Client) Zero(ctx context.Context, offset uint64, length uint32, flags CommandFlags) error {
	return c.once(ctx, Command{Type: CmdWriteZeroes, Flags: flags, Offset: offset, Length: length})
}

// Trim says that the content of a range is no longer needed.
func (c *Client) Trim(ctx context.Context, offset uint64, length uint32, flags CommandFlags) error {
	return c.once(ctx, Command{Type: CmdTrim, Flags: flags, Offset: offset, Length: length})
}

// Flush makes all completed writes durable.
func (c *Client) Flush(ctx context.Context) error {
	return c.once(ctx, Command{Type: CmdFlush})
}

// Status gives the base:allocation extents of a range, all of it: it asks
// again where the server stopped, and joins neighbours with equal flags.
func (c *Client) Status(ctx context.Context, offset, length uint64) ([]Extent, error) {
	var found []Extent
	for asked := false; length > 0 || !asked; asked = true {
		request := c.Submit(Command{Type: CmdBlockStatus, Offset: offset, Length: uint32(min(length, 1<<30))})
		if err := request.Wait(ctx); err != nil {
			return nil, err
		}
		extents := request.Extents(BaseAllocation)
		if len(extents) == 0 {
			return nil, fmt.Errorf("NBD block status of %d bytes at %d: the server does not serve %s",
				length, offset, BaseAllocation)
		}
		for _, extent := range extents {
			if last := len(found) - 1; last >= 0 && found[last].Flags == extent.Flags {
				found[last].Length += extent.Length
			} else {
				found = append(found, extent)
			}
			offset, length = offset+extent.Length, length-extent.Length
		}
	}
	return found, nil
}
