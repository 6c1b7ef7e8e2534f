// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
)

// Modes.
const (
	modeRounds = "rounds"
	modeCancel = "cancel"
	modeSoak   = "soak"
)

// memoryFolder is where files are by default, if it has some space.
const memoryFolder = "/dev/shm"

// settings are what the command line says.
type settings struct {
	mode      string
	daemon    string
	firstSeed uint64
	count     int
	time      time.Duration
	jobs      int
	folder    string
	limit     time.Duration // for one round
	onlyPlan  bool
	keep      bool
	verbose   bool
	out       io.Writer

	qemuNBD, qemuImg string // programs; empty where they are not installed
}

const usageHead = `blkmirror-torture tries to make blkmirrord lose data, with real files, sockets, processes and faults.

  blkmirror-torture                            rounds of random faults, each from a seed
  blkmirror-torture --seed 4711 --count 1      the same round again
  blkmirror-torture cancel --count 10000       mirrors that are cancelled by force when they are ready
  blkmirror-torture soak --time 1h             eight mirrors that begin and end in one daemon, which must not grow

Options:

`

func parseFlags(args []string, out io.Writer) (*settings, error) {
	s := &settings{mode: modeRounds, out: out}
	if len(args) > 0 && (args[0] == modeRounds || args[0] == modeCancel || args[0] == modeSoak) {
		s.mode, args = args[0], args[1:]
	}
	flags := pflag.NewFlagSet("blkmirror-torture", pflag.ContinueOnError)
	flags.SortFlags = false
	flags.StringVar(&s.daemon, "daemon", "bin/blkmirrord", "the `PROGRAM` to try")
	flags.Uint64Var(&s.firstSeed, "seed", 0, "`SEED` of the first round; the next ones have those that follow (default: the time)")
	flags.IntVar(&s.count, "count", 100, "`NUMBER` of rounds, or of mirrors to cancel")
	flags.DurationVar(&s.time, "time", time.Hour, "begin nothing after this `TIME`; how long a soak is")
	flags.IntVarP(&s.jobs, "jobs", "j", 1, "`NUMBER` of rounds at once")
	flags.StringVar(&s.folder, "dir", "", "existing `FOLDER` for the files, best in memory (default: /dev/shm, or that for temporary files)")
	flags.DurationVar(&s.limit, "round-limit", 60*time.Second, "a round that takes longer than this `TIME` has failed")
	flags.BoolVar(&s.onlyPlan, "plan", false, "only say what the rounds would do")
	flags.BoolVar(&s.keep, "keep", false, "keep the files of rounds that went well, too")
	flags.BoolVarP(&s.verbose, "verbose", "v", false, "say what happens in a round while it does")
	flags.Usage = func() { fmt.Fprint(out, usageHead, flags.FlagUsages()) }
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	if flags.NArg() > 0 {
		return nil, fmt.Errorf("unexpected argument '%s'", flags.Arg(0))
	}
	if s.firstSeed == 0 {
		s.firstSeed = uint64(time.Now().UnixNano() / 1e6)
	}
	switch {
	case s.count < 1:
		return nil, errors.New("--count must be positive")
	case s.jobs < 1 || s.jobs > 64:
		return nil, errors.New("--jobs must be within 1 and 64")
	case s.time <= 0 || s.limit <= 0:
		return nil, errors.New("--time and --round-limit must be positive")
	}
	if s.folder == "" {
		s.folder = os.TempDir()
		var fs unix.Statfs_t
		if err := unix.Statfs(memoryFolder, &fs); err == nil && int64(fs.Bavail)*fs.Bsize >= 1<<30 {
			s.folder = memoryFolder
		}
	}
	var err error
	if s.folder, err = filepath.Abs(s.folder); err != nil {
		return nil, err
	}
	if s.daemon, err = filepath.Abs(s.daemon); err != nil {
		return nil, err
	}
	// Not installed is no error: there are rounds without them.
	s.qemuNBD, _ = exec.LookPath("qemu-nbd")
	s.qemuImg, _ = exec.LookPath("qemu-img")
	return s, nil
}
