// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/blkmirror/blkmirror/qmp"
)

// Execute runs a command and waits for its reply.
//
// args are the arguments: nil, a *qmp.Object, a generated type, or anything
// that encoding/json turns into an object. result is filled from what the
// command returns, unless it is nil: a generated type or slice of one, a
// *any, or anything that encoding/json can fill.
func (c *Client) Execute(ctx context.Context, command string, args, result any) error {
	arguments, err := encodeArguments(args)
	if err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	answer, id, err := c.send(ctx, command, arguments)
	if err != nil {
		return err
	}
	select {
	case r := <-answer:
		if r.err != nil {
			return r.err
		}
		if err := decodeResult(r.value, result); err != nil {
			return fmt.Errorf("result of %s: %w", command, err)
		}
		return nil
	case <-ctx.Done():
		c.mu.Lock()
		delete(c.mu.pending, id)
		c.mu.Unlock()
		return ctx.Err()
	}
}

// send writes a command, and returns where its reply will be.
func (c *Client) send(ctx context.Context, command string, arguments []byte) (<-chan reply, int64, error) {
	select {
	case c.writing <- struct{}{}:
	case <-ctx.Done():
		return nil, 0, ctx.Err()
	}
	defer func() { <-c.writing }()

	answer := make(chan reply, 1)
	c.mu.Lock()
	if c.mu.failed != nil {
		defer c.mu.Unlock()
		return nil, 0, c.mu.failed
	}
	c.mu.lastID++
	id := c.mu.lastID
	c.mu.pending[id] = answer
	c.mu.Unlock()

	if err := c.write(ctx, encodeRequest(command, arguments, id)); err != nil {
		return nil, 0, err
	}
	return answer, id, nil
}

// write writes a whole message. If that fails, even because ctx ended, the
// server may have half of it, and the connection is of no use.
func (c *Client) write(ctx context.Context, text []byte) error {
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(interrupted)
		c.conn.SetWriteDeadline(time.Unix(1, 0))
	})
	_, err := c.conn.Write(text)
	if !stop() {
		<-interrupted
		c.conn.SetWriteDeadline(time.Time{})
	}
	if err == nil {
		return nil
	}
	err = fmt.Errorf("QMP connection: %w", err)
	c.fail(err)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

func encodeRequest(command string, arguments []byte, id int64) []byte {
	e := qmp.NewEncoder(nil, false)
	e.BeginObject()
	e.Key("execute")
	e.String(command)
	if arguments != nil {
		e.Key("arguments")
		e.Raw(arguments)
	}
	e.Key("id")
	e.Int(id)
	e.EndObject()
	e.EndLine()
	return e.Bytes()
}

// encodeArguments returns arguments as JSON, or nil for none.
func encodeArguments(args any) ([]byte, error) {
	switch args := args.(type) {
	case nil:
		return nil, nil
	case *qmp.Object, qmp.Encodable:
		return qmp.Encode(args), nil
	}
	text, err := json.Marshal(args)
	if err == nil && (len(text) == 0 || text[0] != '{') {
		err = fmt.Errorf("arguments of type %T are not an object", args)
	}
	return text, err
}

// decodeResult fills result from a value.
func decodeResult(value, result any) error {
	switch result := result.(type) {
	case nil:
		return nil
	case *any:
		*result = value
		return nil
	case qmp.Decodable:
		return qmp.DecodeValue(value, qmp.Lenient, result)
	}
	return json.Unmarshal(qmp.Encode(value), result)
}
