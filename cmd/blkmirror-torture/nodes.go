// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
)

// definitions are the daemon's nodes and exports.
func (r *round) definitions() (nodes []args, nbd args, export args) {
	nodes = []args{imageNode(sourceNode, r.sourceFormat, r.path("source"), r.sourceRules), r.targetDefinition()}
	nbd = args{"type": "unix", "path": "nbd"}
	export = args{"type": "nbd", "id": exportID, "node-name": sourceNode, "name": exportName, "writable": true}
	return nodes, nbd, export
}

func (r *round) targetDefinition() args {
	if r.server == nil {
		return imageNode(targetNode, r.targetFormat, r.image, r.targetRules)
	}
	remote := args{"driver": "nbd", "server": args{"type": "unix", "path": "line"}, "export": "disk", "reconnect-delay": reconnectDelay,
		"open-timeout": 20, "connections": r.connections}
	if len(r.targetRules) == 0 {
		remote["node-name"] = targetNode
		return remote
	}
	return args{"driver": "raw", "node-name": targetNode, "file": args{"driver": "blkdebug", "image": remote, "inject-error": r.targetRules}}
}

// startDaemon starts the daemon for the first time.
func (r *round) startDaemon(ctx context.Context) error {
	state := "state"
	if r.state != nil {
		state = filepath.Join(r.state.folder, "state")
	}
	options := []string{"--state-dir", state}
	nodes, nbd, export := r.definitions()
	if !r.byQMP {
		for _, n := range nodes {
			options = append(options, option("--blockdev", n)...)
		}
		options = append(options, "--nbd-server", "addr.type=unix,addr.path=nbd")
		options = append(options, option("--export", export)...)
	}
	r.daemon = newDaemon(r.folder, r.settings.daemon, options...)
	if err := r.daemon.start(ctx); err != nil {
		return err
	}
	if r.byQMP {
		for _, n := range nodes {
			if err := r.daemon.do(ctx, "blockdev-add", n, nil); err != nil {
				return err
			}
		}
		if err := r.daemon.do(ctx, "nbd-server-start", args{"addr": args{"type": "unix", "data": args{"path": nbd["path"]}}}, nil); err != nil {
			return err
		}
		if err := r.daemon.do(ctx, "block-export-add", export, nil); err != nil {
			return err
		}
	}
	var err error
	r.expected, err = r.daemon.picture(ctx)
	return err
}

// restarted starts the daemon again, and sees that all is there that was.
func (r *round) restarted(ctx context.Context) error {
	r.started = false
	if !r.onTarget || r.server == nil {
		r.model.close()
	}
	if err := r.daemon.start(ctx); err != nil {
		return fmt.Errorf("it was started again: %w", err)
	}
	j, err := r.daemon.jobNamed(ctx, jobID)
	if err != nil {
		return err
	}
	if r.started = j != nil; r.started {
		r.counts.add("mirrors that went on after a restart", 1)
	}
	return r.look(ctx)
}

// look sees that nodes and exports are as they were.
func (r *round) look(ctx context.Context) error {
	now, err := r.daemon.picture(ctx)
	if err != nil {
		return err
	}
	// An export of the source shows the mirror's filter, by whichever name that has.
	now = strings.Replace(now, exportLine(filterNode), exportLine(sourceNode), 1)
	now = strings.Replace(now, exportLine("#block"), exportLine(sourceNode), 1)
	var lines []string
	for l := range strings.Lines(now) {
		if !strings.Contains(l, `"drv":"mirror_top"`) {
			lines = append(lines, strings.TrimSuffix(l, "\n"))
		}
	}
	if now = strings.Join(lines, "\n"); now != r.expected {
		return fmt.Errorf("nodes and exports were\n%s\nand are\n%s", r.expected, now)
	}
	return nil
}

// pivoted notes that guests use the target now.
func (r *round) pivoted() {
	r.onTarget, r.copied = true, true
	r.expected = strings.Replace(r.expected, exportLine(sourceNode), exportLine(targetNode), 1)
}

// exportLine is what tells the node of the export in a picture.
func exportLine(node string) string { return fmt.Sprintf(`"node-name":"%s","shutting-down"`, node) }
