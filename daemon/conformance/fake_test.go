// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strings"
)

// envFake makes the test binary a daemon with a few commands, so that the
// runner can be seen to notice what is wrong with a daemon.
const envFake = "CONFORMANCE_FAKE_DAEMON"

// fakeDaemon serves one monitor until quit and returns the exit status.
func fakeDaemon() int {
	var path string
	for _, argument := range os.Args[1:] {
		switch {
		case argument == "--fail":
			fmt.Fprintln(os.Stderr, "failing as told")
			return 1
		case strings.HasPrefix(argument, "socket,"):
			_, path, _ = strings.Cut(argument, "path=")
			path, _, _ = strings.Cut(path, ",")
		}
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	conn, err := listener.Accept()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	fmt.Fprintln(conn, `{"QMP": {"version": {"package": "fake", "qemu": {"major": 1, "minor": 2, "micro": 3}}, "capabilities": []}}`)
	lines := bufio.NewScanner(conn)
	for lines.Scan() {
		var command struct {
			Execute   string
			Arguments map[string]any
		}
		if err := json.Unmarshal(lines.Bytes(), &command); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 2
		}
		argument, _ := json.Marshal(command.Arguments)
		switch command.Execute {
		case "quit":
			fmt.Fprintln(conn, `{"return": {}}`)
			return 0
		case "quit-badly":
			fmt.Fprintln(conn, `{"return": {}}`)
			return 3
		case "die":
			fmt.Fprintln(os.Stderr, "dying as told")
			return 4
		case "hang":
			lines.Scan() // for ever, or until the monitor is closed
			select {}
		case "garbage":
			fmt.Fprintln(conn, `{"return": `)
		case "refuse":
			fmt.Fprintln(conn, `{"error": {"class": "GenericError", "desc": "as told"}}`)
		case "emit":
			fmt.Fprintf(conn, `{"event": "HAPPENED", "data": %s, "timestamp": {"seconds": 1, "microseconds": 2}}`+"\n", argument)
			fmt.Fprintln(conn, `{"return": {}}`)
		case "echo":
			fmt.Fprintf(conn, `{"return": %s}`+"\n", argument)
		default:
			fmt.Fprintln(conn, `{"return": {}}`)
		}
	}
	return 0
}
