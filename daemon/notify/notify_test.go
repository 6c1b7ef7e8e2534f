// SPDX-License-Identifier: Apache-2.0

package notify

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func environment(pairs ...string) func(string) string {
	return func(name string) string {
		for _, p := range pairs {
			if value, ok := strings.CutPrefix(p, name+"="); ok {
				return value
			}
		}
		return ""
	}
}

func TestSockets(t *testing.T) {
	for _, name := range []string{t.TempDir() + "/notify", fmt.Sprintf("@blkmirror-notify-%d", os.Getpid())} {
		l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		m, err := New(environment("NOTIFY_SOCKET="+name, "WATCHDOG_USEC=30000000"))
		if err != nil || m.watchdog != 30*time.Second {
			t.Fatal(err)
		}
		if err := errors.Join(m.Ready("all\nis well"), m.Stopping()); err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"READY=1\nSTATUS=all is well", "STOPPING=1\nSTATUS=Stopping"} {
			p := make([]byte, 1000)
			n, err := l.Read(p)
			if err != nil || string(p[:n]) != want {
				t.Errorf("%q, %v, want %q", p[:n], err, want)
			}
		}
	}
}

func TestEnvironment(t *testing.T) {
	for _, c := range []struct {
		env      []string
		watchdog time.Duration
		fails    bool
	}{
		{nil, 0, false},
		{[]string{"NOTIFY_SOCKET=vsock:2:1"}, 0, true},
		{[]string{"NOTIFY_SOCKET=/x", "WATCHDOG_USEC=soon"}, 0, true},
		{[]string{"NOTIFY_SOCKET=/x", "WATCHDOG_USEC=-5"}, 0, true},
		{[]string{"NOTIFY_SOCKET=/x", "WATCHDOG_USEC=5", "WATCHDOG_PID=1"}, 0, false},
		{[]string{"NOTIFY_SOCKET=/x", "WATCHDOG_USEC=5", fmt.Sprint("WATCHDOG_PID=", os.Getpid())}, 5 * time.Microsecond, false},
	} {
		m, err := New(environment(c.env...))
		if (err != nil) != c.fails || m != nil && m.watchdog != c.watchdog {
			t.Errorf("%v: %+v, %v", c.env, m, err)
		}
	}
	var nobody *Manager
	if err := errors.Join(nobody.Ready(""), nobody.Stopping()); err != nil {
		t.Error(err)
	}
	nobody.Keep(t.Context(), nil, nil, nil)
}

// The watchdog hears of the daemon while its pulse returns, nothing while it does not, and again when it does.
func TestWatchdog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex // for all that the goroutine of Keep looks at
		var said, trouble []string
		m := &Manager{watchdog: 10 * time.Second, send: func(text string) error {
			mu.Lock()
			defer mu.Unlock()
			said = append(said, text)
			return nil
		}}
		ctx, cancel := context.WithCancel(t.Context())
		var stuck chan struct{}
		status := "one mirror"
		done := make(chan struct{})
		go func() {
			defer close(done)
			m.Keep(ctx, func() {
				mu.Lock()
				held := stuck
				mu.Unlock()
				if held != nil {
					<-held
				}
			}, func() string {
				mu.Lock()
				defer mu.Unlock()
				return status
			}, func(err error) { trouble = append(trouble, err.Error()) })
		}()
		within := func(d time.Duration) []string {
			mu.Lock()
			said = nil
			mu.Unlock()
			time.Sleep(d)
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			return said
		}
		if got := within(time.Second); !slices.Equal(got, []string{"WATCHDOG=1\nSTATUS=one mirror"}) {
			t.Errorf("at first: %q", got)
		}
		if got := within(20 * time.Second); !slices.Equal(got, slices.Repeat([]string{"WATCHDOG=1"}, 4)) {
			t.Errorf("later: %q", got)
		}
		mu.Lock()
		stuck = make(chan struct{})
		mu.Unlock()
		if got := within(time.Minute); len(got) > 0 {
			t.Errorf("stuck: %q", got)
		}
		if !slices.Equal(trouble, []string{errStuck.Error()}) {
			t.Errorf("trouble: %q", trouble)
		}
		mu.Lock()
		close(stuck)
		stuck, status = nil, "none"
		mu.Unlock()
		if got := within(20 * time.Second); len(got) < 3 || got[0] != "WATCHDOG=1\nSTATUS=none" {
			t.Errorf("well again: %q", got)
		}
		cancel()
		<-done
	})
}
