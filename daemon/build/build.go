// SPDX-License-Identifier: Apache-2.0

// Package build says what a program of this project was built from.
package build

import (
	"fmt"
	"runtime/debug"
	"strings"
	"sync"
)

// Version is that of the programs. A release sets it with
//
//	go build -ldflags "-X github.com/blkmirror/blkmirror/daemon/build.Version=1.2.3"
var Version = "0.1.0-dev"

// Info is what the Go toolchain recorded of the build. What it did not record is "" or false.
type Info struct {
	Version  string
	Revision string // of the source, a hash
	Time     string // when the revision was made, RFC 3339
	Modified bool   // the source was not that of the revision
	Go       string // version of the toolchain
}

// Read tells about the running program.
var Read = sync.OnceValue(func() Info {
	i := Info{Version: Version}
	b, ok := debug.ReadBuildInfo()
	if !ok {
		return i
	}
	i.Go = b.GoVersion
	for _, s := range b.Settings {
		switch s.Key {
		case "vcs.revision":
			i.Revision = s.Value
		case "vcs.time":
			i.Time = s.Value
		case "vcs.modified":
			i.Modified = s.Value == "true"
		}
	}
	return i
})

// String is the version with what is known of the revision, such as "0.1.0 (1a2b3c4d5e6f, modified)".
func (i Info) String() string {
	var parts []string
	if i.Revision != "" {
		parts = append(parts, i.Revision[:min(12, len(i.Revision))])
	}
	if i.Modified {
		parts = append(parts, "modified")
	}
	if len(parts) == 0 {
		return i.Version
	}
	return i.Version + " (" + strings.Join(parts, ", ") + ")"
}

// Describe is what --version says of a program.
func (i Info) Describe(program string) string {
	text := fmt.Sprintf("%s version %s (protocol of qemu-storage-daemon 11.1)\n", program, i.Version)
	if i.Revision != "" {
		modified := ""
		if i.Modified {
			modified = ", with changes"
		}
		text += fmt.Sprintf("revision %s of %s%s\n", i.Revision, i.Time, modified)
	}
	if i.Go != "" {
		text += "built with " + i.Go + "\n"
	}
	return text
}
