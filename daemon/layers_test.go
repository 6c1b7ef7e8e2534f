// SPDX-License-Identifier: Apache-2.0

package daemon_test

import (
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/blkmirror/blkmirror"

// A layer is a folder, with all below it. It may not lead, by any number of imports, to what it forbids.
var layers = []struct {
	layer  string
	forbid []string
	why    string
}{
	{"qmp", []string{"block", "job", "daemon", "cmd"}, "the wire knows nothing of what is behind the commands"},
	{"block", []string{"job", "daemon", "cmd", "qmp"}, "disks do not know who works on them, nor how they are asked"},
	{"block/export", []string{"job", "block/driver", "block/filter"}, "an export serves any node"},
	{"block/driver", []string{"block/export", "block/filter"}, "a driver knows the node above it only as its caller"},
	{"block/filter", []string{"block/export", "block/driver"}, "a filter stands on any node"},
	{"block/bitmap", []string{"block/rangelock"}, "the ground of the house"},
	{"block/rangelock", []string{"block/bitmap"}, "the ground of the house"},
	{"block/nbd", []string{"block/export", "block/driver", "block/filter"}, "the codec is below server and client"},
	{"job", []string{"daemon", "cmd", "qmp", "block/export", "block/driver", "block/filter"}, "a job works on any node"},
	{"daemon", []string{"cmd"}, "commands only start a daemon"},
}

// foreign is a module of others, and the folders that may import it directly. Tests may besides, where tests says so.
type foreign struct {
	module string
	from   []string
	tests  bool
	why    string
}

var outside = []foreign{
	{"github.com/sirupsen/logrus", []string{"cmd", "daemon", "qmp/server"}, true, "leaves return errors and emit events"},
	{"github.com/digitalocean/go-qemu/qmp/raw", nil, false, "its decoders recurse without end on flat unions"},
	{"github.com/digitalocean/go-qemu/qapi-schema", []string{"qmp/internal/qapigen"}, false, "the schema is read when code is generated"},
	{"github.com/digitalocean/go-qemu/qmp", []string{"docs/examples"}, true, "it is a foreign client for tests, and examples show how it is used"},
	{"lukechampine.com/blake3", []string{"job/digest"}, true, "one package knows what the digest of a disk is"},
	{"github.com/chromedp", nil, true, "it drives a browser for tests"},
	{"github.com/spf13/cobra", []string{"cmd"}, false, "the command line of the client"},
	{"github.com/prometheus", []string{"daemon/metrics"}, true, "what is shown to Prometheus is read in one place"},
	{"go.yaml.in/yaml", []string{"daemon/config"}, true, "one package knows what a configuration file looks like"},
	{"github.com/vbauerster/mpb", []string{"cmd"}, false, "the progress bar of the client"},
}

// file is what a source file imports.
type file struct {
	folder  string // below the module, "." for its top
	test    bool
	imports []string
}

func inside(folder, layer string) bool {
	return folder == layer || strings.HasPrefix(folder, layer+"/")
}

// violations checks files against the tables.
func violations(files []file) (found []string) {
	imports := map[string]map[string]bool{} // of folders, without tests
	for _, f := range files {
		for _, path := range f.imports {
			// The first rule that fits counts.
			if at := slices.IndexFunc(outside, func(r foreign) bool { return inside(path, r.module) }); at >= 0 {
				rule := outside[at]
				if !(f.test && rule.tests) && !slices.ContainsFunc(rule.from, func(l string) bool { return inside(f.folder, l) }) {
					found = append(found, fmt.Sprintf("%s imports %s: %s", f.folder, path, rule.why))
				}
			}
			if below, ours := strings.CutPrefix(path, module+"/"); ours && !f.test {
				if imports[f.folder] == nil {
					imports[f.folder] = map[string]bool{}
				}
				imports[f.folder][below] = true
			}
		}
	}
	for _, folder := range slices.Sorted(maps.Keys(imports)) {
		for _, rule := range layers {
			if !inside(folder, rule.layer) {
				continue
			}
			for _, forbidden := range rule.forbid {
				if way := wayTo(imports, []string{folder}, forbidden, map[string]bool{}); way != nil {
					found = append(found, fmt.Sprintf("%s: %s", strings.Join(way, " imports "), rule.why))
				}
			}
		}
	}
	slices.Sort(found)
	return slices.Compact(found)
}

// wayTo finds a chain of imports from the end of way into a layer.
func wayTo(imports map[string]map[string]bool, way []string, layer string, seen map[string]bool) []string {
	at := way[len(way)-1]
	if inside(at, layer) {
		return way
	}
	if seen[at] {
		return nil
	}
	seen[at] = true
	for _, next := range slices.Sorted(maps.Keys(imports[at])) {
		if longer := wayTo(imports, append(slices.Clone(way), next), layer, seen); longer != nil {
			return longer
		}
	}
	return nil
}

// sources reads the imports of every source file, those behind build tags too.
func sources(root string) (files []file, err error) {
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name := d.Name(); d.IsDir() && path != root && (strings.HasPrefix(name, ".") || name == "testdata") {
			return fs.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(path, ".go") {
			return nil
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		folder, err := filepath.Rel(root, filepath.Dir(path))
		if err != nil {
			return err
		}
		f := file{folder: filepath.ToSlash(folder), test: strings.HasSuffix(path, "_test.go")}
		for _, i := range parsed.Imports {
			to, err := strconv.Unquote(i.Path.Value)
			if err != nil {
				return err
			}
			f.imports = append(f.imports, to)
		}
		files = append(files, f)
		return nil
	})
	return files, err
}

func TestImportsGoDown(t *testing.T) {
	files, err := sources("..")
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 50 {
		t.Fatalf("only %d source files found", len(files))
	}
	for _, v := range violations(files) {
		t.Error(v)
	}
}

func TestTopHoldsNothingElse(t *testing.T) {
	known := []string{"cmd", "daemon", "qmp", "block", "job", "docs", "bin", "README.md", "LICENSE", "CHANGELOG.md", "go.mod",
		"go.sum", "Makefile"}
	entries, err := os.ReadDir("..")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !slices.Contains(known, e.Name()) && !strings.HasPrefix(e.Name(), ".") {
			t.Errorf("%s stands at the top", e.Name())
		}
	}
}

func TestViolationsAreFound(t *testing.T) {
	own := func(folders ...string) (paths []string) {
		for _, f := range folders {
			paths = append(paths, module+"/"+f)
		}
		return paths
	}
	for _, c := range []struct {
		files []file
		want  string
	}{
		{[]file{{"block/export/nbdserver", false, own("block", "block/export", "block/nbd")}}, ""},
		{[]file{{"block/export/nbdserver", true, own("job")}}, ""}, // a test may
		{[]file{{"block/export/nbdserver", false, own("job")}}, "block/export/nbdserver imports job"},
		{[]file{{"qmp/client", false, own("block")}}, "qmp/client imports block"},
		{[]file{{"block", false, own("job/mirror")}}, "block imports job/mirror"},
		{[]file{{"qmp", false, own("x")}, {"x", false, own("y")}, {"y", false, own("job")}}, "qmp imports x imports y imports job"},
		{[]file{{"blocks", false, own("job")}}, ""}, // only begins alike
		{[]file{{"job", false, []string{"github.com/sirupsen/logrus"}}}, "job imports github.com/sirupsen/logrus"},
		{[]file{{"qmp/server", false, []string{"github.com/sirupsen/logrus"}}}, ""},
		{[]file{{"daemon/blackbox", true, []string{"github.com/digitalocean/go-qemu/qmp/raw"}}},
			"daemon/blackbox imports github.com/digitalocean/go-qemu/qmp/raw"},
		{[]file{{"daemon/blackbox", true, []string{"github.com/digitalocean/go-qemu/qmp"}}}, ""},
		{[]file{{"qmp/client", false, []string{"github.com/digitalocean/go-qemu/qmp"}}},
			"qmp/client imports github.com/digitalocean/go-qemu/qmp"},
	} {
		got := violations(c.files)
		switch {
		case c.want == "" && len(got) == 0:
		case c.want != "" && len(got) > 0 && strings.HasPrefix(got[0], c.want+":"):
		default:
			t.Errorf("%v: found %q, want %q", c.files, got, c.want)
		}
	}
}
