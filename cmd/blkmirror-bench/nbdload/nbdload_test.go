// SPDX-License-Identifier: Apache-2.0

package nbdload

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/blkmirror/blkmirror/block/nbd"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// size is that of the server's export, in blocks of 512 bytes.
const (
	block  = 512
	blocks = 64
)

// server is a scripted NBD server, which answers each batch of requests backwards.
type server struct {
	t       *testing.T
	content []byte
	seen    map[nbd.Command]int
	fail    nbd.Command // answered with EIO
	silent  bool        // never answers a request
}

// listen serves so many connections, and returns the socket and a function that waits until they have ended.
func (s *server) listen(connections int) (socket string, wait func()) {
	s.t.Helper()
	s.content, s.seen = make([]byte, block*blocks), map[nbd.Command]int{}
	socket = filepath.Join(s.t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		s.t.Fatal(err)
	}
	done := make(chan struct{})
	conns := make([]net.Conn, connections)
	go func() {
		defer close(done)
		defer l.Close()
		for i := range conns {
			if conns[i], err = l.Accept(); err != nil {
				s.t.Error(err)
				return
			}
			defer conns[i].Close()
			if err := s.handshake(conns[i]); err != nil {
				s.t.Error(err)
				return
			}
		}
		for _, c := range conns { // one after the other: the test has few requests
			s.transmission(c)
		}
	}()
	return socket, func() { <-done }
}

func (s *server) handshake(c net.Conn) error {
	if _, err := c.Write(nbd.AppendGreeting(nil, nbd.FixedNewstyle|nbd.NoZeroes)); err != nil {
		return err
	}
	in := make([]byte, nbd.ClientFlagsSize+nbd.OptionSize)
	if _, err := io.ReadFull(c, in); err != nil {
		return err
	}
	header, err := nbd.ParseOptionHeader(in[nbd.ClientFlagsSize:])
	if err != nil {
		return err
	}
	query := make([]byte, header.Length)
	if _, err := io.ReadFull(c, query); err != nil {
		return err
	}
	q, err := nbd.ParseExportQuery(query)
	if err != nil || header.Option != nbd.OptGo {
		return errors.Join(err, errors.New("not GO"))
	}
	if q.Name != "disk" {
		_, err := c.Write(nbd.OptionReply{Option: nbd.OptGo, Type: nbd.RepErrUnknown}.Append(nil))
		return err
	}
	info := nbd.ExportInfo{Size: block * blocks, Flags: nbd.HasFlags}.Append(nil)
	out := nbd.OptionReply{Option: nbd.OptGo, Type: nbd.RepInfo, Length: uint32(len(info))}.Append(nil)
	out = nbd.OptionReply{Option: nbd.OptGo, Type: nbd.RepAck}.Append(append(out, info...))
	_, err = c.Write(out)
	return err
}

func (s *server) transmission(c net.Conn) {
	var batch []nbd.Request
	header := make([]byte, nbd.RequestSize)
	for {
		if _, err := io.ReadFull(c, header); err != nil {
			return // the client has left
		}
		r, err := nbd.ParseRequest(header)
		if err != nil {
			s.t.Error(err)
			return
		}
		if r.Command == nbd.CmdDisconnect {
			return
		}
		s.seen[r.Command]++
		if r.Offset+r.Length > block*blocks || r.Length != block || r.Offset%block != 0 {
			s.t.Errorf("request %+v", r)
			return
		}
		if r.Command == nbd.CmdWrite {
			if _, err := io.ReadFull(c, s.content[r.Offset:][:r.Length]); err != nil {
				s.t.Error(err)
				return
			}
		}
		if s.silent {
			continue
		}
		// Hold one reply back: that of the request before comes after it.
		batch = append(batch, r)
		if len(batch) == 2 || s.seen[r.Command]%2 == 0 {
			for i := len(batch) - 1; i >= 0; i-- {
				s.answer(c, batch[i])
			}
			batch = nil
		}
	}
}

func (s *server) answer(c net.Conn, r nbd.Request) {
	reply := nbd.SimpleReply{Cookie: r.Cookie}
	if r.Command == s.fail {
		reply.Error = nbd.EIO
	}
	out := reply.Append(nil)
	if r.Command == nbd.CmdRead && reply.Error == 0 {
		out = append(out, s.content[r.Offset:][:r.Length]...)
	}
	if _, err := c.Write(out); err != nil {
		s.t.Log(err) // the client may have given up
	}
}

func TestRun(t *testing.T) {
	for name, load := range map[string]Load{
		"writes in sequence": {Command: nbd.CmdWrite, Block: block, Depth: 2, Connections: 1, Requests: blocks},
		"random reads":       {Command: nbd.CmdRead, Block: block, Depth: 4, Connections: 1, Requests: 100, Random: true},
		"two connections":    {Command: nbd.CmdWriteZeroes, Block: block, Depth: 2, Connections: 2, Requests: 40},
	} {
		t.Run(name, func(t *testing.T) {
			s := &server{t: t, fail: nbd.CmdDisconnect}
			socket, wait := s.listen(load.Connections)
			r, err := Run(t.Context(), socket, "disk", load)
			wait()
			if err != nil {
				t.Fatal(err)
			}
			if r.Requests != load.Requests || s.seen[load.Command] != int(load.Requests) || len(s.seen) != 1 {
				t.Errorf("%+v; the server saw %v", r, s.seen)
			}
			if r.P50 <= 0 || r.P99 < r.P50 || r.Wall < r.P99 {
				t.Errorf("%+v", r)
			}
			if load.Command == nbd.CmdWrite {
				for at := range blocks {
					if bytes.Equal(s.content[at*block:][:block], make([]byte, block)) {
						t.Errorf("block %d was not written", at)
					}
				}
			}
		})
	}
}

func TestRunFails(t *testing.T) {
	load := Load{Command: nbd.CmdRead, Block: block, Depth: 2, Connections: 1, Requests: 10}
	s := &server{t: t, fail: nbd.CmdRead}
	socket, wait := s.listen(1)
	_, err := Run(t.Context(), socket, "disk", load)
	wait()
	if !errors.Is(err, nbd.EIO) {
		t.Errorf("error %v, want EIO", err)
	}
	s = &server{t: t}
	socket, wait = s.listen(1)
	if _, err = Run(t.Context(), socket, "other", load); err == nil || !strings.Contains(err.Error(), "refuses") {
		t.Errorf("error %v, want a refusal", err)
	}
	wait()
	if _, err := Run(t.Context(), socket, "disk", Load{}); err == nil {
		t.Error("a load of nothing")
	}
}

// TestRunIsBounded has a server that does not answer.
func TestRunIsBounded(t *testing.T) {
	s := &server{t: t, silent: true}
	socket, wait := s.listen(1)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := Run(ctx, socket, "disk", Load{Command: nbd.CmdRead, Block: block, Depth: 2, Connections: 1, Requests: 10})
	wait()
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
}
