// SPDX-License-Identifier: Apache-2.0

package web

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"io/fs"
	"net/http"
	"path"
)

//go:embed page
var page embed.FS

var contentTypes = map[string]string{
	".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8",
	".svg": "image/svg+xml",
}

// addPage serves the files of the page, index.html as /. Browsers keep them until they change.
func (s *Server) addPage() error {
	return fs.WalkDir(page, "page", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := page.ReadFile(name)
		if err != nil {
			return err
		}
		digest := sha256.Sum256(text)
		tag := `"` + hex.EncodeToString(digest[:8]) + `"`
		at := "/" + path.Base(name)
		if at == "/index.html" {
			at = "/{$}"
		}
		s.Handle("GET "+at, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			h := w.Header()
			h.Set("Content-Type", contentTypes[path.Ext(name)])
			h.Set("Cache-Control", "no-cache")
			h.Set("ETag", tag)
			if r.Header.Get("If-None-Match") == tag {
				w.WriteHeader(http.StatusNotModified)
				return
			}
			_, _ = w.Write(text) // a browser that is gone needs no page
		}))
		return nil
	})
}
