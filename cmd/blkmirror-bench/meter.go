// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/blkmirror/blkmirror/cmd/blkmirror-bench/result"
)

// meter measures a process between two moments.
type meter struct {
	pid    int
	start  time.Time
	cpu    time.Duration
	tracer *tracer
}

// meter starts to measure. In a run that is traced, it starts strace as well.
func (b *bench) meter(ctx context.Context, p *process) (*meter, error) {
	m := &meter{pid: p.pid()}
	var err error
	if b.tracing {
		if m.tracer, err = b.trace(ctx, m.pid); err != nil {
			return nil, err
		}
	}
	if m.cpu, err = cpuTime(m.pid); err != nil {
		return nil, err
	}
	m.start = time.Now()
	return m, nil
}

// stop gives the time that went by, and the processor time that the process used. Of a run that is traced, it notes the system
// calls in the sample.
func (m *meter) stop(into result.Sample) (wall, cpu time.Duration, err error) {
	wall = time.Since(m.start)
	now, err := cpuTime(m.pid)
	if m.tracer != nil {
		err = errors.Join(err, m.tracer.stop(into))
	}
	return wall, now - m.cpu, err
}

// tracer is a strace at work.
type tracer struct {
	*process
	out    string
	target string // count calls that name this file, rather than all
}

// writing are the calls that change a file.
const writing = "fallocate,write,pwrite64,writev,pwritev,pwritev2,copy_file_range,ioctl,sendfile,splice"

func (b *bench) trace(ctx context.Context, pid int) (*tracer, error) {
	t := &tracer{out: b.scratch("strace"), target: b.traceTarget}
	argv := []string{"strace", "-f", "-qq", "-o", t.out, "-p", strconv.Itoa(pid)}
	if t.target == "" {
		argv = append(argv, "-c")
	} else {
		argv = append(argv, "-y", "-e", "trace="+writing)
	}
	var err error
	if t.process, err = startProcess(ctx, argv, b.scratch("log")); err != nil {
		return nil, err
	}
	for {
		attached, err := traced(pid)
		if err != nil || attached {
			return t, err
		}
		select {
		case <-time.After(time.Millisecond):
		case <-t.exited:
			return nil, t.died()
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// traced says whether all threads of a process are.
func traced(pid int) (bool, error) {
	folder := fmt.Sprintf("/proc/%d/task", pid)
	tasks, err := os.ReadDir(folder)
	if err != nil {
		return false, err
	}
	for _, task := range tasks {
		text, err := os.ReadFile(folder + "/" + task.Name() + "/status")
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			continue // it has ended
		}
		if err != nil {
			return false, err
		}
		if strings.Contains(string(text), "TracerPid:\t0\n") {
			return false, nil
		}
	}
	return true, nil
}

// stop lets go of the process and counts. It runs beyond the window that is measured, and its ctx is that of strace.
func (t *tracer) stop(into result.Sample) error {
	if err := t.cmd.Process.Signal(syscall.SIGINT); err != nil {
		return err
	}
	<-t.exited
	defer os.Remove(t.out)
	defer os.Remove(t.log)
	f, err := os.Open(t.out)
	if err != nil {
		return err
	}
	defer f.Close()
	if t.target == "" {
		return countCalls(bufio.NewScanner(f), into)
	}
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	calls := 0
	for lines.Scan() {
		if strings.Contains(lines.Text(), "<"+t.target+">") {
			calls++
		}
	}
	into[result.TracedOnTarget] = float64(calls)
	return lines.Err()
}

// countCalls reads the table of strace -c, whose last line is
//
//	100.00    0.001234           5       246        12 total
func countCalls(lines *bufio.Scanner, into result.Sample) error {
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) >= 5 && fields[len(fields)-1] == "total" {
			n, err := strconv.ParseFloat(fields[3], 64)
			into[result.TracedCalls] = n
			return err
		}
	}
	into[result.TracedCalls] = 0
	return lines.Err()
}
