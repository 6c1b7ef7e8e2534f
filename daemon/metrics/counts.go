// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"maps"
	"sync"

	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
)

// Counts counts what happens and leaves no counter elsewhere. Its methods may be called at any time.
type Counts struct {
	mu struct {
		sync.Mutex
		commands map[string]*outcomes
		events   map[string]int64
		jobs     map[string]jobCounts // errors, by id of the job
		nodes    map[string]*link     // those that were told to be connected or not, by node
		ended    struct{ well, badly int64 }
		state    int64 // failures to write the state
		missing  int64 // what of the state did not come back
	}
}

type outcomes struct{ ok, failed int64 }

type jobCounts struct{ read, write int64 }

// link is how a node stands with its server.
type link struct {
	state      api.BlockNodeConnectionState
	reconnects int64
	losses     int64
}

// NewCounts returns counts of nothing.
func NewCounts() *Counts {
	c := &Counts{}
	c.mu.commands, c.mu.events = map[string]*outcomes{}, map[string]int64{}
	c.mu.jobs, c.mu.nodes = map[string]jobCounts{}, map[string]*link{}
	return c
}

// Command counts a command that was executed.
func (c *Counts) Command(name string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	o := c.mu.commands[name]
	if o == nil {
		if !api.HasCommand(name) { // anybody can make names up
			name = "unknown"
		}
		if o = c.mu.commands[name]; o == nil {
			o = &outcomes{}
			c.mu.commands[name] = o
		}
	}
	if err != nil {
		o.failed++
	} else {
		o.ok++
	}
}

// Event counts an event of a monitor.
func (c *Counts) Event(e qmp.Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.events[e.EventName()]++
	switch e := e.(type) {
	case *api.BlockJobErrorEvent:
		n := c.mu.jobs[e.Device]
		if e.Operation == api.IoOperationTypeRead {
			n.read++
		} else {
			n.write++
		}
		c.mu.jobs[e.Device] = n
	case *api.JobStatusChangeEvent:
		if e.Status == api.JobStatusNull {
			delete(c.mu.jobs, e.ID)
		}
	case *api.BlockJobCompletedEvent:
		if e.Error != nil {
			c.mu.ended.badly++
		} else {
			c.mu.ended.well++
		}
	case *api.BlockNodeConnectionEvent:
		l := c.mu.nodes[e.NodeName]
		if l == nil {
			l = &link{}
			c.mu.nodes[e.NodeName] = l
		}
		switch {
		case e.State != api.BlockNodeConnectionStateConnected && (l.state == "" || l.state == api.BlockNodeConnectionStateConnected):
			l.losses++
		case e.State == api.BlockNodeConnectionStateConnected && l.state != "" && l.state != api.BlockNodeConnectionStateConnected:
			l.reconnects++
		}
		l.state = e.State
	}
}

// StateFailed counts a failure to write the state.
func (c *Counts) StateFailed() {
	c.mu.Lock()
	c.mu.state++
	c.mu.Unlock()
}

// NotRestored counts what of the state did not come back.
func (c *Counts) NotRestored(n int) {
	c.mu.Lock()
	c.mu.missing += int64(n)
	c.mu.Unlock()
}

// counted is a snapshot of Counts.
type counted struct {
	commands          map[string]outcomes
	events            map[string]int64
	jobs              map[string]jobCounts
	nodes             map[string]link
	completed, failed int64
	state, missing    int64
}

// read takes a snapshot, and forgets nodes that there are no more.
func (c *Counts) read(nodes map[string]bool) counted {
	c.mu.Lock()
	defer c.mu.Unlock()
	maps.DeleteFunc(c.mu.nodes, func(name string, _ *link) bool { return !nodes[name] })
	s := counted{commands: map[string]outcomes{}, events: maps.Clone(c.mu.events), jobs: maps.Clone(c.mu.jobs),
		nodes: map[string]link{}, completed: c.mu.ended.well, failed: c.mu.ended.badly,
		state: c.mu.state, missing: c.mu.missing}
	for name, o := range c.mu.commands {
		s.commands[name] = *o
	}
	for name, l := range c.mu.nodes {
		s.nodes[name] = *l
	}
	return s
}
