// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/blkmirror/blkmirror/block/budget"
	"github.com/blkmirror/blkmirror/block/export/nbdserver"
	"github.com/blkmirror/blkmirror/daemon/build"
	"github.com/blkmirror/blkmirror/daemon/handlers"
	"github.com/blkmirror/blkmirror/daemon/metrics"
	"github.com/blkmirror/blkmirror/daemon/notify"
	"github.com/blkmirror/blkmirror/daemon/options"
	"github.com/blkmirror/blkmirror/daemon/sandbox"
	"github.com/blkmirror/blkmirror/daemon/state"
	"github.com/blkmirror/blkmirror/daemon/web"
	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
	"github.com/blkmirror/blkmirror/qmp/server"
)

// stopTime is how long an orderly stop may take before the daemon exits all the same.
const stopTime = 60 * time.Second

// lastWords is how long clients may take to read what was queued for them.
const lastWords = 2 * time.Second

// Daemon is one running daemon.
type Daemon struct {
	log      *logrus.Entry
	sandbox  *sandbox.Sandbox // nil without --sandbox
	handlers *handlers.Handlers
	server   *server.Server
	command  sync.Mutex         // held by what runs: a command, or the way out
	closed   bool               // guarded by command: no command is to run any more
	channels map[string]channel // by id
	serving  sync.WaitGroup
	started  chan struct{} // closed when the command line was carried out
	quit     chan struct{} // closed when a quit was carried out
	drain    time.Duration // how long a stop waits for ready mirrors
	state    *state.Dir    // nil without --state-dir
	web      *web.Server   // nil without --web
	memory   *budget.Budget
	counts   *metrics.Counts
	metrics  *metrics.Server // nil without --metrics
	manager  *notify.Manager // nil without one
	trace    tracer
}

// channel is a chardev that a monitor may be put on.
type channel struct {
	listener net.Listener // nil for standard input and output
	how      server.ListenerOptions
	used     bool
}

// Main runs a daemon with the arguments of its command line and returns the exit status.
func Main(args []string, stdout, stderr io.Writer) int {
	line, err := parseCommandLine(args)
	if err != nil {
		fmt.Fprintf(stderr, "blkmirrord: %s\nTry 'blkmirrord --help'.\n", err)
		return 1
	}
	switch {
	case line.help:
		fmt.Fprint(stdout, line.usage)
		return 0
	case line.version:
		fmt.Fprint(stdout, build.Read().Describe("blkmirrord"))
		return 0
	}
	if line.checkOnly {
		fmt.Fprintln(stdout, "blkmirrord: the options are well-formed")
		return 0
	}
	if line.daemonize && !isBackground() {
		return startBackground(args, stderr)
	}
	if err := run(line, logrus.NewEntry(line.watch.logger(stderr))); err != nil {
		fmt.Fprintf(stderr, "blkmirrord: %s\n", err)
		return 1
	}
	return 0
}

// run starts everything, serves until it is told to end, and takes everything down.
func run(line *commandLine, log *logrus.Entry) (err error) {
	stopping, ignore := untilSignal(log)
	defer ignore()

	manager, err := notify.New(os.Getenv)
	if err != nil {
		return err
	}
	if limit := limitMemory(os.DirFS("/"), os.Getenv); limit > 0 {
		log.WithField("limit", limit).Debug("memory limit of the control group")
	}
	box, err := line.limits.confine()
	if err != nil {
		return err
	}
	if box != nil && len(box.Missing) > 0 {
		log.WithField("missing", strings.Join(box.Missing, ", ")).Warn("the kernel cannot confine the daemon as --sandbox asks")
	}
	defer func() { err = box.Explain(err) }()
	d := newDaemon(log, &line.limits, box)
	d.drain, d.manager = line.drain, manager
	defer func() { err = errors.Join(err, d.closeState()) }()
	defer func() { err = errors.Join(err, d.endTrace()) }()
	defer func() { err = errors.Join(err, d.stop()) }()
	if w := &line.watch; w.trace != "" {
		if err := d.StartTrace(w.trace, w.traceOptions()); err != nil {
			return fmt.Errorf("--trace %s: %w", w.trace, err)
		}
	}
	steps := line.steps
	if line.stateDir != "" {
		if steps, err = d.restore(context.Background(), line); err != nil {
			return err
		}
	}
	for _, s := range steps {
		switch err := d.perform(stopping, s); {
		case stopping.Err() != nil:
			return nil
		case err != nil:
			return err
		}
	}
	if err := d.startWeb(line); err != nil {
		return err
	}
	if err := d.startMetrics(&line.watch); err != nil {
		return err
	}
	if line.pidFile != "" {
		pid, err := writePIDFile(line.pidFile)
		if err != nil {
			return err
		}
		defer pid.remove()
	}
	if line.daemonize {
		if err := reportReady(); err != nil {
			return err
		}
	}
	close(d.started)
	stopTelling := d.tellManager(context.Background())
	select {
	case <-d.quit:
		stopTelling()
		return nil
	case <-stopping.Done():
	}
	d.tellStopping()
	stopTelling()
	ctx, cancel := context.WithTimeout(context.Background(), stopTime+d.drain)
	defer cancel()
	return d.close(ctx)
}

// untilSignal returns a context that ends with the first signal that stops the daemon. A second one ends the process. ignore has
// signals do nothing any more.
func untilSignal(log *logrus.Entry) (ctx context.Context, ignore func()) {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	signal.Ignore(syscall.SIGPIPE)
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		s, more := <-signals
		if !more {
			return
		}
		log.WithField("signal", s.String()).Info("stopping")
		cancel()
		if s, more = <-signals; more {
			log.WithField("signal", s.String()).Error("stopped at once by a second signal")
			os.Exit(1)
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		close(signals)
		cancel()
	}
}

func newDaemon(log *logrus.Entry, l *limits, box *sandbox.Sandbox) *Daemon {
	d := &Daemon{log: log, sandbox: box, channels: map[string]channel{}, quit: make(chan struct{}),
		started: make(chan struct{}), memory: budget.New(int64(l.memory)), counts: metrics.NewCounts()}
	version := api.VersionInfo{QEMU: api.VersionTriple{Major: 11, Minor: 1, Micro: 3}, Package: "blkmirror " + build.Read().String()}
	d.handlers = handlers.New(handlers.Config{
		Version: version,
		Emit: func(e qmp.Event) {
			d.counts.Event(e)
			d.server.Emit(e)
		},
		Quit:     d.quitCommand,
		Operator: d,
		NBD:      nbdEvents(log),
		Refused:  func(err error) { log.WithField("err", err).Warn("NBD server refused a client") },
		Aside:    d.aside,
		Hold:     d.hold,
		Limits:   l.handlers,
		Memory:   budget.New(int64(l.memory - l.copies)),
		Copies:   budget.New(int64(l.copies)),
		Explain:  box.Explain,
	})
	d.server = server.New(server.Config{
		Version: version, Log: log, MaxClients: l.clients,
		Limits: qmp.Limits{Bytes: int(l.message), Depth: l.depth}, Busy: d.handlers.Busy,
		Commands: func(ctx context.Context, name string, args *qmp.Object) (any, error) {
			d.command.Lock()
			defer d.command.Unlock()
			if d.closed {
				return nil, server.ErrClosed
			}
			result, err := d.handlers.Dispatch(ctx, name, args)
			d.counts.Command(name, err)
			return result, err
		}})
	return d
}

// aside runs a part of a command while other commands may run.
func (d *Daemon) aside(ctx context.Context, f func(context.Context) error) error {
	d.command.Unlock()
	err := server.Aside(ctx, f)
	d.command.Lock()
	if d.closed {
		return server.ErrClosed
	}
	return err
}

func nbdEvents(log *logrus.Entry) nbdserver.Events {
	return nbdserver.Events{
		Closed: func(c nbdserver.Conn, err error) {
			if err != nil {
				log.WithFields(logrus.Fields{"conn": c.ID, "export": c.Export, "err": err}).Warn("NBD connection ended")
			}
		},
		AcceptFailed: func(err error) { log.WithField("err", err).Warn("NBD server cannot accept a connection") },
	}
}

// perform carries out one option of the command line.
func (d *Daemon) perform(ctx context.Context, s step) error {
	d.command.Lock()
	defer d.command.Unlock()
	var err error
	switch s.option {
	case "blockdev":
		err = with(options.Blockdev, s.text, func(o *api.BlockdevOptions) error { return d.handlers.BlockdevAdd(ctx, o) })
	case "object":
		err = with(options.Object, s.text, func(o *api.ObjectOptions) error { return d.handlers.ObjectAdd(ctx, o) })
	case "nbd-server":
		err = with(options.NBDServer, s.text, func(o *api.NbdServerOptions) error { return d.handlers.StartNBD(ctx, o) })
	case "export":
		err = with(options.Export, s.text, func(o *api.BlockExportOptions) error { return d.handlers.BlockExportAdd(ctx, o) })
	case "chardev":
		err = with(options.Chardev, s.text, d.addChannel)
	case "monitor":
		err = with(options.Monitor, s.text, d.addMonitor)
	case "qmp":
		err = with(options.QMP, s.text, d.addQMP)
	}
	return s.explain(err)
}

// optionError is one that names its option already.
type optionError struct{ error }

func with[T any](parse func(string) (*T, error), text string, do func(*T) error) error {
	o, err := parse(text)
	if err != nil {
		return optionError{err}
	}
	return do(o)
}

// quitCommand is what the quit command does before it is answered.
func (d *Daemon) quitCommand(ctx context.Context) error {
	d.tellStopping()
	d.server.StopCommands()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTime+d.drain)
	defer cancel()
	err := d.handlers.Close(ctx, d.drain)
	server.AfterReply(ctx, func() { close(d.quit) })
	return err
}

// close ends jobs, exports and nodes when no command runs any more.
func (d *Daemon) close(ctx context.Context) error {
	d.server.StopCommands()
	d.command.Lock()
	defer d.command.Unlock()
	d.closed = true
	return d.handlers.Close(ctx, d.drain)
}

// stop ends the monitors, after whatever ended the daemon.
func (d *Daemon) stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), lastWords)
	defer cancel()
	var errs []error
	for _, c := range d.channels {
		if c.listener != nil && !c.used {
			errs = append(errs, c.listener.Close())
		}
	}
	errs = append(errs, d.web.Stop(ctx), d.metrics.Stop(ctx))
	if err := d.server.Shutdown(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		errs = append(errs, err)
	}
	d.serving.Wait()
	select {
	case <-d.quit:
	default: // a failed start, or a signal, which has closed everything already
		closing, cancel := context.WithTimeout(context.Background(), stopTime)
		defer cancel()
		errs = append(errs, d.handlers.Close(closing, 0))
	}
	return errors.Join(errs...)
}
