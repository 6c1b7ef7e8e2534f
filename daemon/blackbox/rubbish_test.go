// SPDX-License-Identifier: Apache-2.0

package blackbox

import (
	"bytes"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"testing"
	"time"
)

func (d *daemon) dial(socket string) net.Conn {
	d.t.Helper()
	c, err := net.DialTimeout("unix", d.path(socket), patience)
	must(d.t, err)
	must(d.t, c.SetDeadline(time.Now().Add(patience)))
	d.t.Cleanup(func() { _ = c.Close() })
	return c
}

// A monitor that sends 100 MiB without a newline neither fills the memory nor stops anybody else.
func TestMonitorFlood(t *testing.T) {
	const flood = 100 << 20
	for name, text := range map[string]string{
		"string": `{"execute": "`, "spaces": " ", "brackets": "[", "letters": "x", "tokens": `{"execute": "query-version", "arguments": [`,
	} {
		t.Run(name, func(t *testing.T) {
			d := start(t)
			c := d.dial("qmp")
			ended := make(chan struct{})
			go func() { // what it says to this does not matter, but it must not wait for us
				_, _ = io.Copy(io.Discard, c)
				close(ended)
			}()
			_, _ = io.WriteString(c, `{"execute": "qmp_capabilities"}`+text)
			block := bytes.Repeat([]byte(map[string]string{"string": "a", "spaces": " ", "brackets": "[", "letters": "x", "tokens": "1,"}[name]), 1<<19)
			for sent := 0; sent < flood; sent += len(block) {
				if _, err := c.Write(block); err != nil {
					break // it has had enough
				}
				if sent%(16<<20) == 0 {
					d.alive()
				}
			}
			d.alive()
			if most := d.memory("VmHWM"); most > 300<<20 {
				t.Errorf("it took %d MiB", most>>20)
			}
			_ = c.Close()
			<-ended
			d.alive()
		})
	}
}

// A client that does not read is dropped before it costs much memory.
func TestMonitorThatNeverReads(t *testing.T) {
	const limit = 96 << 20
	d := start(t)
	d.disks(4<<20, nil)
	id := "m" + strings.Repeat("x", 64<<10) // long, for long events
	d.mirror(args{"job-id": id})
	d.wait("BLOCK_JOB_READY", nil)
	c := d.dial("qmp")
	_, err := io.WriteString(c, `{"execute": "qmp_capabilities"}`)
	must(t, err)
	before := d.memory("VmRSS")
	dropped := func() bool { return strings.Contains(d.stderr.String(), "does not read its events") }
	for range 4000 {
		if dropped() {
			break
		}
		d.do("job-pause", args{"id": id})
		d.do("job-resume", args{"id": id})
		for len(d.client.Events()) > 0 {
			<-d.client.Events()
		}
	}
	if !dropped() {
		t.Error("it was not dropped")
	}
	if grown := d.memory("VmHWM") - before; grown > limit {
		t.Errorf("it cost %d MiB", grown>>20)
	}
	if _, err := io.Copy(io.Discard, c); err != nil {
		t.Logf("the end of its connection: %v", err)
	}

	// One that sends commands and reads no replies is left waiting.
	c = d.dial("qmp")
	must(t, c.SetWriteDeadline(time.Now().Add(300*time.Millisecond)))
	_, err = io.WriteString(c, `{"execute": "qmp_capabilities"}`+strings.Repeat(`{"execute": "query-qmp-schema"}`, 100000))
	if err == nil {
		t.Error("it read all commands of a client that reads no replies")
	}
	if grown := d.memory("VmHWM") - before; grown > limit {
		t.Errorf("it cost %d MiB", grown>>20)
	}
	d.alive()
}

func TestNBDRubbish(t *testing.T) {
	d := start(t)
	d.disks(4<<20, nil)
	good := d.guest("src")
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	flags := []byte{0, 0, 0, 3}
	option := func(kind, length uint32, data string) []byte {
		b := append([]byte("IHAVEOPT"), binary.BigEndian.AppendUint32(nil, kind)...)
		return append(binary.BigEndian.AppendUint32(b, length), data...)
	}
	request := func(magic uint32, kind uint16, off uint64, length uint32) []byte {
		b := binary.BigEndian.AppendUint32(nil, magic)
		b = binary.BigEndian.AppendUint16(b, 0)
		b = binary.BigEndian.AppendUint16(b, kind)
		b = binary.BigEndian.AppendUint64(b, 1)
		b = binary.BigEndian.AppendUint64(b, off)
		return binary.BigEndian.AppendUint32(b, length)
	}
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	inside := join(flags, option(1, 3, "src")) // EXPORT_NAME
	for range 200 {
		noise := make([]byte, 1+random.IntN(4096))
		for i := range noise {
			noise[i] = byte(random.Uint32())
		}
		for _, message := range [][]byte{
			noise,
			join(flags, noise),
			join(flags, option(random.Uint32N(16), random.Uint32(), string(noise))),
			join(flags, option(7, uint32(len(noise)), string(noise))),
			join(flags, option(random.Uint32N(16), uint32(len(noise)), string(noise))),
			join(inside, noise),
			join(inside, request(0x25609513, uint16(random.Uint32N(16)), random.Uint64(), random.Uint32()), noise),
			join(inside, request(0x25609513, 1, 0, 1<<31)),
			join(inside, request(0x25609513, 0, 1<<63, 1<<31)),
		} {
			c := d.dial("nbd")
			_, _ = c.Write(message)
			_ = c.(*net.UnixConn).CloseWrite()
			_, _ = io.Copy(io.Discard, c)
			_ = c.Close()
		}
	}
	must(t, good.WriteAt(t.Context(), make([]byte, 4096), 0, 0))
	d.alive()
	if most := d.memory("VmHWM"); most > 200<<20 {
		t.Errorf("it took %d MiB", most>>20)
	}
}

// An NBD client that stops reading stops nobody else, and ends with its export.
func TestNBDClientThatStopsReading(t *testing.T) {
	d := start(t)
	d.disks(16<<20, nil)
	good := d.guest("src")
	c := d.dial("nbd")
	message := append([]byte{0, 0, 0, 3}, "IHAVEOPT\x00\x00\x00\x01\x00\x00\x00\x03src"...)
	for cookie := range uint64(64) {
		message = binary.BigEndian.AppendUint32(message, 0x25609513)
		message = append(message, 0, 0, 0, 0) // read
		message = binary.BigEndian.AppendUint64(message, cookie)
		message = binary.BigEndian.AppendUint64(message, 0)
		message = binary.BigEndian.AppendUint32(message, 8<<20)
	}
	_, err := c.Write(message)
	must(t, err)
	for range 100 {
		must(t, good.WriteAt(t.Context(), make([]byte, 65536), 1<<20, 0))
	}
	d.refused("block-export-del", args{"id": "export-src"}, "export-src")
	if most := d.memory("VmHWM"); most > 200<<20 {
		t.Errorf("it took %d MiB", most>>20)
	}
	d.do("block-export-del", args{"id": "export-src", "mode": "hard"})
	d.alive()
}
