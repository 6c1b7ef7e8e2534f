// SPDX-License-Identifier: Apache-2.0

package main

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// The pages are made by a test, as golden files are: so the program need not have what makes them in it, and pages that cannot
// be made are noticed by everybody.
var manDir = flag.String("man", "", "keep the manual pages in this `DIR`")

// manDate is that of the pages: they are the same each time.
var manDate = time.Date(2026, time.November, 1, 0, 0, 0, 0, time.UTC)

// TestManPages makes a manual page of every command, and checks that it has what people look for.
func TestManPages(t *testing.T) {
	dir := *manDir
	if dir == "" {
		dir = t.TempDir()
	} else if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	root := (&cli{}).root("")
	root.DisableAutoGenTag = true
	header := &doc.GenManHeader{Title: "BLKMIRROR", Section: "1", Source: "blkmirror", Manual: "blkmirror", Date: &manDate}
	if err := doc.GenManTree(root, header, dir); err != nil {
		t.Fatal(err)
	}
	var check func(cmd *cobra.Command)
	check = func(cmd *cobra.Command) {
		name := strings.ReplaceAll(cmd.CommandPath(), " ", "-") + ".1"
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Error(err)
			return
		}
		for _, want := range []string{".SH NAME", ".SH SYNOPSIS", "socket"} {
			if !strings.Contains(string(text), want) {
				t.Errorf("%s has no %q", name, want)
			}
		}
		if cmd.Short == "" || cmd.Short != strings.TrimSpace(cmd.Short) || strings.HasSuffix(cmd.Short, ".") {
			t.Errorf("%s: %q is no heading", cmd.CommandPath(), cmd.Short)
		}
		for _, below := range cmd.Commands() {
			if below.IsAvailableCommand() {
				check(below)
			}
		}
	}
	check(root)
}
