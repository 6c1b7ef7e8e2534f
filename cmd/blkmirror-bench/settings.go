// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"
)

// settings are what the command line says.
type settings struct {
	daemons, servers []*contender
	peers            bool
	only             []string
	cases            *regexp.Regexp
	scale            float64
	rounds           int
	load             string
	loadTime         time.Duration
	folder           string
	json, markdown   string
	growth           bool
	plots            string
	syscalls         bool
	timeout          time.Duration
	runTimeout       time.Duration
	quiet            bool
}

// Ways to make a guest's requests.
const (
	loadAuto = "auto"
	loadFio  = "fio"
	loadOwn  = "own"
)

const usageHead = `blkmirror-bench measures storage daemons beside each other, interleaved, and verifies what they copied.

  blkmirror-bench --daemon blkmirror=bin/blkmirrord --peers --scale 0.1 --json result.json
  blkmirror-bench --daemon 'new=bin/blkmirrord' --daemon 'old=/tmp/blkmirrord' --only S4,S6 --rounds 5
  blkmirror-bench --daemon blkmirror=bin/blkmirrord --daemon 'qsd[aio=io_uring,root=/opt/new]=qemu-storage-daemon' --growth

A contender is NAME=COMMAND or NAME[OPTION=VALUE,...]=COMMAND. The first --daemon is "ours"; ratios are ours divided by
theirs. COMMAND is what comes before a daemon's arguments; it must not fork. Options:

  aio=threads|io_uring|native   engine of file nodes (native makes cache.direct=on)
  cache.direct=on|off           for all nodes
  iothread=on|off               nodes and exports in an I/O thread of their own
  granularity=SIZE buf-size=SIZE target-is-zero=on|off     of mirrors
  state-dir=process|host        with a state directory, and mirrors that survive the process or the host (blkmirrord)
  scenarios=S1+S4               take part in these only
  root=FOLDER                   run in this folder as its root, as chroot does; it must see the --dir

Scenarios:

`

const usageTail = `
Options:

`

func parseFlags(args []string, out io.Writer) (*settings, error) {
	s := &settings{}
	var daemons, servers, only []string
	var cases string
	var seconds float64
	flags := pflag.NewFlagSet("blkmirror-bench", pflag.ContinueOnError)
	flags.SortFlags = false
	flags.StringArrayVar(&daemons, "daemon", nil, "a daemon that takes part, as `CONTENDER`; the first is ours (default: blkmirror=bin/blkmirrord)")
	flags.StringArrayVar(&servers, "nbd-server", nil, "an NBD server that takes part in S6, as `CONTENDER` with {socket} and {file} in its command")
	flags.BoolVar(&s.peers, "peers", false, "let qemu-storage-daemon, qemu-nbd and nbdkit take part, found on PATH and, newer ones, below $PEER_ROOT")
	flags.StringSliceVar(&only, "only", nil, "`SCENARIOS` to run, such as S1,S4 (default: all)")
	flags.StringVar(&cases, "case", "", "run only cases whose name this `REGEXP` matches")
	flags.Float64Var(&s.scale, "scale", 1, "`FACTOR` for sizes and numbers of things")
	flags.IntVar(&s.rounds, "rounds", 3, "`NUMBER` of rounds of each case")
	flags.StringVar(&s.load, "load", loadAuto, "what makes a guest's requests: fio, own, or `auto` for fio where it is installed with its nbd engine")
	flags.Float64Var(&seconds, "seconds", 0, "how long a guest's load is (default: 3 times the scale, within 0.5 and 3)")
	flags.StringVar(&s.folder, "dir", "", "existing `FOLDER` for the files, in a folder of their own that is removed (default: that for temporary files)")
	flags.StringVar(&s.json, "json", "", "`FILE` for all results")
	flags.StringVar(&s.markdown, "markdown", "", "`FILE` for the tables, which also go to standard output")
	flags.BoolVar(&s.growth, "growth", false, "measure growth instead: 1 to 1000 GiB of thin disk, 1 to 1000 jobs, 1 to 64 connections")
	flags.StringVar(&s.plots, "plots", "", "existing `FOLDER` for the plots of --growth, as SVG")
	flags.BoolVar(&s.syscalls, "syscalls", false, "count system calls as well, in runs of their own under strace")
	flags.DurationVar(&s.timeout, "timeout", time.Hour, "stop after this `TIME`; what is left is reported as not run")
	flags.DurationVar(&s.runTimeout, "run-timeout", 2*time.Minute, "give up a single run after this `TIME`")
	flags.BoolVar(&s.quiet, "quiet", false, "no line for each run on standard error")
	flags.Usage = func() {
		fmt.Fprint(out, usageHead)
		for _, sc := range scenarios {
			fmt.Fprintf(out, "  %s  %s\n", sc.id, sc.title)
		}
		fmt.Fprint(out, usageTail, flags.FlagUsages())
	}
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	if flags.NArg() > 0 {
		return nil, fmt.Errorf("unexpected argument '%s'", flags.Arg(0))
	}
	if len(daemons) == 0 {
		daemons = []string{"blkmirror=bin/blkmirrord"}
	}
	for _, text := range daemons {
		c, err := parseContender(text)
		if err != nil {
			return nil, err
		}
		s.daemons = append(s.daemons, c)
	}
	for _, text := range servers {
		c, err := parseContender(text)
		if err != nil {
			return nil, err
		}
		if command := strings.Join(c.command, " "); !strings.Contains(command, "{socket}") || !strings.Contains(command, "{file}") {
			return nil, fmt.Errorf("%s: the command has no {socket} or no {file}", c.name)
		}
		s.servers = append(s.servers, c)
	}
	for _, id := range only {
		id = strings.ToUpper(id)
		if !slices.ContainsFunc(scenarios, func(sc scenario) bool { return sc.id == id }) {
			return nil, fmt.Errorf("there is no scenario '%s'", id)
		}
		s.only = append(s.only, id)
	}
	var err error
	if s.cases, err = regexp.Compile(cases); err != nil {
		return nil, fmt.Errorf("--case: %w", err)
	}
	s.loadTime = time.Duration(seconds * float64(time.Second))
	if seconds == 0 {
		s.loadTime = time.Duration(min(max(3*s.scale, 0.5), 3) * float64(time.Second))
	}
	switch {
	case !(s.scale > 0 && s.scale <= 16):
		return nil, errors.New("--scale must be positive, and 16 at most")
	case s.rounds < 1 || s.rounds > 1000:
		return nil, errors.New("--rounds must be positive, and not absurd")
	case s.loadTime < 10*time.Millisecond || s.loadTime > time.Hour:
		return nil, errors.New("--seconds must be within 0.01 and 3600")
	case !slices.Contains([]string{loadAuto, loadFio, loadOwn}, s.load):
		return nil, fmt.Errorf("--load is auto, fio or own, not '%s'", s.load)
	case s.timeout <= 0 || s.runTimeout <= 0:
		return nil, errors.New("--timeout and --run-timeout must be positive")
	case s.plots != "" && !s.growth:
		return nil, errors.New("--plots needs --growth")
	}
	if s.plots != "" {
		if info, err := os.Stat(s.plots); err != nil || !info.IsDir() {
			return nil, fmt.Errorf("--plots: '%s' is no folder", s.plots)
		}
	}
	return s, s.distinct()
}

// distinct sees to it that no two contenders have the same name.
func (s *settings) distinct() error {
	seen := map[string]bool{}
	for _, c := range slices.Concat(s.daemons, s.servers) {
		if seen[c.name] {
			return fmt.Errorf("two contenders are called '%s'", c.name)
		}
		seen[c.name] = true
	}
	return nil
}
