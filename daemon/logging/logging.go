// SPDX-License-Identifier: Apache-2.0

// Package logging makes the daemon's log: as text, as JSON, or for systemd's journal, and without floods.
//
// Names of fields are stable: time, level, msg; job, node, export, conn, off, len, err, and what one message has besides. They are
// listed in docs/logging.md.
package logging

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/sirupsen/logrus"
)

// Format is how lines look.
type Format string

// The formats.
const (
	Auto     Format = "auto"     // Journald where the output goes there, else Text
	Text     Format = "text"     // for people: key=value, with colours on a terminal
	JSON     Format = "json"     // one object in a line
	Journald Format = "journald" // text without a time, with the priority in front as sd-daemon(3) says
)

// ParseFormat reads --log-format.
func ParseFormat(text string) (Format, error) {
	switch f := Format(text); f {
	case Auto, Text, JSON, Journald:
		return f, nil
	}
	return "", fmt.Errorf("expects auto, text, json or journald, not '%s'", text)
}

// levels are those that can be asked for, from few messages to many.
var levels = []string{"error", "warning", "info", "debug"}

// ParseLevel reads --log-level.
func ParseLevel(text string) (logrus.Level, error) {
	for i, name := range levels {
		if text == name {
			return logrus.ErrorLevel + logrus.Level(i), nil
		}
	}
	return 0, fmt.Errorf("expects %s, not '%s'", strings.Join(levels, ", "), text)
}

// New makes a log that writes to out.
func New(out io.Writer, f Format, level logrus.Level) *logrus.Logger {
	l := logrus.New()
	l.SetOutput(out)
	l.SetLevel(level)
	if f == Auto {
		f = Text
		if toJournal(out, os.Getenv("JOURNAL_STREAM")) {
			f = Journald
		}
	}
	var lines logrus.Formatter
	switch f {
	case JSON:
		lines = &logrus.JSONFormatter{TimestampFormat: time.RFC3339Nano, DisableHTMLEscape: true}
	case Journald:
		lines = journal{&logrus.TextFormatter{DisableColors: true, DisableTimestamp: true}}
	default:
		lines = &logrus.TextFormatter{FullTimestamp: true, TimestampFormat: time.RFC3339}
	}
	l.SetFormatter(newLimiter(lines, time.Now))
	return l
}

// toJournal says whether out is the stream that systemd says is its journal's, as device and inode.
func toJournal(out io.Writer, stream string) bool {
	f, ok := out.(*os.File)
	device, inode, cut := strings.Cut(stream, ":")
	if !ok || !cut {
		return false
	}
	var st syscall.Stat_t
	if syscall.Fstat(int(f.Fd()), &st) != nil {
		return false
	}
	return device == strconv.FormatUint(st.Dev, 10) && inode == strconv.FormatUint(st.Ino, 10)
}

// journal puts the priority in front of lines.
type journal struct{ lines logrus.Formatter }

func (j journal) Format(e *logrus.Entry) ([]byte, error) {
	priority := 6
	switch e.Level {
	case logrus.PanicLevel, logrus.FatalLevel:
		priority = 2
	case logrus.ErrorLevel:
		priority = 3
	case logrus.WarnLevel:
		priority = 4
	case logrus.DebugLevel, logrus.TraceLevel:
		priority = 7
	}
	line, err := j.lines.Format(e)
	if err != nil {
		return nil, err
	}
	return append(fmt.Appendf(nil, "<%d>", priority), line...), nil
}
