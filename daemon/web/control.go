// SPDX-License-Identifier: Apache-2.0

package web

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"mime"
	"net/http"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/blkmirror/blkmirror/qmp"
)

const (
	maxOrder   = 4 << 10 // bytes
	orderTime  = 10 * time.Second
	leastToken = 16
	maxToken   = 4 << 10
)

// token is what a browser must show to control jobs: its digest, so that comparing says nothing about it.
type token [sha256.Size]byte

func tokenOf(text string) token { return sha256.Sum256([]byte(text)) }

func (t token) is(shown string) bool {
	digest := tokenOf(shown)
	return subtle.ConstantTimeCompare(t[:], digest[:]) == 1
}

// readToken reads the token from its file, which it makes if it is not there. text is the token if there is no file, so that
// somebody can be told.
func readToken(path string) (t token, text string, err error) {
	if path == "" {
		text = rand.Text()
		return tokenOf(text), text, nil
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	switch {
	case err == nil:
		made := rand.Text()
		_, err = f.WriteString(made + "\n")
		return tokenOf(made), "", errors.Join(err, f.Close())
	case !errors.Is(err, fs.ErrExist):
		return t, "", fmt.Errorf("--web-token: %w", err)
	}
	if f, err = os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0); err != nil {
		return t, "", fmt.Errorf("--web-token: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return t, "", fmt.Errorf("--web-token: %w", err)
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o077 != 0 {
		return t, "", fmt.Errorf("--web-token: '%s' can be used by others (mode %v): it must be a file with mode 0600", path, info.Mode())
	}
	read, err := io.ReadAll(io.LimitReader(f, maxToken))
	if err != nil {
		return t, "", fmt.Errorf("--web-token: %w", err)
	}
	kept := strings.TrimSpace(string(read))
	if len(kept) < leastToken {
		return t, "", fmt.Errorf("--web-token: '%s' has a token of less than %d characters", path, leastToken)
	}
	return tokenOf(kept), "", nil
}

// order is what a browser wants of a job.
type order struct {
	Job   string `json:"job"`
	Verb  string `json:"verb"`
	Speed int64  `json:"speed"`
}

// command is the order as a command of the monitor.
func (o *order) command() (name string, args map[string]any, err error) {
	switch o.Verb {
	case "pause", "resume", "complete", "cancel":
		return "job-" + o.Verb, map[string]any{"id": o.Job}, nil
	case "speed":
		return "block-job-set-speed", map[string]any{"device": o.Job, "speed": o.Speed}, nil
	case "check": // is the token right?
		return "query-version", nil, nil
	}
	return "", nil, errors.New("verb expects pause, resume, speed, complete, cancel or check")
}

// serveControl carries out an order. A browser cannot be made to send one by another page: such a request has no token, and could
// not have this type of content without asking first.
func (s *Server) serveControl(w http.ResponseWriter, r *http.Request) {
	kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	scheme, shown, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	switch {
	case !s.config.Control:
		refuse(w, http.StatusForbidden, "this page only shows: the daemon was started without --web-control")
		return
	case kind != "application/json":
		refuse(w, http.StatusUnsupportedMediaType, "expects application/json")
		return
	case !strings.EqualFold(scheme, "Bearer") || !s.token.is(shown):
		s.config.Log.WithField("remote", r.RemoteAddr).Warn("web page: an order without the token was refused")
		w.Header().Set("WWW-Authenticate", "Bearer")
		refuse(w, http.StatusUnauthorized, "the token is not that of this daemon")
		return
	}
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(orderTime)) // who sends slowly is cut off; without deadlines, by WriteTimeout
	var o order
	in := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxOrder))
	in.DisallowUnknownFields()
	err := in.Decode(&o)
	if err != nil {
		refuse(w, http.StatusBadRequest, "expects an object with job, verb and, for speed, speed: "+err.Error())
		return
	}
	name, args, err := o.command()
	if err != nil {
		refuse(w, http.StatusBadRequest, err.Error())
		return
	}
	if args == nil {
		err = s.monitor.execute(r.Context(), name, nil, nil)
	} else {
		err = s.monitor.execute(r.Context(), name, args, nil)
	}
	var wire *qmp.Error
	switch {
	case errors.As(err, &wire):
		refuse(w, http.StatusConflict, wire.Desc)
	case err != nil:
		refuse(w, http.StatusServiceUnavailable, err.Error())
	default:
		if o.Verb != "check" {
			s.config.Log.WithField("job", o.Job).Info("web page: " + o.Verb)
		}
		reply(w, http.StatusOK, struct{}{})
	}
}

func refuse(w http.ResponseWriter, status int, why string) {
	reply(w, status, map[string]string{"error": why})
}

func reply(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // a browser that is gone needs no answer
}
