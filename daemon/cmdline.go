// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/blkmirror/blkmirror/daemon/config"
	"github.com/blkmirror/blkmirror/daemon/web"
	"github.com/blkmirror/blkmirror/job/mirror/intent"
)

// maxDrain is the longest that --drain-timeout may say.
const maxDrain = 24 * time.Hour

// step is one option of the command line that is carried out in its turn.
type step struct {
	option, text string
	place        *config.Place // nil for one of the command line
}

func (s step) String() string {
	if s.place != nil {
		return s.place.String() + ": " + s.option
	}
	return "--" + s.option + " " + s.text
}

// commandLine is what the command line says.
type commandLine struct {
	steps         []step
	pidFile       string
	daemonize     bool
	drain         time.Duration
	limits        limits
	web           web.Options
	watch         watchOptions
	stateDir      string
	restore       restoreMode
	durability    intent.Durability
	checkOnly     bool
	help, version bool
	usage         string
}

// stepValue appends a step whenever its option is given, so that the order over all options is kept.
type stepValue struct {
	line   *commandLine
	option string
}

func (v stepValue) String() string { return "" }
func (v stepValue) Type() string   { return "" }
func (v stepValue) Set(text string) error {
	v.line.steps = append(v.line.steps, step{option: v.option, text: text})
	return nil
}

func parseCommandLine(args []string) (*commandLine, error) { return parse(args, nil) }

// parse reads a command line that comes after files, which it names; nil if they are not known yet.
func parse(args, files []string) (*commandLine, error) {
	line := &commandLine{}
	flags := pflag.NewFlagSet("blkmirrord", pflag.ContinueOnError)
	flags.SortFlags = false
	flags.Usage = func() {}
	add := func(option, usage string) { flags.Var(stepValue{line, option}, option, usage) }
	add("blockdev", "open a block node; `SPEC` is [driver=]DRIVER,node-name=NAME[,KEY=VALUE...]")
	add("object", "make an object; `SPEC` is [qom-type=]TYPE,id=ID[,KEY=VALUE...]")
	add("nbd-server", "start the NBD server; `SPEC` is addr.type=unix,addr.path=PATH\nor addr.type=inet,addr.host=HOST,addr.port=PORT")
	add("export", "export a node; `SPEC` is [type=]nbd,id=ID,node-name=NODE[,name=NAME][,writable=on]")
	add("chardev", "make a channel for a monitor; `SPEC` is socket,id=ID,path=PATH,server=on,wait=off\n(or fd=N, or host=HOST,port=PORT) or stdio,id=ID")
	add("monitor", "serve QMP on a channel; `SPEC` is [chardev=]ID[,pretty=on]")
	add("qmp", "serve QMP on a unix socket at `PATH`; short for --chardev and --monitor")
	flags.StringVar(&line.pidFile, "pidfile", "", "write the process id to `PATH` once everything runs; removed at exit")
	flags.BoolVar(&line.daemonize, "daemonize", false, "go to the background once everything runs")
	seconds := flags.Float64("drain-timeout", 0, "let mirrors that are ready end well at a stop, for at most `SECONDS`; 0 cancels them")
	flags.StringVar(&line.stateDir, "state-dir", "", "keep what is made over QMP in `DIR`, and bring it back at a restart; objects, nodes,\njobs, the NBD server and exports are then made before monitors")
	restore := flags.String("restore", string(restoreStrict), "what of the state must come back: all of it with strict, what can with best-effort;\nignore sets the state aside")
	durability := flags.String("mirror-durability", intent.Process.String(), "what mirrors with --state-dir go on after without a full copy: the end of the daemon with process,\nof the host, too, with host")
	line.limits.addTo(flags)
	line.web.AddTo(flags)
	line.watch.addTo(flags)
	configs := flags.StringArray("config", nil, "take options from `FILE`, in YAML, as if they stood first; those of the command line override it or add to it")
	flags.BoolVar(&line.checkOnly, "check-config", false, "say what is wrong with the options, as far as can be told without acting on them, and exit")
	flags.BoolVarP(&line.help, "help", "h", false, "show this text")
	flags.BoolVarP(&line.version, "version", "V", false, "show the version")
	line.usage = "usage: blkmirrord [OPTION...]\n\nA storage daemon that exports disk images and mirrors them while they are in use.\n" +
		"Options act in the order in which they are given. A SPEC may also be a JSON object.\n\n" + flags.FlagUsages()
	if err := line.readConfigs(flags, files); err != nil {
		return nil, err
	}
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	if files == nil && len(*configs) > 0 {
		return parse(args, *configs)
	}
	for _, s := range line.steps {
		if !line.checkOnly {
			break
		}
		if err := s.check(); err != nil {
			return nil, err
		}
	}
	if err := line.limits.check(); err != nil {
		return nil, err
	}
	if err := line.web.Check(); err != nil {
		return nil, err
	}
	if err := line.watch.check(); err != nil {
		return nil, err
	}
	if !(*seconds >= 0 && *seconds <= maxDrain.Seconds()) { // NaN is neither
		return nil, fmt.Errorf("--drain-timeout %v: expects seconds from 0 to %v", *seconds, maxDrain.Seconds())
	}
	switch line.restore = restoreMode(*restore); {
	case line.restore != restoreStrict && line.restore != restoreBestEffort && line.restore != restoreIgnore:
		return nil, fmt.Errorf("--restore %s: expects strict, best-effort or ignore", *restore)
	case *durability != intent.Process.String() && *durability != intent.Host.String():
		return nil, fmt.Errorf("--mirror-durability %s: expects process or host", *durability)
	case flags.Changed("mirror-durability") && line.stateDir == "":
		return nil, fmt.Errorf("--mirror-durability %s: needs --state-dir", *durability)
	case flags.Changed("restore") && line.stateDir == "":
		return nil, fmt.Errorf("--restore %s: needs --state-dir", *restore)
	case flags.Changed("state-dir") && line.stateDir == "":
		return nil, fmt.Errorf("--state-dir: expects the path of a directory")
	}
	if line.durability = intent.Process; *durability == intent.Host.String() {
		line.durability = intent.Host
	}
	line.drain = time.Duration(*seconds * float64(time.Second))
	if rest := flags.Args(); len(rest) > 0 {
		return nil, fmt.Errorf("unexpected argument '%s'", strings.Join(rest, " "))
	}
	return line, nil
}
