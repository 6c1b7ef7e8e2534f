// SPDX-License-Identifier: Apache-2.0

// Package handlers carries out the commands of the monitor: it turns QMP's arguments into calls of the block layer, the
// exports and the jobs, and their answers and errors into QMP's. It is the only place that knows both sides.
//
// Commands run one at a time, those of the command line included; the server sees to that. Only while one connects to another
// host do others run, see Config.Aside. What jobs and exports do by themselves meanwhile is told as events.
package handlers

import (
	"context"
	"errors"
	"net"
	"slices"
	"time"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/budget"
	"github.com/blkmirror/blkmirror/block/driver/file"
	"github.com/blkmirror/blkmirror/block/export"
	"github.com/blkmirror/blkmirror/block/export/nbdserver"
	"github.com/blkmirror/blkmirror/block/filter/throttle"
	"github.com/blkmirror/blkmirror/daemon/state"
	"github.com/blkmirror/blkmirror/job"
	"github.com/blkmirror/blkmirror/job/mirror/intent"
	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
	"github.com/blkmirror/blkmirror/qmp/server"
)

// Config is what handlers need of the daemon.
type Config struct {
	Version api.VersionInfo
	// Emit announces an event. It never waits.
	Emit func(qmp.Event)
	// Shutdown ends everything that handlers opened is used by; quit calls it before it is answered.
	Quit func(ctx context.Context) error
	// NBD is told about connections.
	NBD nbdserver.Events
	// Refused is told about clients of the NBD server that its socket's allow-uids keeps out.
	Refused func(error)
	// Hold, unless nil, wraps the listener of the NBD server.
	Hold func(net.Listener) net.Listener
	// Operator changes how the daemon is watched; nil for nobody.
	Operator Operator
	// Limits bound what there may be of a kind.
	Limits Limits
	// Memory is where buffers of the NBD server's clients come from; nil for no bound.
	Memory *budget.Budget
	// Copies is where buffers of jobs come from; nil for no bound.
	Copies *budget.Budget
	// Explain may add to an error of a command what the system forbids the process.
	Explain func(error) error
	// Aside runs f, which waits for somebody else, while other commands may run, and returns its error. The context of f ends
	// when the daemon does; then there is an error in any case.
	Aside func(ctx context.Context, f func(ctx context.Context) error) error
	// Graph is where nodes are made; nil for a new one.
	Graph *block.Graph
	Host  Host
}

// Host is the machine that handlers find disks on. What is nil is that of the machine that the process runs on.
type Host struct {
	// OpenFile opens an image, see [file.Open].
	OpenFile func(file.Options) (block.Driver, error)
	// Identify says which disk is in an image, see [intent.Identify].
	Identify func(name string, size int64) (intent.Identity, error)
	// BootID tells this run of the machine from others, see [intent.BootID].
	BootID func() ([16]byte, error)
}

func (h *Host) complete() {
	if h.OpenFile == nil {
		h.OpenFile = func(o file.Options) (block.Driver, error) { return file.Open(o) }
	}
	if h.Identify == nil {
		h.Identify = intent.Identify
	}
	if h.BootID == nil {
		h.BootID = intent.BootID
	}
}

// Limits bound what there may be of a kind; 0 is no bound.
type Limits struct {
	Exports, Jobs, Nodes int
	// Requests and Request bound what a client of the NBD server can have under way, see [nbdserver.Options].
	Requests int
	Request  int64
}

// Handlers implements api.Commands on one daemon's graph, jobs and exports.
type Handlers struct {
	api.Introspection
	config  Config
	graph   *block.Graph
	jobs    *job.Registry
	exports *export.Registry
	nbd     *nbdserver.Server
	objects map[string]object
	doors   doorkeepers
	opened  map[*block.Node]*openedNode // what nodes were opened with
	jobNodes
	kept        kept
	news        news
	connections *connections // of the command that runs, see connecting
}

// object is something made by object-add.
type object struct {
	kind     api.ObjectType
	group    *throttle.Group         // of a throttle-group
	iothread *api.IothreadProperties // of an iothread, which has no effect here
	secrets                          // of an object for TLS or authorisation
	given    *api.ObjectOptions      // as the operator gave it
}

var _ api.Commands = (*Handlers)(nil)

// New makes handlers with an empty graph.
func New(c Config) *Handlers {
	if c.Aside == nil {
		c.Aside = func(ctx context.Context, f func(context.Context) error) error { return f(ctx) }
	}
	if c.Hold == nil {
		c.Hold = func(l net.Listener) net.Listener { return l }
	}
	if c.Explain == nil {
		c.Explain = func(err error) error { return err }
	}
	if c.Operator == nil {
		c.Operator = nobody{}
	}
	if c.Refused == nil {
		c.Refused = func(error) {}
	}
	if c.Graph == nil {
		c.Graph = block.NewGraph()
	}
	c.Host.complete()
	h := &Handlers{config: c, graph: c.Graph, objects: map[string]object{},
		opened: map[*block.Node]*openedNode{}}
	h.jobs = job.NewRegistry(jobEvents{c.Emit})
	h.jobs.Limit(c.Limits.Jobs)
	h.jobs.ShareMemory(c.Copies)
	h.exports = export.NewRegistry(func(id string) { c.Emit(&api.BlockExportDeletedEvent{ID: id}) })
	h.nbd = nbdserver.New(h.graph, h.exports, c.NBD)
	return h
}

// Dispatch executes a command of a monitor.
func (h *Handlers) Dispatch(ctx context.Context, name string, args *qmp.Object) (any, error) {
	h.takeNotes()
	h.announce(ctx)
	result, err := api.Dispatch(ctx, h, name, args)
	return result, asQMP(h.config.Explain(err))
}

// Close ends jobs, then exports, then nodes. It goes on after a failure. For as long as drain it waits for mirrors that are
// ready to end well, with a target that has everything that guests wrote; 0 cancels them like all other jobs.
func (h *Handlers) Close(ctx context.Context, drain time.Duration) error {
	var errs []error
	if drain > 0 {
		errs = append(errs, h.finishReady(ctx, drain))
	}
	errs = append(errs, h.keepJobs(ctx))
	errs = append(errs, h.jobs.CancelAll(ctx))
	if h.nbd.Running() {
		errs = append(errs, h.nbd.Stop(ctx))
	}
	var last *state.State
	if errors.Join(errs...) == nil { // else somebody may still write
		var err error
		last, err = h.recordEnd(ctx)
		errs = append(errs, err)
	}
	h.kept.on = false
	errs = append(errs, h.closeNodes(ctx))
	if errors.Join(errs...) == nil {
		errs = append(errs, h.restJobs(last))
	}
	return errors.Join(errs...)
}

// closeNodes closes all nodes from the top down, each of them for itself: one whose image cannot be brought to rest stays, with
// those below it.
func (h *Handlers) closeNodes(ctx context.Context) error {
	var errs []error
	stays := map[*block.Node]bool{}
	for {
		nodes := h.graph.Nodes()
		at := slices.IndexFunc(nodes, func(n *block.Node) bool {
			return h.graph.Monitored(n) && len(h.graph.Users(n)) == 0 && !stays[n]
		})
		if at < 0 {
			return errors.Join(errs...)
		}
		stays[nodes[at]] = true
		errs = append(errs, h.graph.Change(ctx, func(tx *block.Tx) error { return tx.RemoveNode(nodes[at]) }))
	}
}

// finishReady ends the exports, so that no guest writes any more, and then the jobs that are ready. What is not done in time
// is left to be cancelled; it is no error.
func (h *Handlers) finishReady(ctx context.Context, drain time.Duration) error {
	var ready []*job.Job
	for _, j := range h.jobs.Jobs() {
		if j.Info().Status == job.Ready {
			ready = append(ready, j)
		}
	}
	if len(ready) == 0 {
		return nil
	}
	limited, cancel := context.WithTimeout(ctx, drain)
	defer cancel()
	if h.nbd.Running() {
		if err := h.nbd.Stop(limited); err != nil && limited.Err() == nil {
			return err
		}
	}
	for _, j := range ready {
		_ = j.SoftCancel(false, nil) // one that is paused by now is cancelled later; any other has come to its end
	}
	for _, j := range ready {
		select {
		case <-j.Done():
		case <-limited.Done():
			return nil
		}
	}
	return nil
}

// after lets a job act on a verb once the verb is answered.
func after(ctx context.Context) job.After {
	return func(f func()) { server.AfterReply(ctx, f) }
}

// asQMP gives an error its class.
func asQMP(err error) error {
	if err == nil {
		return nil
	}
	var wire *qmp.Error
	if errors.As(err, &wire) {
		return wire
	}
	var refused *job.Error
	if errors.As(err, &refused) && refused.NotActive {
		return qmp.ClassErrorf(qmp.DeviceNotActive, "%s", refused.Text)
	}
	return qmp.Errorf("%s", err)
}

// QueryVersion tells what the daemon is.
func (h *Handlers) QueryVersion(context.Context) (api.VersionInfo, error) {
	return h.config.Version, nil
}

// QueryCommands lists the commands.
func (h *Handlers) QueryCommands(context.Context) ([]api.CommandInfo, error) {
	var list []api.CommandInfo
	for _, name := range api.CommandNames() {
		list = append(list, api.CommandInfo{Name: name})
	}
	return list, nil
}

// Quit ends the daemon. It returns when all is closed, so that its reply is the last thing that is sent.
func (h *Handlers) Quit(ctx context.Context) error { return h.config.Quit(ctx) }
