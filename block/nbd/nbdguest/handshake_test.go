// SPDX-License-Identifier: Apache-2.0

package nbdguest

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"path/filepath"
	"reflect"
	"testing"
)

func TestGreetingRefused(t *testing.T) {
	for name, greeting := range map[string][]any{
		"other magic":   {uint64(1), magicOption, uint16(3)},
		"oldstyle":      {magicGreeting, uint64(0x00420281861253), uint16(0)},
		"breaks off":    {magicGreeting, uint32(0)},
		"nothing comes": {},
	} {
		t.Run(name, func(t *testing.T) {
			conn := play(t, func(s *script) { s.send(greeting...) })
			_, err := NewHandshake(bounded(t), conn)
			if !errors.Is(err, ErrProtocol) && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Fatalf("error is %v", err)
			}
		})
	}
}

func TestHandshakeEndsWithContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	conn := play(t, func(s *script) {
		s.greet(3)
		s.option(OptList)
		cancel()
		s.receive(1) // until the client hangs up
	})
	h, err := NewHandshake(ctx, conn)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if _, err := h.List(ctx); !errors.Is(err, context.Canceled) {
		t.Fatalf("error is %v", err)
	}
}

func TestOptionRepliesRefused(t *testing.T) {
	for name, reply := range map[string]func(s *script){
		"magic":            func(s *script) { s.send(uint64(1), uint32(OptGo), repAck, uint32(0)) },
		"other option":     func(s *script) { s.answer(OptList, repAck) },
		"huge":             func(s *script) { s.send(magicOptionReply, uint32(OptGo), repInfo, uint32(1<<31)) },
		"ack with data":    func(s *script) { s.answer(OptGo, repAck, uint32(0)) },
		"no size":          func(s *script) { s.answer(OptGo, repAck) },
		"short size":       func(s *script) { s.answer(OptGo, repInfo, uint16(InfoExport), uint64(1)) },
		"short info":       func(s *script) { s.answer(OptGo, repInfo, uint8(0)) },
		"short block size": func(s *script) { s.answer(OptGo, repInfo, uint16(InfoBlockSize), uint64(1)) },
		"other reply":      func(s *script) { s.answer(OptGo, repServer, uint32(0)) },
	} {
		t.Run(name, func(t *testing.T) {
			conn := play(t, func(s *script) {
				s.greet(3)
				s.option(OptGo)
				reply(s)
			})
			h, err := NewHandshake(bounded(t), conn)
			if err != nil {
				t.Fatal(err)
			}
			defer h.Close()
			if _, err := h.Go(bounded(t), "disk"); !errors.Is(err, ErrProtocol) {
				t.Fatalf("error is %v", err)
			}
		})
	}
}

func TestRefusedOptionLeavesHandshakeUsable(t *testing.T) {
	conn := play(t, func(s *script) {
		s.greet(3)
		s.option(OptGo)
		s.answer(OptGo, repErrorBit|uint32(OptErrUnknown), "no such export")
		s.option(OptSetMetaContext)
		s.answer(OptSetMetaContext, repErrorBit|uint32(OptErrInvalid))
		s.option(OptList)
		s.answer(OptList, repServer, uint32(4), "disk", "a disk")
		s.answer(OptList, repServer, uint32(0))
		s.answer(OptList, repAck)
		s.option(OptAbort)
	})
	ctx := bounded(t)
	h, err := NewHandshake(ctx, conn)
	if err != nil {
		t.Fatal(err)
	}
	_, err = h.Go(ctx, "other")
	var refused *OptionError
	if !errors.As(err, &refused) || refused.Message != "no such export" || !errors.Is(err, OptErrUnknown) {
		t.Fatalf("error is %v", err)
	}
	if _, err := h.SetMetaContext(ctx, "disk", BaseAllocation); !errors.Is(err, OptErrInvalid) {
		t.Fatalf("error is %v", err)
	}
	exports, err := h.List(ctx)
	if want := []ListedExport{{"disk", "a disk"}, {"", ""}}; err != nil || !reflect.DeepEqual(exports, want) {
		t.Fatalf("list is %q, %v", exports, err)
	}
	if err := h.Abort(ctx); err != nil { // answered by closing alone
		t.Fatal(err)
	}
}

func TestListedNameTooLong(t *testing.T) {
	conn := play(t, func(s *script) {
		s.greet(3)
		s.option(OptList)
		s.answer(OptList, repServer, uint32(1<<32-1), "x")
	})
	h, err := NewHandshake(bounded(t), conn)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if _, err := h.List(bounded(t)); !errors.Is(err, ErrProtocol) {
		t.Fatalf("error is %v", err)
	}
}

// The information of an INFO option, unknown kinds of it left aside, and what
// the client asks for on the wire.
func TestInfo(t *testing.T) {
	conn := play(t, func(s *script) {
		s.greet(3)
		payload := s.option(OptInfo)
		want := binary.BigEndian.AppendUint32(nil, 4)
		want = append(want, "disk\x00\x02\x00\x01\x00\x03"...)
		if string(payload) != string(want) {
			t.Errorf("payload is %q, want %q", payload, want)
		}
		s.answer(OptInfo, repInfo, uint16(77), "what may this be")
		s.answer(OptInfo, repInfo, uint16(InfoName), "disk0")
		s.answer(OptInfo, repInfo, uint16(InfoDescription), "the first")
		s.answer(OptInfo, repInfo, uint16(InfoBlockSize), uint32(1), uint32(4096), uint32(65536))
		s.answer(OptInfo, repInfo, uint16(InfoExport), uint64(12345), uint16(HasFlags|ReadOnly))
		s.answer(OptInfo, repAck)
	})
	h, err := NewHandshake(bounded(t), conn)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	got, err := h.Info(bounded(t), "disk", InfoName, InfoBlockSize)
	want := Info{Name: "disk0", Description: "the first", Size: 12345, Flags: HasFlags | ReadOnly,
		BlockSize: BlockSizes{Minimum: 1, Preferred: 4096, Maximum: 65536}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("info is %+v, %v", got, err)
	}
}

func TestExportName(t *testing.T) {
	for name, flags := range map[string]uint16{"with padding": 0, "without": flagNoZeroes | flagFixedNewstyle} {
		t.Run(name, func(t *testing.T) {
			conn := play(t, func(s *script) {
				s.greet(flags)
				if got := s.option(OptExportName); string(got) != "disk" {
					t.Errorf("export name is %q", got)
				}
				s.send(uint64(4096), uint16(HasFlags))
				if flags&flagNoZeroes == 0 {
					s.send(make([]byte, 124))
				}
				s.simple(s.request(), 0, "abcd")
				s.receive(28)
			})
			h, err := NewHandshake(bounded(t), conn)
			if err != nil {
				t.Fatal(err)
			}
			client, err := h.ExportName(bounded(t), "disk")
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			got := make([]byte, 4)
			if err := client.ReadAt(bounded(t), got, 0); err != nil || string(got) != "abcd" || client.Size() != 4096 {
				t.Fatalf("read %q of %d bytes, %v", got, client.Size(), err)
			}
			if err := client.Disconnect(bounded(t)); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestExportNameRefused(t *testing.T) {
	conn := play(t, func(s *script) {
		s.greet(3)
		s.option(OptExportName)
	})
	h, err := NewHandshake(bounded(t), conn)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if _, err := h.ExportName(bounded(t), "disk"); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Fatalf("error is %v", err)
	}
}

// A server that knows neither structured replies nor metadata still serves.
func TestDial(t *testing.T) {
	for _, network := range []string{"unix", "tcp"} {
		t.Run(network, func(t *testing.T) {
			address := "127.0.0.1:0"
			if network == "unix" {
				address = filepath.Join(t.TempDir(), "s")
			}
			listener, err := net.Listen(network, address)
			if err != nil {
				t.Fatal(err)
			}
			done := make(chan struct{})
			go func() {
				defer close(done)
				conn, err := listener.Accept()
				if err != nil {
					t.Error(err)
					return
				}
				defer conn.Close()
				s := &script{t, conn}
				s.greet(3)
				s.option(OptStructuredReply)
				s.answer(OptStructuredReply, repErrorBit|uint32(OptErrUnsupported))
				s.option(OptGo)
				s.answer(OptGo, repInfo, uint16(InfoExport), uint64(512), uint16(HasFlags))
				s.answer(OptGo, repAck)
				s.receive(28)
			}()
			client, err := Dial(bounded(t), network, listener.Addr().String(), "disk", Options{})
			if err != nil {
				t.Fatal(err)
			}
			if info := client.Info(); info.Structured || info.Size != 512 || len(info.Contexts) != 0 {
				t.Errorf("info is %+v", info)
			}
			if err := client.Disconnect(bounded(t)); err != nil {
				t.Error(err)
			}
			<-done
			listener.Close()
			if _, err := Dial(bounded(t), network, listener.Addr().String(), "disk", Options{}); err == nil {
				t.Error("connected to nobody")
			}
		})
	}
}
