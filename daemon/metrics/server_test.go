// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func quiet() *logrus.Entry {
	l := logrus.New()
	l.SetOutput(io.Discard)
	return logrus.NewEntry(l)
}

func served(t *testing.T, address string, remote bool) *Server {
	t.Helper()
	s, err := Serve(address, remote, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "metrics")
	}), quiet())
	must(t, err)
	t.Cleanup(func() { must(t, s.Stop(context.Background())) })
	return s
}

// A name that somebody made lead here is none of this host's.
func TestNamesOfThisHost(t *testing.T) {
	for _, remote := range []bool{false, true} {
		s := served(t, "127.0.0.1:0", remote)
		client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		for host, want := range map[string]int{
			"127.0.0.1": 200, "127.0.0.1:1": 200, "localhost": 200, "LOCALHOST:99": 200, "[::1]:5": 200, "[::1]": 200,
			"evil.example": 421, "evil.example:9811": 421, "127.0.0.1.evil.example": 421, "localhost.evil.example:1": 421,
		} {
			if remote {
				want = 200
			}
			r, err := http.NewRequest(http.MethodGet, "http://"+s.Addr().String()+Path, nil)
			must(t, err)
			r.Host = host
			answer, err := client.Do(r)
			must(t, err)
			text, err := io.ReadAll(answer.Body)
			must(t, err)
			must(t, answer.Body.Close())
			if answer.StatusCode != want || (string(text) == "metrics") != (want == 200) {
				t.Errorf("remote %v, %s: %d, %q", remote, host, answer.StatusCode, text)
			}
		}
	}
	t.Run("socket", func(t *testing.T) {
		path := t.TempDir() + "/s"
		served(t, path, false)
		client := http.Client{Transport: &http.Transport{DisableKeepAlives: true,
			DialContext: func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", path) }}}
		answer, err := client.Get("http://any.example" + Path)
		must(t, err)
		must(t, answer.Body.Close())
		if answer.StatusCode != 200 {
			t.Error(answer.Status)
		}
	})
}

// Who connects and says nothing does not hold up a stop.
func TestStopDoesNotWaitForTheSilent(t *testing.T) {
	s, err := Serve("127.0.0.1:0", false, http.NotFoundHandler(), quiet())
	must(t, err)
	silent, err := net.Dial("tcp", s.Addr().String())
	must(t, err)
	defer silent.Close()
	begun, err := net.Dial("tcp", s.Addr().String())
	must(t, err)
	defer begun.Close()
	_, err = io.Copy(begun, strings.NewReader("GET / HT"))
	must(t, err)
	began := time.Now()
	must(t, s.Stop(context.Background()))
	if took := time.Since(began); took > 3*time.Second { // net/http would wait for 5 s
		t.Errorf("the stop took %v", took)
	}
}
