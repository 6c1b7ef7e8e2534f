// SPDX-License-Identifier: Apache-2.0

package docs

import (
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// container is what of one is looked at.
type container struct {
	Name            string
	Command, Args   []string
	SecurityContext struct {
		AllowPrivilegeEscalation bool `yaml:"allowPrivilegeEscalation"`
	} `yaml:"securityContext"`
	VolumeMounts []struct{ Name, MountPath string } `yaml:"volumeMounts"`
}

// The manifest is YAML, its parts belong together, and the daemon and the client know the options.
func TestKubernetesManifest(t *testing.T) {
	text, err := os.ReadFile("howto/kubernetes.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var pod struct {
		Kind string
		Spec struct {
			InitContainers []container `yaml:"initContainers"`
			Containers     []container
			Volumes        []struct{ Name string }
		}
	}
	if err := yaml.Unmarshal(text, &pod); err != nil {
		t.Fatal(err)
	}
	if pod.Kind != "Pod" || len(pod.Spec.InitContainers) != 1 || len(pod.Spec.Containers) != 1 {
		t.Fatalf("it is %+v", pod)
	}
	volumes := map[string]bool{}
	for _, v := range pod.Spec.Volumes {
		volumes[v.Name] = true
	}
	for _, c := range append(pod.Spec.Containers, pod.Spec.InitContainers...) {
		for _, m := range c.VolumeMounts {
			if !volumes[m.Name] {
				t.Errorf("%s mounts %s, which is not there", c.Name, m.Name)
			}
		}
		if c.SecurityContext.AllowPrivilegeEscalation {
			t.Errorf("%s may get more rights", c.Name)
		}
	}
	// The daemon as the manifest has it, with folders of ours, ended by a signal as a pod's is.
	dir, err := os.MkdirTemp("", "pod-") // short, for the paths of sockets
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	for _, name := range []string{"/run", "/images", "/state"} {
		if err := os.Mkdir(dir+name, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(dir+"/images/disk.img", make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	here := func(words []string) (moved []string) {
		for _, w := range words {
			w = strings.ReplaceAll(w, "/run/blkmirror", dir+"/run")
			w = regexp.MustCompile(`([=:])(/images|/state)`).ReplaceAllString(w, "${1}"+dir+"${2}")
			moved = append(moved, w)
		}
		return moved
	}
	daemon := pod.Spec.InitContainers[0]
	args := append(here(daemon.Args), "--daemonize", "--pidfile="+dir+"/pid", "--sandbox="+dir, "--sandbox-best-effort")
	if out, err := exec.Command(programs+daemon.Command[0], args...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	defer func() {
		script := "p=$(cat " + dir + "/pid) && kill $p && for i in {1..100}; do kill -0 $p 2>/dev/null || exit 0; sleep 0.1; done; exit 1"
		if out, err := exec.Command("bash", "-c", script).CombinedOutput(); err != nil {
			t.Errorf("the daemon does not end: %v: %s", err, out)
		}
	}()
	probe := here(regexp.MustCompile(`\["/blkmirror", (.*)\]`).FindStringSubmatch(string(text)))
	var words []string
	if err := yaml.Unmarshal([]byte("["+probe[1]+"]"), &words); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(programs+"/blkmirror", words...).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "exports  1") {
		t.Errorf("the probe says %v: %s", err, out)
	}
}
