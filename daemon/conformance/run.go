// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/blkmirror/blkmirror/block/nbd/nbdguest"
)

// Options say how scenarios are run.
type Options struct {
	// Daemon is the command that starts the daemon; arguments are added.
	Daemon []string
	// Bound is how long a scenario may take.
	Bound time.Duration
	// Patience is how long one reply, event or NBD answer may take.
	Patience time.Duration
	// Folder is where the scenario gets a folder of its own. Sockets are made
	// in it, so its name must be short; its file system must have holes.
	Folder string
	// Keep leaves the scenario's folder there.
	Keep bool
}

// Result is what came of a run.
type Result struct {
	Outcomes [][]Outcome // of the steps carried out
	Stderr   string      // the last of what the daemon printed
	Folder   string      // the scenario's folder, if it was kept
}

const (
	mainMonitor = "main"
	// maxFolder keeps paths of sockets below the 108 bytes that Linux allows.
	maxFolder = 80
	// maxStderr is how much of the daemon's output a result holds, in bytes.
	maxStderr = 8 << 10
)

var errOverdue = errors.New("the scenario took too long")

// run is a scenario being carried out.
type run struct {
	options  Options
	dir      string
	dirs     []string // dir and, if it differs, its path without symbolic links; longest first
	daemon   *process
	monitors []*monitor
	guests   []*guest
	queued   []queuedRequest
	hammers  []*hammer
}

// guest is an NBD connection with the name that the scenario gave it.
type guest struct {
	name   string
	client *nbdguest.Client
}

// Steps by verb. Those of a monitor are told which one.
var (
	monitorSteps map[string]func(context.Context, *run, *monitor, Step) ([]Outcome, error)
	plainSteps   map[string]func(context.Context, *run, string) ([]Outcome, error)
)

func init() { // not initialisers, because Parse looks at the tables and steps may lead back to it
	monitorSteps = map[string]func(context.Context, *run, *monitor, Step) ([]Outcome, error){
		"qmp": doQMP, "flow": doFlow, "send": doSend, "reply": doReply, "wait": doWait, "events": doEvents,
		"forget": doForget, "ignore": doIgnore, "until": doUntil, "greeting": doGreeting, "negotiate": doNegotiate,
	}
	plainSteps = map[string]func(context.Context, *run, string) ([]Outcome, error){
		"image": doImage, "qcow2": doQcow2, "content": doContent, "alloc": doAlloc, "same": doSame, "exists": doExists,
		"daemon": doDaemon, "daemon-exits": doDaemonExits, "connect": doConnect, "disconnect": doDisconnect,
		"quit": doQuit, "kill": doKill, "pidfile": doPidfile, "sleep": doSleep, "disk": doDisk,
		"serve": doServe, "attach": doAttach, "detach": doDetach, "refused": doRefused, "flags": doFlags,
		"guest": doGuest, "modelled": doModelled,
	}
}

// Run carries out a scenario. An error means that it could not even begin;
// whatever goes wrong later is part of the outcome. When Run returns, the
// daemon and everything else it started has ended.
func Run(ctx context.Context, s *Scenario, options Options) (Result, error) {
	if len(options.Folder) > maxFolder {
		return Result{}, fmt.Errorf("folder %q is too long for sockets below it", options.Folder)
	}
	dir, err := os.MkdirTemp(options.Folder, "cf-")
	if err != nil {
		return Result{}, err
	}
	if err := os.Chmod(dir, 0o755); err != nil { // the daemon may be someone else
		return Result{}, err
	}
	r := &run{options: options, dir: dir, dirs: []string{dir}}
	if plain, err := filepath.EvalSymlinks(dir); err == nil && plain != dir {
		r.dirs = append(r.dirs, plain)
		slices.SortFunc(r.dirs, func(a, b string) int { return len(b) - len(a) })
	}
	ctx, cancel := context.WithTimeoutCause(ctx, options.Bound, errOverdue)
	result := Result{Outcomes: r.all(ctx, s)}
	cancel()
	r.cleanUp()
	result.Stderr = r.stderr()
	if options.Keep {
		result.Folder = dir
		return result, nil
	}
	return result, os.RemoveAll(dir)
}

// all carries out the steps up to the first that is impossible.
func (r *run) all(ctx context.Context, s *Scenario) [][]Outcome {
	var outcomes [][]Outcome
	for _, step := range s.Steps {
		lines, err := r.perform(ctx, step)
		if err != nil {
			return append(outcomes, append(lines, words("stopped: %s", r.explain(ctx, err))))
		}
		outcomes = append(outcomes, lines)
	}
	last := len(outcomes) - 1
	outcomes[last] = append(outcomes[last], r.finish(ctx)...)
	return outcomes
}

func (r *run) perform(ctx context.Context, step Step) ([]Outcome, error) {
	step.Rest = strings.ReplaceAll(step.Rest, "$dir", r.dir)
	if do, ok := plainSteps[step.Verb]; ok {
		return do(ctx, r, step.Rest)
	}
	m := r.monitor(step.Monitor)
	if m == nil {
		return nil, fmt.Errorf("no monitor %q", step.Monitor)
	}
	return monitorSteps[step.Verb](ctx, r, m, step)
}

// explain says why a step was impossible. A dead daemon is the likeliest
// reason, and its death may come to light a little later.
func (r *run) explain(ctx context.Context, problem error) string {
	if context.Cause(ctx) == errOverdue {
		return fmt.Sprintf("%v (%v)", errOverdue, r.options.Bound)
	}
	text := problem.Error()
	if r.daemon == nil {
		return text
	}
	select {
	case <-r.daemon.exited:
		text += fmt.Sprintf("; daemon exit status %d", r.daemon.status)
	case <-time.After(min(r.options.Patience, time.Second/2)):
	}
	return text
}

// finish looks at what happened that no step asked about, and tells the
// daemon to quit.
func (r *run) finish(ctx context.Context) []Outcome {
	if r.daemon == nil {
		return nil
	}
	var lines []Outcome
	if r.daemon.running() {
		for _, m := range r.monitors {
			if !m.negotiated {
				continue
			}
			left, err := m.eventsSoFar(ctx)
			for _, event := range left {
				lines = append(lines, words("left over on %s: %v", m.name, r.showEvent(event)))
			}
			if err != nil {
				lines = append(lines, words("stopped: %s", r.explain(ctx, err)))
			}
		}
		for _, g := range r.guests {
			g.client.Close()
		}
		lines = append(lines, r.quitDaemon(ctx)...)
	}
	status := r.exitStatus(ctx)
	if status != "0" && status != fmt.Sprint(-int(syscall.SIGTERM)) {
		lines = append(lines, words("daemon exit status %s", status))
	}
	return lines
}

// quitDaemon asks over the main monitor if that is possible, and else with a
// signal.
func (r *run) quitDaemon(ctx context.Context) []Outcome {
	m := r.monitor(mainMonitor)
	if m != nil && m.negotiated {
		if _, err := m.command(ctx, "quit", nil); err != nil {
			return []Outcome{words("stopped: %s", r.explain(ctx, err))}
		}
	} else if err := r.daemon.os.Signal(syscall.SIGTERM); err != nil && r.daemon.running() {
		return []Outcome{words("stopped: %v", err)}
	}
	return nil
}

// exitStatus waits for the daemon's end.
func (r *run) exitStatus(ctx context.Context) string {
	timeout := time.NewTimer(r.options.Patience)
	defer timeout.Stop()
	select {
	case <-r.daemon.exited:
		return fmt.Sprint(r.daemon.status)
	case <-timeout.C:
	case <-ctx.Done():
	}
	return "still running"
}

// cleanUp ends everything that the scenario started and waits for it.
func (r *run) cleanUp() {
	if r.daemon != nil {
		r.daemon.kill()
		<-r.daemon.exited
	}
	for _, g := range r.guests {
		g.client.Close()
	}
	for _, h := range r.hammers {
		h.halt()
		<-h.done
	}
	for _, m := range r.monitors {
		m.close()
	}
}

// stderr is the end of what the daemon printed.
func (r *run) stderr() string {
	text, err := os.ReadFile(r.path("stderr"))
	if err != nil {
		return "" // it was never started
	}
	return strings.TrimSpace(string(text[max(0, len(text)-maxStderr):]))
}

func (r *run) path(name string) string { return filepath.Join(r.dir, name) }

func (r *run) monitor(name string) *monitor {
	for _, m := range r.monitors {
		if m.name == name {
			return m
		}
	}
	return nil
}

// guest finds a guest; without a name, the first one there is.
func (r *run) guest(name string) (*guest, error) {
	for _, g := range r.guests {
		if g.name == name || name == "" {
			return g, nil
		}
	}
	return nil, fmt.Errorf("no guest %q", name)
}

// waitForSocket connects to a socket that the daemon is about to make.
func (r *run) waitForSocket(ctx context.Context, path string) (net.Conn, error) {
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	var dialer net.Dialer
	for {
		conn, err := dialer.DialContext(ctx, "unix", path)
		if err == nil {
			return conn, nil
		}
		select {
		case <-again.C:
		case <-r.daemon.exited:
			return nil, fmt.Errorf("daemon ended, it said: %s", r.stderr())
		case <-ctx.Done():
			return nil, fmt.Errorf("no monitor socket: %w", err)
		}
	}
}
