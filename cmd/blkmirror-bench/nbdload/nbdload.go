// SPDX-License-Identifier: Apache-2.0

// Package nbdload makes NBD requests as fast as a server answers them, and measures how long each takes.
//
// A connection is one goroutine. It keeps a fixed number of requests in flight (the depth): it fills its window, sleeps until
// answers arrive, and sends a new request for each; whatever arrived together is answered with requests in one write.
// That costs little beside the server, which matters on machines with few processors, and it is the same for all servers.
// Replies are simple ones, which every server has.
package nbdload

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/blkmirror/blkmirror/block/nbd"
	"github.com/blkmirror/blkmirror/cmd/blkmirror-bench/result"
)

// Load is what to do.
type Load struct {
	Command     nbd.Command // CmdRead, CmdWrite, CmdWriteZeroes or CmdTrim
	Flags       nbd.CommandFlags
	Block       int  // bytes of a request
	Random      bool // at random multiples of Block; otherwise one after the other, from the start again at the end
	Depth       int  // requests in flight, per connection
	Connections int
	Requests    int64         // how many in all; 0 for no limit
	Time        time.Duration // how long; 0 for no limit
	Seed        uint64
}

// Result is what a load measured.
type Result struct {
	Requests int64
	Wall     time.Duration
	P50, P99 time.Duration // latency of a request
}

// Run puts a load on an export of a server that listens on a Unix socket. It ends early, with an error, if a request fails
// or ctx ends.
func Run(ctx context.Context, socket, export string, load Load) (Result, error) {
	if load.Block <= 0 || load.Depth <= 0 || load.Connections <= 0 || load.Requests <= 0 && load.Time <= 0 {
		return Result{}, errors.New("a load needs a block size, depth, connections, and an end")
	}
	conns := make([]*conn, load.Connections)
	defer func() {
		for _, c := range conns {
			if c != nil {
				c.Close()
			}
		}
	}()
	for i := range conns {
		c, err := dial(ctx, socket, export)
		if err != nil {
			return Result{}, err
		}
		conns[i] = c
		if c.size < uint64(load.Block) {
			return Result{}, fmt.Errorf("export %q has %d bytes, less than a request", export, c.size)
		}
	}
	stop := context.AfterFunc(ctx, func() {
		for _, c := range conns {
			c.SetDeadline(time.Unix(1, 0))
		}
	})
	defer stop()

	start := time.Now()
	var workers sync.WaitGroup
	latencies, errs := make([][]float64, len(conns)), make([]error, len(conns))
	for i, c := range conns {
		workers.Go(func() {
			share := load.Requests / int64(len(conns))
			if int64(i) < load.Requests%int64(len(conns)) {
				share++
			}
			latencies[i], errs[i] = c.run(load, i, start, share)
		})
	}
	workers.Wait()
	wall := time.Since(start)
	if err := errors.Join(errs...); err != nil {
		return Result{}, errors.Join(context.Cause(ctx), err)
	}
	all := slices.Concat(latencies...)
	slices.Sort(all)
	r := Result{Requests: int64(len(all)), Wall: wall}
	if len(all) > 0 {
		r.P50, r.P99 = time.Duration(result.Percentile(all, 50)), time.Duration(result.Percentile(all, 99))
	}
	return r, nil
}

// run is one connection's part: share requests, or as many as fit into the time. It returns their latencies in
// nanoseconds.
func (c *conn) run(load Load, number int, start time.Time, share int64) (latencies []float64, err error) {
	rng := rand.New(rand.NewPCG(load.Seed, uint64(number)))
	blocks := int64(c.size / uint64(load.Block))
	// Connections that work in sequence share the disk among them.
	next := blocks * int64(number) / int64(load.Connections)
	data := make([]byte, load.Block)
	for i := range data {
		data[i] = byte(rng.Uint32())
	}
	sent := make([]time.Time, load.Depth) // by cookie
	var out []byte
	var issued int64
	more := func() bool {
		return (load.Requests == 0 || issued < share) && (load.Time == 0 || time.Since(start) < load.Time)
	}
	issue := func(cookie int) {
		at := next % blocks
		if load.Random {
			at = rng.Int64N(blocks)
		}
		next++
		issued++
		out = nbd.Request{Flags: load.Flags, Command: load.Command, Cookie: uint64(cookie), Offset: uint64(at) * uint64(load.Block),
			Length: uint64(load.Block)}.Append(out)
		if load.Command == nbd.CmdWrite {
			// Every write has other data than the ones before it.
			out = append(out, data...)
			copy(out[len(out)-8:], fmt.Appendf(nil, "%08x", uint32(issued)))
		}
		sent[cookie] = time.Now()
	}
	in := bufio.NewReaderSize(c, 256<<10)
	flying := 0
	for cookie := range load.Depth {
		if more() {
			issue(cookie)
			flying++
		}
	}
	header := make([]byte, nbd.SimpleReplySize)
	for flying > 0 {
		if in.Buffered() < nbd.SimpleReplySize && len(out) > 0 {
			if _, err := c.Write(out); err != nil {
				return nil, err
			}
			out = out[:0]
		}
		if _, err := io.ReadFull(in, header); err != nil {
			return nil, err
		}
		reply, err := nbd.ParseSimpleReply(header)
		if err != nil {
			return nil, err
		}
		if reply.Error != 0 {
			return nil, fmt.Errorf("%v failed: %w", load.Command, reply.Error)
		}
		if reply.Cookie >= uint64(load.Depth) {
			return nil, fmt.Errorf("reply to request %d, which was never sent", reply.Cookie)
		}
		if load.Command == nbd.CmdRead {
			// The rest of this reply may come only when the requests have left.
			if in.Buffered() < load.Block && len(out) > 0 {
				if _, err := c.Write(out); err != nil {
					return nil, err
				}
				out = out[:0]
			}
			if _, err := io.ReadFull(in, data); err != nil {
				return nil, err
			}
		}
		latencies = append(latencies, float64(time.Since(sent[reply.Cookie])))
		if more() {
			issue(int(reply.Cookie))
		} else {
			flying--
		}
	}
	return latencies, c.disconnect()
}

// conn is a connection in transmission.
type conn struct {
	net.Conn
	size uint64
}

func (c *conn) disconnect() error {
	_, err := c.Write(nbd.Request{Command: nbd.CmdDisconnect}.Append(nil))
	return err
}

// dial connects and asks for an export.
func dial(ctx context.Context, socket, export string) (c *conn, err error) {
	var d net.Dialer
	raw, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			raw.Close()
		}
	}()
	stop := context.AfterFunc(ctx, func() { raw.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	receive := func(n int) ([]byte, error) {
		b := make([]byte, n)
		_, err := io.ReadFull(raw, b)
		return b, err
	}
	greeting, err := receive(nbd.GreetingSize)
	if err != nil {
		return nil, err
	}
	flags, err := nbd.ParseGreeting(greeting)
	if err != nil {
		return nil, err
	}
	query := nbd.ExportQuery{Name: export}.Append(nil)
	out := nbd.AppendClientFlags(nil, flags&(nbd.FixedNewstyle|nbd.NoZeroes))
	out = nbd.OptionHeader{Option: nbd.OptGo, Length: uint32(len(query))}.Append(out)
	if _, err := raw.Write(append(out, query...)); err != nil {
		return nil, err
	}
	c = &conn{Conn: raw}
	for {
		header, err := receive(nbd.OptionReplySize)
		if err != nil {
			return nil, err
		}
		reply, err := nbd.ParseOptionReply(header)
		if err != nil {
			return nil, err
		}
		if reply.Length > nbd.MaxString+64 {
			return nil, fmt.Errorf("answer of %d bytes to an option", reply.Length)
		}
		data, err := receive(int(reply.Length))
		switch {
		case err != nil:
			return nil, err
		case reply.Type.IsError():
			return nil, fmt.Errorf("the server refuses export %q: %s (%#x)", export, data, uint32(reply.Type))
		case reply.Type == nbd.RepAck:
			return c, nil
		case reply.Type == nbd.RepInfo:
			info, err := nbd.ParseInfo(data)
			if err != nil {
				return nil, err
			}
			if info.Type == nbd.InfoExport {
				c.size = info.Export.Size
			}
		}
	}
}
