// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"github.com/blkmirror/blkmirror/daemon/handlers"
	"github.com/blkmirror/blkmirror/daemon/sandbox"
	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/server"
)

// limits are the options that bound what clients can make the daemon do; docs/limits.md explains them.
type limits struct {
	clients, depth int
	message        size
	handlers       handlers.Limits

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
	l.message = qmp.MaxTokenSize
	flags.IntVar(&l.clients, "max-monitor-clients", server.DefaultMaxClients, "take at most `N` clients of all monitors together")
	flags.Var(&l.message, "max-monitor-message", "refuse messages of monitors that are longer than `BYTES`")
	flags.IntVar(&l.depth, "max-monitor-depth", qmp.MaxDepth, "refuse messages of monitors with more than `N` brackets inside one another")
	flags.IntVar(&l.handlers.Exports, "max-exports", 1000, "make at most `N` exports")
	flags.IntVar(&l.handlers.Jobs, "max-jobs", 1000, "make at most `N` jobs, those that wait to be dismissed included")
	flags.Var(paths{&l.sandbox.Paths}, "sandbox", "confine the daemon to `DIR[:DIR...]` and what is in it, whoever names a path (Landlock)")
	flags.Var(paths{&l.sandbox.ReadOnly}, "sandbox-ro", "let it also read in `DIR[:DIR...]`")
	flags.StringVar(&l.ports, "sandbox-tcp", "", "confine TCP to `PORT[:PORT...]`, to listen on and to connect to; none for no TCP")
	flags.BoolVar(&l.sandbox.BestEffort, "sandbox-best-effort", false, "go without what the kernel cannot confine, with a warning")
}

// check says what is wrong with the values.
func (l *limits) check() error {
	for _, bound := range []struct {
		option      string
		value, most int64
	}{
		{"max-monitor-clients", int64(l.clients), 1 << 20}, {"max-monitor-message", int64(l.message), qmp.MaxTokenSize},
		{"max-monitor-depth", int64(l.depth), qmp.MaxDepth},
		{"max-exports", int64(l.handlers.Exports), 1 << 20}, {"max-jobs", int64(l.handlers.Jobs), 1 << 20},
	} {
		if bound.value < 1 || bound.value > bound.most {
			return fmt.Errorf("--%s %d: expects a number from 1 to %d", bound.option, bound.value, bound.most)
		}
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
