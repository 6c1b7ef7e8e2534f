// SPDX-License-Identifier: Apache-2.0

package blackbox

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// What docs/threat-model.md names as proof is there.
func TestThreatModelNamesWhatIsThere(t *testing.T) {
	var code strings.Builder
	must(t, filepath.WalkDir("../..", func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		code.Write(text)
		return err
	}))
	text, err := os.ReadFile("../../docs/threat-model.md")
	must(t, err)
	names := regexp.MustCompile(`\b(Test|Fuzz)[A-Z]\w+`).FindAllString(string(text), -1)
	if len(names) < 30 {
		t.Errorf("only %d names", len(names))
	}
	for _, name := range names {
		if !strings.Contains(code.String(), "\nfunc "+name+"(") {
			t.Errorf("there is no %s", name)
		}
	}
	for _, option := range regexp.MustCompile(`--[a-z][a-z-]+`).FindAllString(string(text), -1) {
		if help, err := helpText(); err != nil || !strings.Contains(help, option+" ") && !strings.Contains(help, option+"\n") {
			t.Errorf("there is no option %s: %v", option, err)
		}
	}
}

func helpText() (string, error) {
	text, err := exec.Command(program, "--help").Output()
	return string(text), err
}
