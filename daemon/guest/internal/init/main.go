// SPDX-License-Identifier: Apache-2.0

// Init is the only program of the guest: the first process that the kernel starts, and the last. It carries out the
// operations of package workload on the guest's disk, flushes after each group, reads some of it back, and tells on the serial
// console what is durable:
//
//	guest: synced N     all operations up to version N were flushed, and the next group has not begun
//	guest: pong N       the answer to "ping": the same
//	guest: stopped N    the answer to "stop": the same, and the machine is about to be switched off
//	guest: failed WHY   the disk did what a disk must not do
//
// The kernel's command line gives the seed (guest_seed=N), and the initial file system the modules.
package main

import (
	"bufio"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/blkmirror/blkmirror/daemon/guest/internal/workload"
)

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "init: this is for a virtual machine alone")
		os.Exit(1)
	}
	if err := run(); err != nil {
		say("failed %v", err)
	}
	// Where there is no way to switch the machine off, the kernel panics when init returns, and the machine ends as well.
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

// say writes a line and waits until the other side has it: what follows happens after that.
func say(format string, arguments ...any) {
	fmt.Printf("guest: "+format+"\n", arguments...)
	_ = unix.IoctlSetInt(1, unix.TCSBRK, 1) // tcdrain
}

func run() error {
	if err := prepare(); err != nil {
		return err
	}
	seed, err := strconv.ParseUint(os.Getenv("guest_seed"), 10, 64)
	if err != nil {
		return err
	}
	disk, err := openDisk("vda")
	if err != nil {
		return err
	}
	commands := make(chan string)
	go func() {
		for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
			commands <- lines.Text()
		}
	}()
	state := workload.New(seed, disk.size)
	for {
		if err := disk.carryOut(state.Next()); err != nil {
			return err
		}
		if err := disk.readBack(state); err != nil {
			return err
		}
		say("synced %d", state.Done())
		select {
		case command := <-commands:
			if command == "stop" {
				say("stopped %d", state.Done())
				return nil
			}
			say("pong %d", state.Done())
		default:
		}
	}
}
