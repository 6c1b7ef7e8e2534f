// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"

	"github.com/sirupsen/logrus"
	"github.com/spf13/pflag"

	"github.com/blkmirror/blkmirror/block/trace"
	"github.com/blkmirror/blkmirror/daemon/build"
	"github.com/blkmirror/blkmirror/daemon/logging"
	"github.com/blkmirror/blkmirror/daemon/metrics"
	"github.com/blkmirror/blkmirror/job"
	"github.com/blkmirror/blkmirror/job/mirror"
)

// watchOptions are those of the command line that say how the daemon is watched.
type watchOptions struct {
	metrics       string
	metricsRemote bool
	format, level string

	trace                    string
	traceNodes, traceExports []string
	traceLimit               size
}

func (o *watchOptions) addTo(flags *pflag.FlagSet) {
	flags.StringVar(&o.metrics, "metrics", "", "serve metrics for Prometheus at `ADDR`: 127.0.0.1:PORT, [::1]:PORT, or the PATH of a socket;\n--web has them, too")
	flags.BoolVar(&o.metricsRemote, "metrics-remote", false, "let ADDR be one that other hosts reach: they see names of nodes, exports and jobs")
	flags.StringVar(&o.format, "log-format", string(logging.Auto), "write the log as text, json or journald; auto finds out which of text and journald")
	flags.StringVar(&o.level, "log-level", "info", "log error, warning, info or debug messages, and what is worse")
	flags.StringVar(&o.trace, "trace", "", "record single requests in `FILE`, which must not exist; 'blkmirror trace FILE' shows them")
	flags.StringArrayVar(&o.traceNodes, "trace-node", nil, "record those of node `NAME`, not of all nodes and exports")
	flags.StringArrayVar(&o.traceExports, "trace-export", nil, "record those of export `ID`, not of all nodes and exports")
	o.traceLimit = trace.DefaultLimit
	flags.Var(&o.traceLimit, "trace-limit", "let FILE have at most `BYTES`; what comes then is counted")
}

func (o *watchOptions) traceOptions() trace.Options {
	return trace.Options{Nodes: o.traceNodes, Exports: o.traceExports, Limit: int64(o.traceLimit)}
}

func (o *watchOptions) check() error {
	if o.trace == "" && (len(o.traceNodes)+len(o.traceExports) > 0 || o.traceLimit != trace.DefaultLimit) {
		return errors.New("--trace-node, --trace-export and --trace-limit need --trace")
	}
	if _, err := logging.ParseFormat(o.format); err != nil {
		return fmt.Errorf("--log-format: %w", err)
	}
	if _, err := logging.ParseLevel(o.level); err != nil {
		return fmt.Errorf("--log-level: %w", err)
	}
	if o.metrics == "" {
		if o.metricsRemote {
			return errors.New("--metrics-remote needs --metrics")
		}
		return nil
	}
	return metrics.CheckAddress(o.metrics, o.metricsRemote)
}

// logger makes the log that the options ask for; they were checked.
func (o *watchOptions) logger(out io.Writer) *logrus.Logger {
	level, err := logging.ParseLevel(o.level)
	if err != nil {
		level = logrus.InfoLevel
	}
	return logging.New(out, logging.Format(o.format), level)
}

// metricsHandler answers scrapes; it is made when somebody serves it.
func (d *Daemon) metricsHandler() http.Handler {
	return metrics.Handler(metrics.Source{Graph: d.handlers.Graph(), Jobs: d.handlers.Jobs(), Exports: d.handlers.Exports(),
		NBD: d.handlers.NBD(), Memory: d.memory, Counts: d.counts, Clients: d.server.Clients,
		Trace: d.traced, State: d.state != nil, Build: build.Read()}, d.log)
}

func (d *Daemon) startMetrics(o *watchOptions) (err error) {
	if o.metrics != "" {
		d.metrics, err = metrics.Serve(o.metrics, o.metricsRemote, d.metricsHandler(), d.log)
	}
	return err
}

// tellManager tells the service manager that all is served, and how the daemon is from then on, until stop.
func (d *Daemon) tellManager(ctx context.Context) (stop func()) {
	if d.manager == nil {
		return func() {}
	}
	d.managerTrouble(d.manager.Ready(d.status()))
	ctx, cancel := context.WithCancel(ctx)
	var work sync.WaitGroup
	work.Go(func() { d.manager.Keep(ctx, d.pulse, d.status, d.managerTrouble) })
	return func() {
		cancel()
		work.Wait()
	}
}

func (d *Daemon) tellStopping() { d.managerTrouble(d.manager.Stopping()) }

func (d *Daemon) managerTrouble(err error) {
	if err != nil {
		d.log.WithField("err", err).Error("service manager")
	}
}

// pulse goes through every part of the daemon that must never wait for long: the locks of the graph, of jobs and of clients. It
// hangs if one of them does. A command may take its time, and so may a disk: neither is a reason to end the daemon.
func (d *Daemon) pulse() {
	for _, n := range d.handlers.Graph().Nodes() {
		for _, b := range n.Bitmaps() {
			b.Info()
		}
	}
	for _, j := range d.handlers.Jobs().Jobs() {
		j.Info()
		if m, ok := j.Body().(*mirror.Mirror); ok {
			m.State()
		}
	}
	for _, e := range d.handlers.Exports().List() {
		e.ShuttingDown()
	}
	d.handlers.NBD().Clients()
	d.memory.Use()
	d.server.Clients()
}

// status is a line about what the daemon does.
func (d *Daemon) status() string {
	clients, _ := d.handlers.NBD().Clients()
	parts := []string{plural(len(d.handlers.Exports().List()), "export"), plural(clients, "client")}
	jobs := d.handlers.Jobs().Jobs()
	const shown = 3
	for i, j := range jobs {
		if i == shown {
			parts = append(parts, fmt.Sprintf("%d more jobs", len(jobs)-shown))
			break
		}
		parts = append(parts, jobLine(j))
	}
	return strings.Join(parts, ", ")
}

func jobLine(j *job.Job) string {
	i := j.Info()
	text := fmt.Sprintf("%s %s %s", i.Type, i.ID, i.Status)
	if i.Total > 0 {
		text += fmt.Sprintf(" %d%%", int64(100*(float64(i.Current)/float64(i.Total))))
	}
	m, ok := j.Body().(*mirror.Mirror)
	if !ok || i.Status != job.Running {
		return text
	}
	s := m.State()
	text += fmt.Sprintf(" at %d MiB/s", s.Rate>>20)
	if s.SecondsLeft > 0 {
		text += fmt.Sprintf(" for %d s", s.SecondsLeft)
	}
	return text
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
