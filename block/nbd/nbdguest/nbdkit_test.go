// SPDX-License-Identifier: Apache-2.0

package nbdguest

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"reflect"
	"syscall"
	"testing"
)

// nbdkit starts a server for one connection, which is a socket pair, and
// returns our end of it. The server ends with the connection.
func nbdkit(t *testing.T, arguments ...string) net.Conn {
	t.Helper()
	program, err := exec.LookPath("nbdkit")
	if err != nil {
		t.Skipf("needs nbdkit: %v", err)
	}
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "ours"), os.NewFile(uintptr(pair[1]), "theirs")
	defer ours.Close()
	defer theirs.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		t.Fatal(err)
	}
	var complaints bytes.Buffer
	server := exec.Command(program, append([]string{"-s"}, arguments...)...)
	server.Stdin, server.Stdout, server.Stderr = theirs, theirs, &complaints
	if err := server.Start(); err != nil {
		conn.Close()
		t.Skipf("cannot start nbdkit: %v", err)
	}
	t.Cleanup(func() {
		conn.Close()
		if err := server.Wait(); err != nil || t.Failed() {
			t.Logf("nbdkit: %v: %s", err, complaints.String())
		}
	})
	return conn
}

func TestNbdkitMemory(t *testing.T) {
	for name, options := range map[string]Options{
		"structured":  {Infos: []InfoType{InfoBlockSize, InfoName, InfoDescription}},
		"simple":      {SimpleReplies: true},
		"export name": {ExportName: true},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := bounded(t)
			h, err := NewHandshake(ctx, nbdkit(t, "memory", "4M"))
			if err != nil {
				t.Fatal(err)
			}
			client, err := h.negotiate(ctx, "", options)
			if err != nil {
				h.Close()
				t.Fatal(err)
			}
			defer client.Close()
			info := client.Info()
			if info.Size != 4<<20 || info.Structured == options.SimpleReplies ||
				!info.Flags.Has(HasFlags|SendFlush|SendFUA|SendTrim|SendWriteZeroes) || info.Flags.Has(ReadOnly) {
				t.Errorf("info is %+v", info)
			}
			exercise(t, client)
			if info.Structured {
				exerciseStatus(t, client)
			}
			if err := client.Disconnect(ctx); err != nil {
				t.Error(err)
			}
		})
	}
}

// exercise does a little of everything and compares with a model.
func exercise(t *testing.T, client *Client) {
	ctx := bounded(t)
	model := make([]byte, client.Size())
	data := bytes.Repeat([]byte{0x5a}, 100_000)
	for _, step := range []struct {
		what string
		err  error
	}{
		{"write", client.WriteAt(ctx, data, 1000, 0)},
		{"write, FUA", client.WriteAt(ctx, data[:512], 1<<20, FUA)},
		{"zero", client.Zero(ctx, 4096, 8192, 0)},
		{"zero, keep", client.Zero(ctx, 32768, 512, NoHole|FUA)},
		{"zero, fast", client.Zero(ctx, 65536, 65536, FastZero)},
		{"trim", client.Trim(ctx, 1<<20, 512, 0)},
		{"flush", client.Flush(ctx)},
	} {
		if step.err != nil {
			t.Errorf("%s: %v", step.what, step.err)
		}
	}
	copy(model[1000:], data)
	clear(model[4096 : 4096+8192])
	clear(model[32768 : 32768+512])
	clear(model[65536 : 65536+65536])
	got := make([]byte, len(model))
	if err := client.ReadAt(ctx, got, 0); err != nil || !bytes.Equal(got, model) {
		t.Errorf("content differs, %v", err)
	}
	for what, err := range map[string]error{
		"read behind the end":  client.ReadAt(ctx, make([]byte, 1024), client.Size()-512),
		"write behind the end": client.WriteAt(ctx, data[:1024], client.Size()-512, 0),
		"zero behind the end":  client.Zero(ctx, client.Size(), 512, 0),
	} {
		var refused *ReplyError
		if !errors.As(err, &refused) || refused.Errno != EINVAL && refused.Errno != ENOSPC {
			t.Errorf("%s: %v", what, err)
		}
	}
	inFlight(t, client)
}

// inFlight has many requests under way and waits for them in another order.
func inFlight(t *testing.T, client *Client) {
	ctx := bounded(t)
	var requests []*Request
	for i := range 64 {
		requests = append(requests, client.Submit(Command{
			Type: CmdWrite, Offset: uint64(i) * 32768, Data: bytes.Repeat([]byte{byte(i + 1)}, 32768)}))
	}
	rand.Shuffle(len(requests), func(i, j int) { requests[i], requests[j] = requests[j], requests[i] })
	for _, request := range requests {
		if err := request.Wait(ctx); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 64 {
		request := client.Submit(Command{Type: CmdRead, Offset: uint64(i) * 32768, Length: 32768})
		if err := request.Wait(ctx); err != nil {
			t.Fatal(err)
		}
		if got := request.Data(); bytes.Count(got, []byte{byte(i + 1)}) != len(got) {
			t.Fatalf("block %d reads as something else", i)
		}
	}
}

// exerciseStatus expects the sparse memory of nbdkit, in pages of 32 KiB.
func exerciseStatus(t *testing.T, client *Client) {
	ctx := bounded(t)
	if err := client.Zero(ctx, 0, uint32(client.Size()), 0); err != nil {
		t.Fatal(err)
	}
	if err := client.WriteAt(ctx, bytes.Repeat([]byte{1}, 65536), 1<<20, 0); err != nil {
		t.Fatal(err)
	}
	got, err := client.Status(ctx, 0, client.Size())
	want := []Extent{
		{0, 1 << 20, StateHole | StateZero},
		{1 << 20, 65536, 0},
		{1<<20 + 65536, 3<<20 - 65536, StateHole | StateZero},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("status is %v, %v", got, err)
	}
	whole := client.Submit(Command{Type: CmdRead, Offset: 1<<20 - 4096, Length: 8192, Flags: DF})
	if err := whole.Wait(ctx); err != nil || whole.Data()[4095] != 0 || whole.Data()[4096] != 1 {
		t.Errorf("unfragmented read: %v", err)
	}
	first := client.Submit(Command{Type: CmdBlockStatus, Length: 2 << 20, Flags: ReqOne})
	if err := first.Wait(ctx); err != nil || !reflect.DeepEqual(first.Extents(BaseAllocation), want[:1]) {
		t.Errorf("one extent: %v, %v", first.Extents(BaseAllocation), err)
	}
}

// Options before transmission, and an export that does not exist.
func TestNbdkitOptions(t *testing.T) {
	ctx := bounded(t)
	h, err := NewHandshake(ctx, nbdkit(t, "--filter=exportname", "memory", "1M",
		"exportname-list=explicit", "exportname=disk", "exportname-strict=true", "exportdesc=fixed:a disk"))
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	exports, err := h.List(ctx)
	if err != nil || !reflect.DeepEqual(exports, []ListedExport{{"disk", "a disk"}}) {
		t.Errorf("list is %q, %v", exports, err)
	}
	if _, err := h.Go(ctx, "other"); !errors.As(err, new(*OptionError)) {
		t.Errorf("unknown export: %v", err)
	}
	if err := h.StructuredReplies(ctx); err != nil {
		t.Error(err)
	}
	contexts, err := h.SetMetaContext(ctx, "disk", BaseAllocation, "x-none:at-all")
	if err != nil || !reflect.DeepEqual(contexts, []string{BaseAllocation}) {
		t.Errorf("contexts are %v, %v", contexts, err)
	}
	info, err := h.Info(ctx, "disk", InfoBlockSize, InfoDescription)
	if err != nil || info.Size != 1<<20 || info.Description != "a disk" || !info.Structured {
		t.Errorf("info is %+v, %v", info, err)
	}
	if err := h.Abort(ctx); err != nil {
		t.Error(err)
	}
}

// A server that fails every write, and one that is read-only.
func TestNbdkitErrors(t *testing.T) {
	ctx := bounded(t)
	for name, test := range map[string]struct {
		arguments []string
		want      Errno
	}{
		"no space":  {[]string{"--filter=error", "memory", "1M", "error-pwrite=ENOSPC", "error-pwrite-rate=100%"}, ENOSPC},
		"read-only": {[]string{"-r", "memory", "1M"}, EPERM},
	} {
		t.Run(name, func(t *testing.T) {
			h, err := NewHandshake(ctx, nbdkit(t, test.arguments...))
			if err != nil {
				t.Fatal(err)
			}
			client, err := h.negotiate(ctx, "", Options{})
			if err != nil {
				h.Close()
				t.Fatal(err)
			}
			defer client.Close()
			if got := client.Flags().Has(ReadOnly); got != (test.want == EPERM) {
				t.Errorf("read-only is %v", got)
			}
			if err := client.WriteAt(ctx, make([]byte, 512), 0, 0); !errors.Is(err, test.want) {
				t.Errorf("write: %v", err)
			}
			if err := client.ReadAt(ctx, make([]byte, 512), 0); err != nil {
				t.Errorf("read: %v", err)
			}
		})
	}
}
