// SPDX-License-Identifier: Apache-2.0

// Manual makes the manual page of blkmirrord from what its --help says.
//
//	blkmirrord --help | go run .dist/manual.go VERSION DATE
package main

import (
	"bufio"
	"fmt"
	"os"
	"regexp"
	"strings"
)

// option is the first line of one: its names, its value, and how its explanation begins.
var option = regexp.MustCompile(`^ +((?:-\w, )?--[\w-]+)(?: (\S+))? {2,}(.*)$`)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: manual VERSION DATE")
		os.Exit(2)
	}
	fmt.Printf(".TH BLKMIRRORD 8 %q %q blkmirror\n", os.Args[2], "blkmirror "+os.Args[1])
	fmt.Print(".SH NAME\nblkmirrord \\- storage daemon that exports disk images and mirrors them while they are in use\n" +
		".SH SYNOPSIS\n.B blkmirrord\n[\\fIOPTION\\fR...]\n.SH DESCRIPTION\n")
	found := 0
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		line := in.Text()
		switch at := option.FindStringSubmatch(line); {
		case at != nil:
			if found == 0 {
				fmt.Print(".SH OPTIONS\n")
			}
			found++
			fmt.Printf(".TP\n\\fB%s\\fR", roff(at[1]))
			if at[2] != "" {
				fmt.Printf(" \\fI%s\\fR", roff(at[2]))
			}
			fmt.Printf("\n%s\n", sentence(at[3]))
		case strings.HasPrefix(line, "usage:") || line == "":
		default:
			fmt.Println(sentence(strings.TrimSpace(line)))
		}
	}
	if found < 10 || in.Err() != nil {
		fmt.Fprintln(os.Stderr, "manual: no help of blkmirrord:", found, "options,", in.Err())
		os.Exit(1)
	}
	fmt.Print(`.SH SIGNALS
SIGTERM, SIGINT and SIGHUP stop the daemon in good order; a second one stops it at once.
.SH FILES
.TP
.I /etc/blkmirror/blkmirrord.conf
what the daemon of the systemd unit does
.TP
.I /run/blkmirror
sockets of that daemon
.TP
.I /var/lib/blkmirror
its images and its state
.SH EXIT STATUS
0 after an orderly stop, 1 if the daemon could not start or not stop well.
.SH SEE ALSO
.BR blkmirror (1),
.I /usr/share/doc/blkmirror
`)
}

func roff(text string) string {
	return strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace(text)
}

// sentence keeps a line from being taken for a request.
func sentence(text string) string {
	if strings.HasPrefix(text, ".") || strings.HasPrefix(text, "'") {
		return `\&` + roff(text)
	}
	return roff(text)
}
