// SPDX-License-Identifier: Apache-2.0

// Package engine is a daemon without monitors: the commands of one, carried out in this process.
//
//	Execute ──► daemon/handlers ──► nodes, jobs       what a session with a daemon has, without socket
//	Events  ◄──────────┘
//	Reader  ──► NBD client ──► NBD server ──► node    what a guest would read, for comparing
//
// It stands on daemon/handlers, and neither on a whole daemon.Daemon nor on packages block and job alone. A daemon has what
// nobody needs here: a command line, signal handlers, monitors, a state directory. Blocks and jobs alone would need all that
// handlers knows over again: how names of files become nodes, how the header of an image leads to its backing files, how a host
// is connected to, with what certificates. And since Execute and Events are those of a session, whatever follows a job, or makes
// an image, does not know whether there is a daemon.
//
// Handlers do not hand out their nodes, so a Reader goes the way of a guest: by an NBD export, over a socket in a folder that only
// this user can enter.
package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/blkmirror/blkmirror/daemon/handlers"
	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
	"github.com/blkmirror/blkmirror/qmp/client"
)

// eventBuffer is how many events wait before some are lost.
const eventBuffer = 1 << 14

// Engine carries out commands. Any number of goroutines may use it.
type Engine struct {
	handlers *handlers.Handlers
	command  sync.Mutex // held by the command that runs
	events   chan client.Event
	folder   string // of the socket, "" while there is none; guarded by command

	mu struct {
		sync.Mutex
		lost   uint64 // events since the last one that had room
		closed bool   // events is
	}
}

// New returns an engine without nodes.
func New() *Engine {
	e := &Engine{events: make(chan client.Event, eventBuffer)}
	e.handlers = handlers.New(handlers.Config{Emit: e.emit, Aside: e.aside,
		Quit: func(context.Context) error { return qmp.Errorf("There is no daemon to quit") }})
	return e
}

// Execute carries out a command. It takes what client.Client's does; a refusal is a *qmp.Error.
func (e *Engine) Execute(ctx context.Context, command string, args, result any) error {
	value, err := e.run(ctx, command, args)
	if err != nil || result == nil {
		return err
	}
	text := qmp.Encode(value)
	if into, ok := result.(qmp.Decodable); ok {
		err = qmp.Unmarshal(text, into)
	} else {
		err = json.Unmarshal(text, result)
	}
	if err != nil {
		return fmt.Errorf("result of %s: %w", command, err)
	}
	return nil
}

func (e *Engine) run(ctx context.Context, command string, args any) (any, error) {
	e.command.Lock()
	defer e.command.Unlock()
	arguments := qmp.NewObject()
	if args != nil {
		decoded := &object{}
		if err := qmp.Unmarshal(qmp.Encode(args), decoded); err != nil {
			return nil, fmt.Errorf("arguments of %s: %w", command, err)
		}
		arguments = decoded.Object
	}
	return e.handlers.Dispatch(ctx, command, arguments)
}

// object is any object.
type object struct{ *qmp.Object }

func (o *object) DecodeQMP(p qmp.Param) { o.Object, _ = p.Value().(*qmp.Object) }

// aside lets other commands run while one waits for another host.
func (e *Engine) aside(ctx context.Context, f func(context.Context) error) error {
	e.command.Unlock()
	defer e.command.Lock()
	return f(ctx)
}

// Events are what happens by itself. The channel is closed when the engine is.
func (e *Engine) Events() <-chan client.Event { return e.events }

func (e *Engine) emit(event qmp.Event) {
	data := &object{}
	if err := qmp.Unmarshal(qmp.Encode(event), data); err != nil {
		panic("engine: an event is no object: " + err.Error())
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.mu.closed {
		return
	}
	select {
	case e.events <- client.Event{Name: event.EventName(), Time: time.Now(), Data: data.Object, Lost: e.mu.lost}:
		e.mu.lost = 0
	default:
		e.mu.lost++
	}
}

// Close ends jobs and closes all nodes; images are complete when it returns without an error.
func (e *Engine) Close(ctx context.Context) error {
	e.command.Lock()
	defer e.command.Unlock()
	err := e.handlers.Close(ctx, 0)
	if e.folder != "" {
		err = errors.Join(err, os.RemoveAll(e.folder))
		e.folder = ""
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.mu.closed {
		e.mu.closed = true
		close(e.events)
	}
	return err
}

// socket is that of the NBD server, which is started if there is none yet.
func (e *Engine) socket(ctx context.Context) (string, error) {
	e.command.Lock()
	defer e.command.Unlock()
	if e.folder == "" {
		folder, err := os.MkdirTemp("", "blkmirror") // entered by its owner alone
		if err != nil {
			return "", err
		}
		path := filepath.Join(folder, "nbd")
		err = e.handlers.StartNBD(ctx, &api.NbdServerOptions{Addr: api.SocketAddress{Type: api.SocketAddressTypeUnix,
			Unix: &api.UnixSocketAddress{Path: path}}})
		if err != nil {
			return "", errors.Join(err, os.RemoveAll(folder))
		}
		e.folder = folder
	}
	return filepath.Join(e.folder, "nbd"), nil
}
