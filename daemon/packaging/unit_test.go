// SPDX-License-Identifier: Apache-2.0

package packaging

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const (
	service = "../../docs/blkmirrord.service"
	socket  = "../../.dist/blkmirrord.socket"
	config  = "../../.dist/blkmirrord.conf"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	must(t, err)
	return string(text)
}

// setting returns the last value of a setting of a unit.
func setting(t *testing.T, unit, name string) string {
	t.Helper()
	found := regexp.MustCompile(`(?m)^`+name+`=(.*)$`).FindAllStringSubmatch(unit, -1)
	if found == nil {
		t.Fatalf("the unit has no %s", name)
	}
	return found[len(found)-1][1]
}

// command returns what systemd would start: the words of ExecStart, with the options of the configuration in the place of their
// variable.
func command(t *testing.T, unit, configuration string) (words []string) {
	t.Helper()
	quoted := regexp.MustCompile(`(?s)\nBLKMIRRORD_OPTIONS="(.*)"\n$`).FindStringSubmatch(configuration)
	if quoted == nil {
		t.Fatal("the configuration has no BLKMIRRORD_OPTIONS at its end")
	}
	options := strings.ReplaceAll(quoted[1], "\\\n", " ")
	for _, word := range strings.Fields(setting(t, unit, "ExecStart")) {
		if word == "$BLKMIRRORD_OPTIONS" {
			words = append(words, strings.Fields(options)...)
		} else {
			words = append(words, word)
		}
	}
	return words
}

// What systemd itself thinks of the units.
func TestUnits(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("systemd-analyze is not installed")
	}
	// It looks for programs and files below the root that it is given.
	root := t.TempDir()
	for path, from := range map[string]string{"etc/systemd/system/blkmirrord.service": service,
		"etc/systemd/system/blkmirrord.socket": socket, "etc/blkmirror/blkmirrord.conf": config, "usr/bin/blkmirrord": "/bin/true"} {
		must(t, os.MkdirAll(filepath.Join(root, filepath.Dir(path)), 0o755))
		must(t, os.WriteFile(filepath.Join(root, path), []byte(read(t, from)), 0o755))
	}
	for _, dir := range []string{"/usr/lib/systemd/system", "/lib/systemd/system"} { // the targets that the units name
		if found, _ := filepath.Glob(dir + "/*.target"); len(found) > 0 {
			must(t, os.MkdirAll(root+"/usr/lib/systemd/system", 0o755))
			for _, path := range found {
				if text, err := os.ReadFile(path); err == nil {
					must(t, os.WriteFile(root+"/usr/lib/systemd/system/"+filepath.Base(path), text, 0o644))
				}
			}
			break
		}
	}
	out, _ := exec.Command(analyze, "verify", "--man=no", "--root="+root, "blkmirrord.service", "blkmirrord.socket").CombinedOutput()
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, "blkmirrord.s") && !strings.Contains(line, "executable") {
			t.Errorf("systemd-analyze verify: %s", line)
		}
	}
	// The lower the better; a service without any of this has 9.6.
	out, err = exec.Command(analyze, "security", "--offline=true", "--threshold=20", "--no-pager", service).CombinedOutput()
	if err != nil {
		t.Errorf("systemd-analyze security: %v\n%s", err, out)
	} else {
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		t.Log(lines[len(lines)-1])
	}
}

// The unit, its socket and its configuration belong together.
func TestUnitsAgree(t *testing.T) {
	unit, sock := read(t, service), read(t, socket)
	words := strings.Join(command(t, unit, read(t, config)), " ")
	if !strings.Contains(words, "--chardev socket,id=qmp,fd=3,") || setting(t, unit, "Requires") != "blkmirrord.socket" {
		t.Errorf("the monitor is not the socket: %s", words)
	}
	run := filepath.Dir(setting(t, sock, "ListenStream"))
	tmpfiles := read(t, "../../.dist/blkmirror.tmpfiles")
	for _, want := range []string{"d " + run + " ", "d /var/lib/blkmirror "} {
		if !strings.Contains(tmpfiles, want) {
			t.Errorf("nobody makes %s", want)
		}
	}
	if setting(t, unit, "ReadWritePaths") != run || !strings.Contains(words, "--sandbox "+run+":/var/lib/blkmirror") {
		t.Errorf("the unit does not let the daemon write where its sockets are: %s", words)
	}
	for _, name := range []string{"SocketUser", "SocketGroup"} {
		if setting(t, sock, name) != setting(t, unit, strings.TrimPrefix(name, "Socket")) {
			t.Errorf("%s is not the unit's", name)
		}
	}
}

// The scripts are read by the shell that dpkg runs them with.
func TestScripts(t *testing.T) {
	scripts, err := filepath.Glob("../../.dist/debian/p*")
	must(t, err)
	if len(scripts) != 3 {
		t.Fatalf("found %q", scripts)
	}
	for _, path := range scripts {
		if out, err := exec.Command("sh", "-n", path).CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s", path, err, out)
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm()&0o111 == 0 {
			t.Errorf("%s cannot be run: %v", path, err)
		}
	}
}
