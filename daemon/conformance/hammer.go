// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/blkmirror/blkmirror/block/nbd/nbdguest"
)

// sector is what a hammer's requests are multiples of, in bytes.
const sector = 512

// hammer is a guest that writes random data and zeroes, one request after the
// other, and keeps a model of what must be there afterwards. The same seed
// writes the same.
type hammer struct {
	guest *guest
	where extent
	block int64         // the longest request, in bytes
	gap   time.Duration // between requests
	rand  *rand.Rand

	stop     chan struct{}
	stopOnce sync.Once
	done     chan struct{}

	// The rest may be used once done is closed.
	model   []byte
	writes  int
	problem string
}

// startHammer is for: guest hammer OFFSET,LENGTH [seed=N] [block=SIZE]
// [gap=SECONDS].
func (r *run) startHammer(ctx context.Context, g *guest, args []string) error {
	if len(args) == 0 {
		return errors.New("guest hammer: no range")
	}
	where, err := parseExtent(args[0])
	if err != nil {
		return err
	}
	h := &hammer{guest: g, where: where, block: 64 << 10, gap: 2 * time.Millisecond,
		stop: make(chan struct{}), done: make(chan struct{})}
	seed := uint64(1)
	for _, word := range args[1:] {
		key, value, _ := strings.Cut(word, "=")
		switch key {
		case "seed":
			seed, err = strconv.ParseUint(value, 10, 64)
		case "block":
			h.block, err = parseSize(value)
		case "gap":
			var seconds float64
			seconds, err = strconv.ParseFloat(value, 64)
			h.gap = time.Duration(seconds * float64(time.Second))
		default:
			err = fmt.Errorf("guest hammer: unknown word %q", word)
		}
		if err != nil {
			return err
		}
	}
	if h.block < sector || h.block > where.length {
		return fmt.Errorf("guest hammer: blocks of %d bytes in %d", h.block, where.length)
	}
	if _, err := r.hammerOf(g.name); err == nil {
		return fmt.Errorf("guest %q hammers already", g.name)
	}
	h.rand = rand.New(rand.NewPCG(seed, 0))
	h.model, err = r.readGuest(ctx, g, where)
	if err != nil {
		return err
	}
	r.hammers = append(r.hammers, h)
	go h.work(ctx, r)
	return nil
}

func (r *run) readGuest(ctx context.Context, g *guest, where extent) ([]byte, error) {
	ctx, cancel := r.patient(ctx)
	defer cancel()
	data := make([]byte, where.length)
	return data, g.client.ReadAt(ctx, data, uint64(where.offset))
}

// work writes until told to stop, or until a request fails.
func (h *hammer) work(ctx context.Context, r *run) {
	defer close(h.done)
	for {
		select {
		case <-h.stop:
			return
		case <-ctx.Done():
			h.problem = "overdue"
			return
		default:
		}
		command, start := h.next()
		verdict := r.verdict(ctx, h.guest.client.Submit(command))
		if verdict != "ok" {
			h.problem = verdict
			return
		}
		if command.Type == nbdguest.CmdWrite {
			copy(h.model[start:], command.Data)
		} else {
			clear(h.model[start : start+int64(command.Length)])
		}
		h.writes++
		select {
		case <-h.stop:
		case <-time.After(h.gap):
		}
	}
}

// next makes up a request, and tells where it lies in the model.
func (h *hammer) next() (nbdguest.Command, int64) {
	length := (1 + h.rand.Int64N(h.block/sector)) * sector
	start := h.rand.Int64N((h.where.length-length)/sector+1) * sector
	command := nbdguest.Command{Offset: uint64(h.where.offset + start), Length: uint32(length)}
	if h.rand.IntN(10) < 3 {
		command.Type = nbdguest.CmdWriteZeroes
		if h.rand.IntN(2) == 0 {
			command.Flags = nbdguest.NoHole
		}
	} else {
		command.Type = nbdguest.CmdWrite
		command.Data = bytes.Repeat([]byte{byte(1 + h.rand.IntN(255))}, int(length))
	}
	return command, start
}

// halt tells the hammer to stop after the request under way.
func (h *hammer) halt() { h.stopOnce.Do(func() { close(h.stop) }) }

// outcome says how it went, after the end.
func (h *hammer) outcome() string {
	switch {
	case h.problem != "":
		return h.problem
	case h.writes == 0:
		return "no writes"
	}
	return "ok"
}

// compare compares data with the model, after the end.
func (h *hammer) compare(data []byte) string {
	if bytes.Equal(data, h.model) {
		return "ok"
	}
	for i := range min(len(data), len(h.model)) {
		if data[i] != h.model[i] {
			return fmt.Sprintf("differs first at %#x", h.where.offset+int64(i))
		}
	}
	return fmt.Sprintf("has %d bytes of %d", len(data), len(h.model))
}

// hammerOf finds the hammer of a guest; without a name, the first one.
func (r *run) hammerOf(name string) (*hammer, error) {
	for _, h := range r.hammers {
		if h.guest.name == name || name == "" {
			return h, nil
		}
	}
	return nil, fmt.Errorf("guest %q does not hammer", name)
}

// endHammer stops a hammer; with verify it also compares what the guest reads.
func (r *run) endHammer(ctx context.Context, g *guest, verb string) ([]Outcome, error) {
	h, err := r.hammerOf(g.name)
	if err != nil {
		return nil, err
	}
	h.halt()
	<-h.done // its requests are bounded
	verdict := h.outcome()
	if verb == "verify" {
		data, err := r.readGuest(ctx, g, h.where)
		if err != nil {
			return nil, err
		}
		verdict = h.compare(data)
	}
	return []Outcome{words("hammer %s %s", verb, verdict)}, nil
}

// doModelled compares an image file with what a hammer wrote.
func doModelled(_ context.Context, r *run, rest string) ([]Outcome, error) {
	args, err := atLeast(1, rest, "modelled IMAGE [GUEST]")
	if err != nil {
		return nil, err
	}
	name := ""
	if len(args) > 1 {
		name = args[1]
	}
	h, err := r.hammerOf(name)
	if err != nil {
		return nil, err
	}
	select {
	case <-h.done:
	default:
		return nil, errors.New("the hammer has not been stopped")
	}
	data, err := readPart(r.path(args[0]), h.where)
	if err != nil {
		return nil, err
	}
	return []Outcome{words("modelled %s %s", args[0], h.compare(data))}, nil
}
