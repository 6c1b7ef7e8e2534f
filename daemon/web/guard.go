// SPDX-License-Identifier: Apache-2.0

package web

import (
	"net"
	"net/http"
	"strings"
)

// hosts are the names by which browsers may call the server. A page of somebody else, whose name was made to lead here after it was
// loaded (DNS rebinding), comes with another one.
type hosts map[string]bool

func newHosts(o *Options, at net.Addr) hosts {
	h := hosts{"localhost": true, "127.0.0.1": true, "::1": true}
	if tcp, ok := at.(*net.TCPAddr); ok && !tcp.IP.IsUnspecified() {
		h[tcp.IP.String()] = true
	}
	if host, _, err := net.SplitHostPort(o.Address); err == nil && !o.OnPath() && host != "" {
		h[strings.ToLower(host)] = true
	}
	for _, name := range o.Hosts {
		h[strings.ToLower(name)] = true
	}
	return h
}

// take says whether a request may come with this Host header. Its port is not looked at: a tunnel may have another one, and
// what makes a name somebody else's is the name.
func (h hosts) take(host string) bool {
	name := host
	if without, _, err := net.SplitHostPort(host); err == nil {
		name = without
	}
	return h[strings.ToLower(strings.Trim(name, "[]"))]
}

// policy lets the page have what this server gives it, and nothing else: no script within a page, no other hosts, no frames.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// guard refuses what does not come from the page itself or from a program, and says to browsers what the page may do.
func (s *Server) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", policy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cache-Control", "no-store")
		switch site := r.Header.Get("Sec-Fetch-Site"); {
		case !s.hosts.take(r.Host):
			http.Error(w, "the page is not served by this name; --web-host takes it", http.StatusMisdirectedRequest)
		case !sameOrigin(r), site != "" && site != "same-origin" && site != "none" && !opens(r):
			http.Error(w, "requests of other pages are refused", http.StatusForbidden)
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// sameOrigin says whether a request that names the page it comes from comes from a page of this server. Only the scheme is left
// out, as a proxy may speak TLS.
func sameOrigin(r *http.Request) bool {
	origin := r.Header.Get("Origin")
	if origin == "" {
		return true
	}
	_, host, ok := strings.Cut(origin, "://")
	return ok && strings.EqualFold(host, r.Host)
}

// opens says whether a browser follows a link to the page.
func opens(r *http.Request) bool {
	return r.Method == http.MethodGet && r.URL.Path == "/" && r.Header.Get("Sec-Fetch-Mode") == "navigate" &&
		r.Header.Get("Sec-Fetch-Dest") == "document"
}
