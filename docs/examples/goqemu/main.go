// SPDX-License-Identifier: Apache-2.0

// Goqemu mirrors a disk of a running blkmirrord with the monitor of github.com/digitalocean/go-qemu:
//
//	goqemu SOCKET SOURCE TARGET
//
// It starts a mirror from node SOURCE to node TARGET, follows the daemon's events, completes the mirror when it is ready, and
// ends when it is over. docs/go-qemu.md explains it.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"

	"github.com/digitalocean/go-qemu/qmp"
)

const jobID = "goqemu"

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: goqemu SOCKET SOURCE TARGET")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, "goqemu:", err)
		os.Exit(1)
	}
}

func run(socket, source, target string) error {
	monitor, err := qmp.NewSocketMonitor("unix", socket, 5*time.Second)
	if err != nil {
		return err
	}
	if err := monitor.Connect(); err != nil {
		return err
	}
	defer monitor.Disconnect()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	// The monitor reads nothing more, replies included, while an event waits to be taken: somebody has to take them at all times.
	received, err := monitor.Events(ctx)
	if err != nil {
		return err
	}
	events := make(chan qmp.Event, 1000)
	go func() {
		defer close(events)
		for e := range received {
			select {
			case events <- e:
			default: // nobody waits for more; the end is among the first thousand
			}
		}
	}()
	if _, err := execute(monitor, "blockdev-mirror", map[string]any{"job-id": jobID, "device": source, "target": target,
		"sync": "full", "copy-mode": "write-blocking"}); err != nil {
		return err
	}
	for e := range events {
		id, failure := about(e)
		if id != jobID {
			continue
		}
		fmt.Println(e.Event)
		switch e.Event {
		case "BLOCK_JOB_READY":
			if _, err := execute(monitor, "job-complete", map[string]any{"id": jobID}); err != nil {
				return err
			}
		case "BLOCK_JOB_COMPLETED":
			if failure != "" {
				return fmt.Errorf("the mirror failed: %s", failure)
			}
			return nil
		case "BLOCK_JOB_CANCELLED":
			return fmt.Errorf("somebody cancelled the mirror")
		}
	}
	return fmt.Errorf("the connection was lost")
}

// execute sends one command and returns its result. An error of the daemon is one here.
func execute(monitor qmp.Monitor, command string, arguments any) (json.RawMessage, error) {
	text, err := json.Marshal(qmp.Command{Execute: command, Args: arguments})
	if err != nil {
		return nil, err
	}
	reply, err := monitor.Run(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", command, err)
	}
	var result struct {
		Return json.RawMessage `json:"return"`
	}
	return result.Return, json.Unmarshal(reply, &result)
}

// about says which block job an event is about, and why it failed if it did.
func about(e qmp.Event) (id, failure string) {
	id, _ = e.Data["device"].(string)
	failure, _ = e.Data["error"].(string)
	return id, failure
}
