// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/pflag"

	"github.com/blkmirror/blkmirror/cmd/blkmirror/bytesize"
)

func main() {
	s, err := parseFlags(os.Args[1:])
	if errors.Is(err, pflag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "blkmirror-demo:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // the second signal ends the process at once
	err = run(ctx, s, os.Stdout)
	switch {
	case err != nil && ctx.Err() != nil:
		fmt.Fprintln(os.Stderr, "blkmirror-demo: interrupted")
		os.Exit(130)
	case err != nil:
		fmt.Fprintf(os.Stderr, "blkmirror-demo: FAILED (seed %d): %v\n", s.seed, err)
		os.Exit(1)
	}
}

// settings are what the command line says.
type settings struct {
	daemon      string
	folder      string
	size, data  size
	pieces      int
	time        time.Duration
	seed        uint64
	depth, rate int
	keep        bool
}

// size is a number of bytes on the command line.
type size int64

func (s *size) String() string { return bytesize.Format(int64(*s)) }
func (s *size) Type() string   { return "SIZE" }

func (s *size) Set(text string) error {
	n, err := bytesize.Parse(text)
	*s = size(n)
	return err
}

func parseFlags(args []string) (*settings, error) {
	s := &settings{size: 1 << 30, data: 200 << 20}
	var seconds float64
	flags := pflag.NewFlagSet("blkmirror-demo", pflag.ContinueOnError)
	flags.SortFlags = false
	flags.StringVar(&s.daemon, "daemon", "bin/blkmirrord", "`PATH` of the daemon's binary")
	flags.Var(&s.size, "size", "`SIZE` of the disks")
	flags.Var(&s.data, "data", "`SIZE` of all pieces of data on the source")
	flags.IntVar(&s.pieces, "pieces", 4096, "`NUMBER` of pieces of data on the source")
	flags.Float64Var(&seconds, "seconds", 16, "how long the guest works, about")
	flags.Uint64Var(&s.seed, "seed", 0, "`NUMBER` that all random choices come from (default: another one each time)")
	flags.IntVar(&s.rate, "rate", 500, "`NUMBER` of the guest's requests per second")
	flags.IntVar(&s.depth, "depth", 4, "`NUMBER` of the guest's requests at a time")
	flags.StringVar(&s.folder, "dir", "", "`FOLDER` for the files (default: that for temporary files)")
	flags.BoolVar(&s.keep, "keep", false, "keep the files")
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	if !flags.Changed("seed") {
		s.seed = rand.Uint64() >> 32 // short enough to type
	}
	s.time = time.Duration(seconds * float64(time.Second))
	switch {
	case flags.NArg() > 0:
		return nil, fmt.Errorf("unexpected argument '%s'", flags.Arg(0))
	case s.size < 4<<20 || s.size%sectorSize != 0:
		return nil, fmt.Errorf("--size must be 4M at least, and whole sectors of %d bytes", sectorSize)
	case s.pieces < 1 || s.rate < 1 || s.rate > 1e6 || s.depth < 1 || s.depth > 1024:
		return nil, errors.New("--pieces, --rate and --depth must be positive, and not absurd")
	case s.time <= 0 || s.time > 24*time.Hour:
		return nil, errors.New("--seconds must be positive, and a day at most")
	}
	return s, nil
}
