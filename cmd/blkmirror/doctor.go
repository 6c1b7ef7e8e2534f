// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/blkmirror/blkmirror/cmd/blkmirror/bytesize"
	"github.com/blkmirror/blkmirror/cmd/blkmirror/internal/holders"
	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
)

func (c *cli) doctorCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "doctor [FILE...]",
		Short: "look for what is wrong: sockets, permissions, locks, space",
		Long: `Checks the way to the daemon; then, for each of its images, whether it is still
there, who else uses it, and whether there is space; then its jobs. For a mirror
the space on the target is set against what is left to copy.

With FILEs it checks these images and needs no daemon. It changes nothing. Other
processes' use of images is seen of the same user's alone, unless it runs as
root.`,
		RunE: c.action(func(ctx context.Context, files []string) error {
			var found checks
			for _, f := range files {
				found.image(f)
			}
			if len(files) == 0 {
				if c.socket == "" {
					return usage("no socket given: use --socket or set %s, or name FILEs", envSocket)
				}
				if err := c.examine(ctx, &found); err != nil {
					return err
				}
			}
			if c.json {
				if err := c.printJSON(found.objects()); err != nil {
					return err
				}
			} else if err := found.table(c); err != nil {
				return err
			}
			if n := found.count(checkProblem); n > 0 {
				return &checksError{what: "doctor", problems: n}
			}
			return nil
		}),
	}
}

// examine checks the daemon and all it has.
func (c *cli) examine(ctx context.Context, found *checks) error {
	if path, local := localSocket(c.socket); local && !found.socket(path) {
		return nil
	}
	begun := time.Now()
	s, err := c.connect(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return err
		}
		found.add(checkProblem, "daemon", "%v", err)
		return nil
	}
	defer s.Close()
	nodes, err := queryNodes(ctx, s)
	if err != nil {
		return err
	}
	v, who := s.Version(), ""
	if s.daemon > 1 {
		who = fmt.Sprintf("process %d, ", s.daemon)
	}
	found.add(checkOK, "daemon", "%s%s answers in %v", who, v.Package, time.Since(begun).Round(time.Millisecond))
	for _, n := range nodes {
		if len(n.Children) == 0 {
			found.node(n, host{s.local(), s.daemon})
		}
	}
	views, err := lookTwice(ctx, s, time.Second)
	if err != nil {
		return err
	}
	for _, v := range views {
		found.job(v)
	}
	if s.local() {
		found.targets(nodes, views)
	}
	return nil
}

func localSocket(socket string) (path string, local bool) {
	return socket, (&session{socket: socket}).local()
}

// socket checks the way to a daemon, and tells whether it is open.
func (l *checks) socket(path string) bool {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		l.add(checkProblem, "socket", "'%s' is not there: does the daemon run, with --qmp %s?", path, path)
	case err != nil:
		l.add(checkProblem, "socket", "%v", err)
	case info.Mode()&fs.ModeSocket == 0:
		l.add(checkProblem, "socket", "'%s' is no socket", path)
	case unix.Access(path, unix.W_OK) != nil:
		l.add(checkProblem, "socket", "'%s' (%s, of user %d) may not be written by user %d", path, info.Mode(), ownerOf(info), os.Geteuid())
	default:
		conn, err := net.DialTimeout("unix", path, defaultPatience)
		if errors.Is(err, unix.ECONNREFUSED) {
			l.add(checkProblem, "socket", "nobody listens at '%s' any more: the daemon has ended", path)
			return false
		}
		if err != nil {
			l.add(checkProblem, "socket", "%v", err)
			return false
		}
		conn.Close()
		l.add(checkOK, "socket", "'%s' (%s)", path, info.Mode())
		return true
	}
	return false
}

func ownerOf(info fs.FileInfo) uint32 {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0
	}
	return st.Uid
}

// node checks a node that stands on nothing but its image.
func (l *checks) node(n api.BlockDeviceInfo, h host) {
	name, path := fmt.Sprintf("node %s", nameOf(n)), n.Image.Filename
	if n.Drv != "file" && n.Drv != "host_device" {
		l.add(checkOK, name, "%s, %s", n.Drv, bytesize.Format(n.Image.VirtualSize))
		return
	}
	if !h.local {
		l.add(checkUnknown, name, "'%s': the daemon may run on another host", path)
		return
	}
	if !filepath.IsAbs(path) {
		l.add(checkUnknown, name, "'%s' is relative to a folder that only the daemon knows", path)
		return
	}
	info, err := os.Stat(path)
	if err != nil {
		l.add(checkProblem, name, "the daemon has '%s' open, and it cannot be found any more: %v", path, errors.Unwrap(err))
		return
	}
	if n.Drv == "file" && info.Size() != n.Image.VirtualSize && (info.Size()+511)&^511 != n.Image.VirtualSize {
		l.add(checkWarning, name, "'%s' has %d bytes now, and %d when it was looked at: another file took its place, or somebody changed it", path,
			info.Size(), n.Image.VirtualSize)
	}
	if h.daemon > 1 {
		others, err := holders.Find(path, h.daemon)
		if err != nil {
			l.add(checkUnknown, name, "%v", err)
		}
		for _, o := range others {
			state := checkWarning
			if o.Uses&(holders.Write|holders.Resize) != 0 && !n.Ro {
				state = checkProblem
			}
			l.add(state, name, "%s in '%s', too", o, path)
		}
	}
	free, err := freeSpace(path)
	if err != nil {
		l.add(checkUnknown, name, "space for '%s': %v", path, err)
		return
	}
	l.add(checkOK, name, "'%s', %s allocated, %s free", path, bytesize.Format(qmp.Or(n.Image.ActualSize, 0)), bytesize.Format(free))
}

// job checks a job.
func (l *checks) job(v jobView) {
	e := v.explain()
	state, detail := checkOK, string(v.now.Status)+":"
	if e.stuck && v.now.Status != api.JobStatusReady {
		state = checkWarning
	}
	if v.now.Error != nil {
		state = checkProblem
	}
	for _, f := range e.facts {
		detail += " " + f
	}
	if len(e.help) > 0 {
		detail += " See blkmirror explain " + v.now.ID + "."
	}
	l.add(state, "job "+v.now.ID, "%s", detail)
}

// targets sets what mirrors have left to copy against the space on their targets.
func (l *checks) targets(nodes nodeList, views []jobView) {
	for _, v := range views {
		j := v.now
		t, found := nodes.find(qmp.Or(j.Target, ""))
		if !found || j.DirtyBytes == nil || j.Type != api.JobTypeMirror {
			continue
		}
		leaf := nodes.leaf(t)
		if leaf.Drv != "file" {
			continue
		}
		free, err := freeSpace(leaf.Image.Filename)
		switch name, need := "target "+nameOf(t), *j.DirtyBytes; {
		case err != nil:
			l.add(checkUnknown, name, "'%s': %v", leaf.Image.Filename, err)
		case free < need:
			l.add(checkProblem, name, "job '%s' may need %s more in '%s', and there are %s", j.ID, bytesize.Format(need), leaf.Image.Filename,
				bytesize.Format(free))
		default:
			l.add(checkOK, name, "%s at most are left to copy, %s are free", bytesize.Format(need), bytesize.Format(free))
		}
	}
}

// image checks an image that no daemon has told of.
func (l *checks) image(path string) {
	info, err := os.Stat(path)
	if err != nil {
		l.add(checkProblem, path, "%v", errors.Unwrap(err))
		return
	}
	if !info.Mode().IsRegular() && info.Mode()&(fs.ModeDevice|fs.ModeCharDevice) != fs.ModeDevice {
		l.add(checkProblem, path, "it is neither a file nor a block device")
		return
	}
	switch read, write := access(path); {
	case !read:
		l.add(checkProblem, path, "user %d may not read it (%s, of user %d)", os.Geteuid(), info.Mode(), ownerOf(info))
		return
	case !write:
		l.add(checkWarning, path, "user %d may not write it (%s, of user %d)", os.Geteuid(), info.Mode(), ownerOf(info))
	}
	if looks, err := looksLike(path); err != nil {
		l.add(checkProblem, path, "%v", err)
	} else if named := formatOf(path); looks == formatQcow2 && named != looks {
		l.add(checkWarning, path, "it begins as a qcow2 image does, and its name does not say so")
	} else if looks != named && info.Mode().IsRegular() && info.Size() > 0 {
		l.add(checkProblem, path, "it is no qcow2 image, as its name says")
	}
	others, err := holders.Find(path, 0)
	if err != nil {
		l.add(checkUnknown, path, "%v", err)
	}
	for _, o := range others {
		l.add(checkWarning, path, "%s", o)
	}
	if free, err := freeSpace(path); err == nil && info.Mode().IsRegular() {
		l.add(checkOK, path, "%s, %s allocated, %s free", bytesize.Format(info.Size()), bytesize.Format(qmp.Or((&side{path: path}).allocated(), 0)),
			bytesize.Format(free))
	} else {
		l.add(checkOK, path, "it can be opened")
	}
}
