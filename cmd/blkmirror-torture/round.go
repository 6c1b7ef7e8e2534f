// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"syscall"

	"github.com/blkmirror/blkmirror/block/nbd/nbdguest"
)

// Names in the daemon.
const (
	sourceNode = "src"
	targetNode = "dst"
	filterNode = "filter" // of the mirror, in some rounds
	exportID   = "guest"
	exportName = "disk"
	jobID      = "m"
)

// reconnectDelay is how long the daemon's requests wait for a target's server that is away, seconds: longer than any is away here.
const reconnectDelay = 40

var generatedNames = regexp.MustCompile("#block[0-9]+")

// round is one round under way.
type round struct {
	*settings
	*plan
	say    func(format string, args ...any)
	counts *counts
	random *rand.Rand // of what is no part of the plan, such as the contents of images
	folder string

	model  *model
	daemon *daemon
	server *server // nil with a target of the daemon's own
	line   *proxy  // the same
	guests []*guest
	space  *small // nil where the target lies on the plain file system
	state  *small // the same for the state
	image  string // of the target

	expected string // picture of nodes and exports while guests use the source, or, after the pivot, the target
	started  bool   // a mirror was started in this process of the daemon, or went on in it
	excused  bool   // something was done for which a mirror may fail
	onTarget bool   // guests use the target
	helped   bool   // the mirror was let go as fast as it can
	over     bool   // the mirror was ended as planned
	copied   bool   // it ended well
	errors   bool   // the plan has errors of disks that guests may see

	remote atomic.Bool // guests may use the target, and it is another process that carries out their requests
}

// runRound runs the round of a plan in a new folder, which it removes if all went well.
func runRound(ctx context.Context, s *settings, p *plan, c *counts, say func(string, ...any)) error {
	r, err := newRound(s, p, c, say)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, s.limit, fmt.Errorf("the round took longer than %v", s.limit))
	defer cancel()
	err = r.run(ctx)
	if err == nil {
		err = r.verify(ctx)
	}
	r.account()
	err = errors.Join(err, r.end(err != nil))
	if err == nil && !s.keep {
		return os.RemoveAll(r.folder)
	}
	if err != nil {
		text := fmt.Sprintf("%v\n\n%v\n", p, err)
		err = errors.Join(err, os.WriteFile(r.path("failure"), []byte(text), 0o600))
	}
	return err
}

func newRound(s *settings, p *plan, c *counts, say func(string, ...any)) (*round, error) {
	r := &round{settings: s, plan: p, counts: c, say: say, random: rand.New(rand.NewPCG(p.seed, 1))}
	r.folder = filepath.Join(s.folder, fmt.Sprintf("torture-%d", p.seed))
	r.errors = len(p.sourceRules)+len(p.targetRules) > 0
	r.excused = r.errors
	return r, os.Mkdir(r.folder, 0o700)
}

func (r *round) path(name string) string { return filepath.Join(r.folder, name) }

// run does what the plan says. Then nobody uses the images any more.
func (r *round) run(ctx context.Context) error {
	if err := r.prepare(ctx); err != nil {
		return fmt.Errorf("preparing: %w", err)
	}
	for i, st := range r.steps {
		if err := r.step(ctx, st); err != nil {
			return fmt.Errorf("step %d, %s: %w", i+1, st.what, err)
		}
	}
	if err := r.finishMirror(ctx); err != nil {
		return fmt.Errorf("%s: %w", r.plan.end, err)
	}
	r.over = true
	for _, g := range r.guests {
		took := g.slowest()
		r.counts.longest("longest wait of a guest on the source", took)
		if took > guestLimit {
			return fmt.Errorf("a guest waited for %v while it was on the source", took)
		}
	}
	for i, st := range r.after {
		if err := r.step(ctx, st); err != nil {
			return fmt.Errorf("step %d after the mirror, %s: %w", i+1, st.what, err)
		}
	}
	if err := r.stop(ctx); err != nil {
		return fmt.Errorf("the end: %w", err)
	}
	return nil
}

// prepare makes disks, processes and guests.
func (r *round) prepare(ctx context.Context) (err error) {
	r.model = newModel(r.size, r.seed)
	if err := makeSource(ctx, r.settings, r.plan, r.path("source"), r.model, r.random); err != nil {
		return err
	}
	r.image = r.path("target")
	if r.medium != mediumPlain {
		if r.space, err = mountSmall(r.medium, r.path("small"), 2*r.size+12<<20); err != nil {
			return err
		}
		r.image = filepath.Join(r.space.folder, "target")
	}
	if r.medium == mediumLoop {
		if r.image, err = r.space.attach(r.size); err != nil {
			return err
		}
	} else if err := makeTarget(ctx, r.settings, r.targetFormat, r.image, r.size); err != nil {
		return err
	}
	if r.smallState {
		if r.state, err = mountSmall(mediumTmpfs, r.path("smallstate"), 1<<20); err != nil {
			return err
		}
	}
	if r.plan.target != targetFile {
		r.server = newServer(r.settings, r.plan.target, r.folder, r.image, r.targetFormat)
		if err := r.server.start(ctx); err != nil {
			return err
		}
		if r.line, err = startProxy(r.path("line"), r.path("server")); err != nil {
			return err
		}
	}
	if err := r.startDaemon(ctx); err != nil {
		return err
	}
	for i := range r.plan.guests {
		g := &guest{socket: r.path("nbd"), export: exportName, model: r.model, pause: r.pause, forgive: r.forgive, late: r.remote.Load,
			hot: r.hot, durable: r.sourceFormat != "raw" || r.targetFormat != "raw"}
		g.start(r.seed+uint64(i)*1000, r.lanes)
		r.guests = append(r.guests, g)
	}
	return r.startMirror(ctx)
}

// forgive says whether a guest may see an error: only those of fault nodes.
func (r *round) forgive(errno nbdguest.Errno, _ nbdguest.CommandType) bool {
	return r.errors && errno == nbdguest.EIO
}

// hold lets all guests hold still.
func (r *round) hold(ctx context.Context) error {
	for _, g := range r.guests {
		if err := g.hold(ctx); err != nil {
			return err
		}
	}
	return nil
}

// guestError is what went wrong for a guest.
func (r *round) guestError() error {
	for _, g := range r.guests {
		if err := g.error(); err != nil {
			return err
		}
	}
	return nil
}

// stop ends guests, daemon and server in good order.
func (r *round) stop(ctx context.Context) error {
	if err := r.hold(ctx); err != nil {
		return err
	}
	for _, g := range r.guests {
		g.end()
	}
	if err := r.look(ctx); err != nil {
		return err
	}
	how := func() { r.daemon.process.signal(syscall.SIGTERM) }
	if r.plan.stop == "quit" {
		if err := r.daemon.do(ctx, "quit", nil, nil); err != nil {
			return err
		}
		how = func() {}
	}
	if err := r.stopDaemon(ctx, how); err != nil {
		return err
	}
	if r.server != nil {
		r.line.close()
		return r.server.stop(ctx)
	}
	return nil
}

// stopDaemon has the daemon end in good order. If a disk failed its last flush, that is no success.
func (r *round) stopDaemon(ctx context.Context, how func()) error {
	err := r.daemon.stop(ctx, how)
	var exit *exitError
	if r.errors && errors.As(err, &exit) && exit.status == 1 && strings.Contains(exit.said, "input/output error") {
		return nil
	}
	return err
}

// end ends whatever still runs, and gives back what the machine lent.
func (r *round) end(failed bool) (err error) {
	for _, g := range r.guests {
		g.end()
	}
	if r.daemon != nil && r.daemon.process != nil {
		if r.daemon.process.alive() {
			r.daemon.process.dump()
		}
		r.daemon.hangUp()
	}
	if r.server != nil && r.server.process != nil {
		r.server.process.kill()
	}
	if r.line != nil {
		r.line.close()
	}
	for _, fs := range []*small{r.space, r.state} {
		if fs == nil {
			continue
		}
		if failed {
			err = errors.Join(err, exec.Command("cp", "-a", "--sparse=always", fs.folder, fs.folder+".kept").Run())
		}
		err = errors.Join(err, fs.unmount())
	}
	return err
}

// account adds what guests and job saw to the counts.
func (r *round) account() {
	for _, g := range r.guests {
		r.counts.add("guest requests answered", g.done.Load())
		r.counts.add("guest bytes written", g.writes.Load())
		r.counts.add("guest requests whose answer was lost", g.lost.Load())
		r.counts.add("guest connections made again", max(0, g.again.Load()-1))
		r.counts.fault(failGuest, g.failed.Load())
		r.counts.longest("longest wait of a guest, on the target too", g.slowest())
	}
	if r.daemon == nil {
		return
	}
	r.daemon.mu.Lock()
	defer r.daemon.mu.Unlock()
	r.counts.fault(failTarget, int64(r.daemon.mu.errors["write"]))
	r.counts.fault(failSource, int64(r.daemon.mu.errors["read"]))
	r.counts.add("starts of the daemon", int64(r.daemon.starts))
	r.counts.add("events MIRROR_RESUMED", int64(r.daemon.mu.events["MIRROR_RESUMED"]))
}
