// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Kinds of targets.
const (
	targetFile = "file"       // of the daemon itself
	targetOurs = "blkmirrord" // on another daemon, by NBD
	targetQEMU = "qemu-nbd"   // the same
)

// server is another host: it has the target's image, and is killed and stopped.
type server struct {
	argv    []string
	folder  string
	foreign bool // it is no daemon of ours
	process *process
}

// newServer makes the server of a raw image, or of an image of another format.
func newServer(s *settings, kind, folder, image, format string) *server {
	r := &server{folder: folder}
	if kind == targetQEMU {
		r.foreign = true
		r.argv = []string{s.qemuNBD, "--format", format, "--persistent", "--shared", "0", "--discard", "unmap", "--export-name", "disk",
			"--socket", filepath.Join(folder, "server"), image}
		return r
	}
	r.argv = []string{s.daemon}
	r.argv = append(r.argv, option("--blockdev", imageNode("disk", format, image, nil))...)
	r.argv = append(r.argv, "--nbd-server", "addr.type=unix,addr.path=server")
	r.argv = append(r.argv, option("--export", args{"type": "nbd", "id": "disk", "node-name": "disk", "name": "disk", "writable": true})...)
	return r
}

// newServerOf makes a server of ours that has many raw images, each with an export of its name.
func newServerOf(s *settings, folder string, names []string) *server {
	r := &server{folder: folder, argv: []string{s.daemon, "--nbd-server", "addr.type=unix,addr.path=server"}}
	for _, name := range names {
		r.argv = append(r.argv, option("--blockdev", imageNode(name, "raw", name, nil))...)
		r.argv = append(r.argv, option("--export", args{"type": "nbd", "id": name, "node-name": name, "name": name, "writable": true})...)
	}
	return r
}

// remoteNode defines a node for an export of the server.
func remoteNode(name, export, socket string) args {
	return args{"driver": "nbd", "node-name": name, "server": args{"type": "unix", "path": socket}, "export": export, "reconnect-delay": reconnectDelay}
}

func (r *server) start(ctx context.Context) (err error) {
	// A socket that a killed server left is in qemu-nbd's way.
	_ = syscall.Unlink(filepath.Join(r.folder, "server"))
	if r.process, err = launch(r.folder, filepath.Join(r.folder, "server.log"), r.argv...); err != nil {
		return err
	}
	return until(ctx, startLimit, "the target's server listens", func() (bool, error) {
		if !r.process.alive() {
			return false, fmt.Errorf("the target's server ended with status %d; see %s", r.process.cmd.ProcessState.ExitCode(), r.process.log)
		}
		c, err := net.Dial("unix", filepath.Join(r.folder, "server"))
		if err == nil {
			c.Close()
		}
		return err == nil, nil
	})
}

// stop has the server end in good order.
func (r *server) stop(ctx context.Context) error {
	if r.process == nil || !r.process.alive() {
		return nil
	}
	r.process.signal(syscall.SIGCONT)
	r.process.signal(syscall.SIGTERM)
	if r.foreign {
		return r.stopForeign(ctx)
	}
	status, err := r.process.wait(ctx, stopLimit)
	if err == nil && status != 0 {
		err = fmt.Errorf("the target's server ended with status %d; see %s", status, r.process.log)
	}
	return err
}

// stopForeign gives a server that is not ours some time to end in good order: how it does is not what is tried here.
func (r *server) stopForeign(ctx context.Context) error {
	timeout := time.NewTimer(2 * time.Second)
	defer timeout.Stop()
	select {
	case <-r.process.exited:
	case <-timeout.C:
		r.process.kill()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return nil
}

// imageNode defines a node for an image, with rules for faults below it.
func imageNode(name, format, path string, rules []args) args {
	file := args{"driver": "file", "filename": path, "discard": "unmap"}
	if strings.HasPrefix(path, "/dev/loop") {
		file["driver"] = "host_device"
	}
	if len(rules) > 0 {
		file = args{"driver": "blkdebug", "image": file, "inject-error": rules}
	}
	return args{"driver": format, "node-name": name, "discard": "unmap", "file": file}
}
