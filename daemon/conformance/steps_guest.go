// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/blkmirror/blkmirror/block/nbd/nbdguest"
)

// queuedRequest is one that was issued with '&'.
type queuedRequest struct {
	text    string
	request *nbdguest.Request
}

// patient bounds one NBD answer.
func (r *run) patient(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, r.options.Patience)
}

// doServe exports a node, starting the NBD server if there is none, and
// connects a guest; all three are named after the node.
func doServe(ctx context.Context, r *run, rest string) ([]Outcome, error) {
	args, err := atLeast(1, rest, "serve NODE [ro]")
	if err != nil {
		return nil, err
	}
	m, node := r.monitor(mainMonitor), args[0]
	if m == nil {
		return nil, errors.New("no main monitor")
	}
	if _, err := os.Stat(r.path("nbd")); errors.Is(err, fs.ErrNotExist) {
		address := map[string]any{"type": "unix", "data": map[string]any{"path": r.path("nbd")}}
		if err := m.must(ctx, "nbd-server-start", map[string]any{"addr": address}); err != nil {
			return nil, err
		}
	}
	export := map[string]any{"type": "nbd", "id": "x-" + node, "node-name": node, "name": node,
		"writable": !slices.Contains(args[1:], "ro")}
	if err := m.must(ctx, "block-export-add", export); err != nil {
		return nil, err
	}
	return doAttach(ctx, r, node)
}

// doAttach connects a guest to an export.
func doAttach(ctx context.Context, r *run, rest string) ([]Outcome, error) {
	args, err := atLeast(1, rest, "attach EXPORT [GUEST] [SOCKET]")
	if err != nil {
		return nil, err
	}
	export, name, socket := args[0], args[0], "nbd"
	if len(args) > 1 {
		name = args[1]
	}
	if len(args) > 2 {
		socket = args[2]
	}
	if _, err := r.guest(name); err == nil {
		return nil, fmt.Errorf("guest %q is attached already", name)
	}
	ctx, cancel := r.patient(ctx)
	defer cancel()
	client, err := nbdguest.Dial(ctx, "unix", r.path(socket), export, nbdguest.Options{})
	if err != nil {
		return nil, fmt.Errorf("export %q: %w", export, err)
	}
	r.guests = append(r.guests, &guest{name, client})
	return []Outcome{words("guest %s size %s", name, formatSize(int64(client.Size())))}, nil
}

// doRefused tells whether the server does not have an export.
func doRefused(ctx context.Context, r *run, export string) ([]Outcome, error) {
	ctx, cancel := r.patient(ctx)
	defer cancel()
	client, err := nbdguest.Dial(ctx, "unix", r.path("nbd"), export, nbdguest.Options{})
	var option *nbdguest.OptionError
	switch {
	case err == nil:
		client.Close()
		return []Outcome{words("refused %s no", export)}, nil
	case errors.As(err, &option), errors.Is(err, io.ErrUnexpectedEOF),
		errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ECONNRESET):
		return []Outcome{words("refused %s yes", export)}, nil
	}
	return nil, err
}

var flagNames = []string{"has-flags", "read-only", "flush", "fua", "rotational", "trim", "zeroes",
	"df", "multi-conn", "resize", "cache", "fast-zero"}

func doFlags(_ context.Context, r *run, name string) ([]Outcome, error) {
	g, err := r.guest(name)
	if err != nil {
		return nil, err
	}
	found := []string{"flags", name}
	for bit, flag := range flagNames {
		if g.client.Flags().Has(1 << bit) {
			found = append(found, flag)
		}
	}
	return []Outcome{{Words: strings.Join(found, " ")}}, nil
}

// doDetach disconnects a guest in the orderly way, and wants the server to
// agree.
func doDetach(ctx context.Context, r *run, name string) ([]Outcome, error) {
	g, err := r.guest(name)
	if err != nil {
		return nil, err
	}
	r.guests = slices.DeleteFunc(r.guests, func(other *guest) bool { return other == g })
	defer g.client.Close()
	select {
	case <-g.client.Ended():
		return nil, nil // the export went away before
	default:
	}
	ctx, cancel := r.patient(ctx)
	defer cancel()
	return nil, g.client.Disconnect(ctx)
}

// doGuest sends requests: guest [GUEST:] VERB ...
func doGuest(ctx context.Context, r *run, rest string) ([]Outcome, error) {
	args, err := atLeast(1, rest, "guest [GUEST:] write|zero|trim|flush|read|map|hammer|stop|verify|join ...")
	if err != nil {
		return nil, err
	}
	name, named := strings.CutSuffix(args[0], ":")
	if named {
		args = args[1:]
	} else {
		name = ""
	}
	if len(args) == 0 {
		return nil, errors.New("no guest step")
	}
	verb, args := args[0], args[1:]
	if verb == "join" {
		return r.joinRequests(ctx), nil
	}
	g, err := r.guest(name)
	if err != nil {
		return nil, err
	}
	switch verb {
	case "hammer":
		return nil, r.startHammer(ctx, g, args)
	case "stop", "verify":
		return r.endHammer(ctx, g, verb)
	}
	return r.guestRequest(ctx, g, verb, args)
}

// joinRequests waits for the requests that were issued with '&'.
func (r *run) joinRequests(ctx context.Context) []Outcome {
	var lines []Outcome
	for _, queued := range r.queued {
		lines = append(lines, words("%s %s", queued.text, r.verdict(ctx, queued.request)))
	}
	r.queued = nil
	return lines
}

// verdict waits for a request and puts its outcome into one word.
func (r *run) verdict(ctx context.Context, request *nbdguest.Request) string {
	ctx, cancel := r.patient(ctx)
	defer cancel()
	err := request.Wait(ctx)
	var refused *nbdguest.ReplyError
	switch {
	case err == nil:
		return "ok"
	case errors.As(err, &refused):
		return refused.Errno.Error()
	case errors.Is(err, nbdguest.ErrProtocol):
		return err.Error()
	case ctx.Err() != nil:
		return "timeout"
	}
	return "closed"
}

var guestVerbs = map[string]nbdguest.CommandType{
	"read": nbdguest.CmdRead, "write": nbdguest.CmdWrite, "flush": nbdguest.CmdFlush, "trim": nbdguest.CmdTrim,
	"zero": nbdguest.CmdWriteZeroes, "map": nbdguest.CmdBlockStatus,
}

var guestFlags = map[string]nbdguest.CommandFlags{
	"fua": nbdguest.FUA, "nohole": nbdguest.NoHole, "fast": nbdguest.FastZero,
}

// guestRequest sends one request: VERB [OFFSET,LENGTH] [BYTE] [FLAG ...]
// [fails] [&].
func (r *run) guestRequest(ctx context.Context, g *guest, verb string, args []string) ([]Outcome, error) {
	kind, ok := guestVerbs[verb]
	if !ok {
		return nil, fmt.Errorf("unknown guest step %q", verb)
	}
	command, text := nbdguest.Command{Type: kind}, verb
	var where extent
	if verb != "flush" {
		if len(args) == 0 {
			return nil, fmt.Errorf("guest %s: no range", verb)
		}
		var err error
		if where, err = parseExtent(args[0]); err != nil {
			return nil, err
		}
		if where.length >= 1<<32 {
			return nil, fmt.Errorf("guest %s: too long: %s", verb, args[0])
		}
		command.Offset, command.Length = uint64(where.offset), uint32(where.length)
		text, args = verb+" "+args[0], args[1:]
	}
	if verb == "write" {
		if len(args) == 0 {
			return nil, errors.New("guest write: no byte")
		}
		fill, err := parseByte(args[0])
		if err != nil {
			return nil, err
		}
		command.Data, args = bytes.Repeat([]byte{fill}, int(where.length)), args[1:]
	}
	fails, later := false, false
	for _, word := range args {
		flag, isFlag := guestFlags[word]
		switch {
		case isFlag:
			command.Flags |= flag
		case word == "fails":
			fails = true
		case word == "&":
			later = true
		default:
			return nil, fmt.Errorf("guest %s: unknown word %q", verb, word)
		}
	}
	request := g.client.Submit(command)
	if later {
		r.queued = append(r.queued, queuedRequest{text, request})
		return nil, nil
	}
	verdict := r.verdict(ctx, request)
	switch {
	case verdict != "ok" && fails:
		verdict = "failed"
	case verdict == "ok" && verb == "read":
		verdict = describeRuns(request.Data(), where.offset)
	case verdict == "ok" && verb == "map":
		return r.showMap(ctx, g, text, where)
	}
	return []Outcome{words("%s %s", text, verdict)}, nil
}

// showMap asks for the status of the whole range, as often as it takes; a
// first request has shown that the server answers.
func (r *run) showMap(ctx context.Context, g *guest, text string, where extent) ([]Outcome, error) {
	ctx, cancel := r.patient(ctx)
	defer cancel()
	extents, err := g.client.Status(ctx, uint64(where.offset), uint64(where.length))
	if err != nil {
		return nil, err
	}
	kinds := []string{"data", "hole", "zero", "hole,zero"}
	for _, e := range extents {
		kind := strconv.FormatUint(uint64(e.Flags), 10)
		if e.Flags < uint32(len(kinds)) {
			kind = kinds[e.Flags]
		}
		text += fmt.Sprintf(" %v=%s", extent{int64(e.Offset), int64(e.Length)}, kind)
	}
	return []Outcome{{Words: text}}, nil
}
