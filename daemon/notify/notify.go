// SPDX-License-Identifier: Apache-2.0

// Package notify tells a service manager how a daemon is, in the way of sd_notify(3): datagrams of NAME=VALUE lines to the socket that
// the environment names.
//
//	ready ──► READY=1        now and then ──► STATUS=…        Keep ──► WATCHDOG=1 while pulse returns        end ──► STOPPING=1
package notify

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
)

// Manager is the service manager's end. A nil Manager is nobody.
type Manager struct {
	send     func(text string) error
	watchdog time.Duration // within which it wants to hear of us; 0 if it does not
}

// New finds the manager in the environment, with a function such as os.Getenv; nil if there is none.
func New(env func(string) string) (*Manager, error) {
	path := env("NOTIFY_SOCKET")
	if path == "" {
		return nil, nil
	}
	if path[0] != '/' && path[0] != '@' {
		return nil, fmt.Errorf("NOTIFY_SOCKET=%s: expects a path, or an abstract name that begins with @", path)
	}
	m := &Manager{send: func(text string) error { return datagram(path, text) }}
	if usec := env("WATCHDOG_USEC"); usec != "" {
		n, err := strconv.ParseInt(usec, 10, 64)
		if err != nil || n <= 0 || n > int64(time.Hour*24*365/time.Microsecond) {
			return nil, fmt.Errorf("WATCHDOG_USEC=%s: expects a number of microseconds", usec)
		}
		if pid := env("WATCHDOG_PID"); pid == "" || pid == strconv.Itoa(os.Getpid()) {
			m.watchdog = time.Duration(n) * time.Microsecond
		}
	}
	return m, nil
}

// datagram sends one message. A manager that does not read must not hold us up.
func datagram(path, text string) error {
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetWriteDeadline(time.Now().Add(sendTime))
	_, err = conn.Write([]byte(text))
	return err
}

const sendTime = time.Second

// Ready says that everything is served, with a line for people.
func (m *Manager) Ready(status string) error { return m.tell("READY=1", statusLine(status)) }

// Stopping says that the end has begun.
func (m *Manager) Stopping() error { return m.tell("STOPPING=1", "STATUS=Stopping") }

func (m *Manager) tell(lines ...string) error {
	if m == nil {
		return nil
	}
	return m.send(strings.Join(lines, "\n"))
}

// statusLine is one line, whatever is in text.
func statusLine(text string) string {
	return "STATUS=" + strings.Map(func(r rune) rune {
		if r < ' ' {
			return ' '
		}
		return r
	}, text)
}

// statusEvery is how often the status is looked at, unless the watchdog has that done more often.
const statusEvery = 10 * time.Second

var errStuck = errors.New("a part of the daemon does not answer")

// Keep tells how the daemon is until ctx ends. Twice in each interval of the watchdog pulse is called, which must return soon if the daemon is
// well; while a call has not returned, the watchdog hears nothing, and does what it is there for. status is what people
// read; it is called after a pulse that returned. trouble is told what went wrong, once until it is well again.
func (m *Manager) Keep(ctx context.Context, pulse func(), status func() string, trouble func(error)) {
	if m == nil {
		return
	}
	every := statusEvery
	if m.watchdog > 0 {
		every = min(every, m.watchdog/2)
	}
	ticks := time.NewTicker(max(every, time.Millisecond))
	defer ticks.Stop()
	k := keeping{Manager: m, trouble: trouble}
	defer k.wait()
	for {
		if k.pulse(pulse, every) {
			k.say(status())
		}
		select {
		case <-ticks.C:
		case <-ctx.Done():
			return
		}
	}
}

// keeping is what Keep remembers.
type keeping struct {
	*Manager
	trouble func(error)
	bad     bool          // trouble was told
	beats   chan struct{} // closed by the pulse that is under way; nil if none is
	last    string
}

// pulse calls f, or goes on waiting for it, as long as limit lasts.
func (k *keeping) pulse(f func(), limit time.Duration) bool {
	if k.beats == nil {
		done := make(chan struct{})
		k.beats = done
		go func() {
			defer close(done)
			f()
		}()
	}
	late := time.NewTimer(limit)
	defer late.Stop()
	select {
	case <-k.beats:
		k.beats = nil
		return true
	case <-late.C:
		k.complain(errStuck)
		return false
	}
}

func (k *keeping) wait() {
	if k.beats != nil {
		select {
		case <-k.beats:
		case <-time.After(sendTime): // it hangs, and would for ever
		}
	}
}

func (k *keeping) say(status string) {
	var lines []string
	if k.watchdog > 0 {
		lines = append(lines, "WATCHDOG=1")
	}
	if status != k.last {
		lines = append(lines, statusLine(status))
	}
	if len(lines) == 0 {
		return
	}
	if err := k.tell(lines...); err != nil {
		k.complain(fmt.Errorf("cannot notify the service manager: %w", err))
		return
	}
	k.last, k.bad = status, false
}

func (k *keeping) complain(err error) {
	if !k.bad {
		k.bad = true
		k.trouble(err)
	}
}
