// SPDX-License-Identifier: Apache-2.0

package packaging

import (
	"context"
	"debug/buildinfo"
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// atMost bounds each step that runs programs.
const atMost = 10 * time.Minute

func run(t *testing.T, dir, program string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), atMost)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = dir
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", program, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func needs(t *testing.T, programs ...string) {
	t.Helper()
	if os.Getenv("BLKMIRROR_INTEROP") == "" {
		t.Skip("takes minutes; `make interop` runs it")
	}
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("%s is not installed", p)
		}
	}
}

// one returns the only file that a pattern finds.
func one(t *testing.T, pattern string) string {
	t.Helper()
	found, err := filepath.Glob(pattern)
	must(t, err)
	if len(found) != 1 {
		t.Fatalf("%s: found %q", pattern, found)
	}
	return found[0]
}

// TestDist makes what `make dist` makes, looks at it, and makes it again in another place: the bytes must be the same.
func TestDist(t *testing.T) {
	needs(t, "git", "tar", "sha256sum")
	out := t.TempDir()
	run(t, "../..", ".dist/build", out)
	run(t, out, "sha256sum", "--check", "--strict", "SHA256SUMS")
	for arch, machine := range map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64} {
		into := t.TempDir()
		run(t, into, "tar", "--strip-components=1", "-xzf", one(t, out+"/*-"+arch+".tar.gz"))
		for _, want := range []string{"LICENSE", "README.md", "docs/client.md", "man/blkmirror-copy.1", "man/blkmirrord.8",
			"completions/blkmirror.fish", "systemd/blkmirrord.socket", "systemd/blkmirrord.service"} {
			if info, err := os.Stat(filepath.Join(into, want)); err != nil || info.Size() == 0 {
				t.Errorf("%s: no %s: %v", arch, want, err)
			}
		}
		for _, name := range []string{"blkmirrord", "blkmirror"} {
			program := into + "/bin/" + name
			file, err := elf.Open(program)
			must(t, err)
			if file.Machine != machine {
				t.Errorf("%s is for %v", name, file.Machine)
			}
			for _, p := range file.Progs {
				if p.Type == elf.PT_INTERP {
					t.Errorf("%s is not static", name)
				}
			}
			must(t, file.Close())
			info, err := buildinfo.ReadFile(program)
			must(t, err)
			revision := ""
			for _, s := range info.Settings {
				if s.Key == "vcs.revision" {
					revision = s.Value
				}
			}
			if want := strings.TrimSpace(run(t, "../..", "git", "rev-parse", "HEAD")); revision != want {
				t.Errorf("%s says that it was built from %q, not from %s", name, revision, want)
			}
		}
		if arch == runtime.GOARCH {
			version := run(t, into, "bin/blkmirrord", "--version")
			if name := filepath.Base(one(t, out+"/*-"+arch+".tar.gz")); !strings.Contains(name, "-"+strings.Fields(version)[2]+"-linux-") {
				t.Errorf("%s has a daemon that says %q", name, version)
			}
		}
	}
	if run(t, "../..", "git", "status", "--porcelain") != "" {
		t.Log("the tree has changes: not made a second time")
		return
	}
	clone, again := t.TempDir()+"/elsewhere", t.TempDir()
	run(t, "../..", "git", "clone", "--quiet", ".", clone)
	run(t, clone, ".dist/build", again)
	if one, two := read(t, out+"/SHA256SUMS"), read(t, again+"/SHA256SUMS"); one != two {
		t.Errorf("the same commit gave\n%s and then\n%s", one, two)
	}
}
