// SPDX-License-Identifier: Apache-2.0

package web

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"time"

	"github.com/blkmirror/blkmirror/qmp/client"
)

var errAway = errors.New("the daemon does not answer at the moment")

// monitor is the connection to the daemon's monitor that the sampler has at present.
type monitor struct {
	mu struct {
		sync.Mutex
		client *client.Client
	}
	maps chan struct{} // holds one token: the right to ask for a map
	free time.Time     // when the next map may be asked for; belongs to who has the token
}

func newMonitor() *monitor { return &monitor{maps: make(chan struct{}, 1)} }

func (m *monitor) set(c *client.Client) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mu.client = c
}

// execute executes a command.
func (m *monitor) execute(ctx context.Context, command string, args, result any) error {
	m.mu.Lock()
	c := m.mu.client
	m.mu.Unlock()
	if c == nil {
		return errAway
	}
	ctx, cancel := context.WithTimeout(ctx, askFor)
	defer cancel()
	return c.Execute(ctx, command, args, result)
}

// mapShare is how many times as long as a map took none is asked for: all browsers together get so much of a processor for maps.
const mapShare = 4

// diskMap asks for a map. Maps are asked for one at a time.
func (m *monitor) diskMap(ctx context.Context, v *view) (json.RawMessage, error) {
	select {
	case m.maps <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-m.maps }()
	if wait := time.Until(m.free); wait > 0 && !pause(ctx, wait) {
		return nil, ctx.Err()
	}
	began := time.Now()
	var text json.RawMessage
	err := m.execute(ctx, "x-query-mirror-map", v, &text)
	m.free = time.Now().Add(mapShare * time.Since(began))
	return text, err
}
