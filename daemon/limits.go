// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"github.com/blkmirror/blkmirror/block/export/nbdserver"
	"github.com/blkmirror/blkmirror/block/nbd"
	"github.com/blkmirror/blkmirror/daemon/handlers"
	"github.com/blkmirror/blkmirror/daemon/sandbox"
	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/server"
)

const (
	defaultMemory = 1 << 30
	leastMemory   = 64 << 20 // two of the largest requests
	// What jobs copy through, of defaultMemory and at least; the same part of any other memory.
	defaultCopies = 64 << 20
	leastCopies   = 1 << 20
	leastRequest  = 64 << 10 // what clients use that ask for no sizes
)

// limits are the options that bound what clients can make the daemon do; docs/limits.md explains them.
type limits struct {
	clients, depth                   int
	message, memory, copies, request size
	handlers                         handlers.Limits

	sandbox sandbox.Options
	ports   string
}

// size is a number of bytes that an option gives, such as 512M.
type size int64

func (s *size) String() string { return strconv.FormatInt(int64(*s), 10) }
func (s *size) Type() string   { return "" }
func (s *size) Set(text string) error {
	shift := 0
	digits := text
	if n := len(text); n > 0 {
		if at := strings.IndexByte("KMGT", text[n-1]&^0x20); at >= 0 {
			digits, shift = text[:n-1], 10*(at+1)
		}
	}
	v, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || v < 0 || v<<shift>>shift != v {
		return fmt.Errorf("expects a number of bytes, which may end in K, M, G or T")
	}
	*s = size(v << shift)
	return nil
}

// paths is a list of paths with colons between them, given once or several times.
type paths struct{ list *[]string }

func (p paths) String() string { return "" }
func (p paths) Type() string   { return "" }
func (p paths) Set(text string) error {
	*p.list = append(*p.list, strings.Split(text, ":")...)
	return nil
}

func (l *limits) addTo(flags *pflag.FlagSet) {
	l.message, l.memory, l.request = qmp.MaxTokenSize, defaultMemory, nbd.MaxPayload
	flags.IntVar(&l.clients, "max-monitor-clients", server.DefaultMaxClients, "take at most `N` clients of all monitors together")
	flags.Var(&l.message, "max-monitor-message", "refuse messages of monitors that are longer than `BYTES`")
	flags.IntVar(&l.depth, "max-monitor-depth", qmp.MaxDepth, "refuse messages of monitors with more than `N` brackets inside one another")
	flags.IntVar(&l.handlers.Exports, "max-exports", 1000, "make at most `N` exports")
	flags.IntVar(&l.handlers.Jobs, "max-jobs", 1000, "make at most `N` jobs, those that wait to be dismissed included")
	flags.IntVar(&l.handlers.Nodes, "max-nodes", 10000, "make at most `N` nodes, those that others bring with them included")
	flags.Var(&l.memory, "memory-limit", "use at most `BYTES` for the data of requests of NBD clients and of jobs")
	flags.Var(&l.copies, "copy-memory", "of these, use at most `BYTES` for copies of jobs (default: a sixteenth)")
	flags.IntVar(&l.handlers.Requests, "max-nbd-requests", nbdserver.DefaultMaxRequests, "work on at most `N` requests of one NBD connection at a time")
	flags.Var(&l.request, "max-nbd-request-size", "refuse reads and writes of NBD clients of more than `BYTES`")
	flags.Var(paths{&l.sandbox.Paths}, "sandbox", "confine the daemon to `DIR[:DIR...]` and what is in it, whoever names a path (Landlock)")
	flags.Var(paths{&l.sandbox.ReadOnly}, "sandbox-ro", "let it also read in `DIR[:DIR...]`")
	flags.StringVar(&l.ports, "sandbox-tcp", "", "confine TCP to `PORT[:PORT...]`, to listen on and to connect to; none for no TCP")
	flags.BoolVar(&l.sandbox.BestEffort, "sandbox-best-effort", false, "go without what the kernel cannot confine, with a warning")
}

// check says what is wrong with the values.
func (l *limits) check() error {
	for _, bound := range []struct {
		option             string
		value, least, most int64
	}{
		{"max-monitor-clients", int64(l.clients), 1, 1 << 20}, {"max-monitor-message", int64(l.message), 1, qmp.MaxTokenSize},
		{"max-monitor-depth", int64(l.depth), 1, qmp.MaxDepth},
		{"max-exports", int64(l.handlers.Exports), 1, 1 << 20}, {"max-jobs", int64(l.handlers.Jobs), 1, 1 << 20},
		{"max-nodes", int64(l.handlers.Nodes), 1, 1 << 20}, {"memory-limit", int64(l.memory), leastMemory, 1 << 50},
		{"max-nbd-requests", int64(l.handlers.Requests), 1, 1024}, {"max-nbd-request-size", int64(l.request), leastRequest, nbd.MaxPayload},
	} {
		if bound.value < bound.least || bound.value > bound.most {
			return fmt.Errorf("--%s %d: expects a number from %d to %d", bound.option, bound.value, bound.least, bound.most)
		}
	}
	l.handlers.Request = int64(l.request)
	if l.copies == 0 {
		l.copies = l.memory / (defaultMemory / defaultCopies)
	}
	if half := l.memory / 2; l.copies < leastCopies || l.copies > half {
		return fmt.Errorf("--copy-memory %d: expects a number from %d to %d, half of --memory-limit", l.copies, leastCopies, half)
	}
	confined := len(l.sandbox.Paths)+len(l.sandbox.ReadOnly) > 0
	if !confined && (l.ports != "" || l.sandbox.BestEffort) {
		return fmt.Errorf("--sandbox-tcp and --sandbox-best-effort need --sandbox")
	}
	if l.ports == "" {
		return nil
	}
	l.sandbox.TCP = []uint16{}
	if l.ports == "none" {
		return nil
	}
	for _, text := range strings.Split(l.ports, ":") {
		port, err := strconv.ParseUint(text, 10, 16)
		if err != nil {
			return fmt.Errorf("--sandbox-tcp %s: expects numbers of ports with colons between them, or none", l.ports)
		}
		l.sandbox.TCP = append(l.sandbox.TCP, uint16(port))
	}
	return nil
}

// confine enters the sandbox, if there is to be one.
func (l *limits) confine() (*sandbox.Sandbox, error) {
	if len(l.sandbox.Paths)+len(l.sandbox.ReadOnly) == 0 {
		return nil, nil
	}
	return sandbox.Enter(l.sandbox)
}
