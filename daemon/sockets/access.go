// SPDX-License-Identifier: Apache-2.0

package sockets

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Access is who may connect to a local socket.
type Access struct {
	Mode os.FileMode // permissions of the socket; 0 leaves it as it was made
	GID  int         // group of the socket, -1 leaves it as it was made
	UIDs []uint32    // users whose clients are taken; nil takes all that can open the socket
}

// ParseAccess reads the options of a socket, nil for those that were not given.
func ParseAccess(mode, group *string, uids []uint32) (Access, error) {
	a := Access{GID: -1, UIDs: uids}
	if uids != nil && len(uids) == 0 {
		return a, errors.New("'allow-uids' is empty, so that nobody could connect: leave it out to go by 'mode' and 'group' alone")
	}
	if mode != nil {
		bits, err := strconv.ParseUint(*mode, 8, 32)
		if err != nil || bits&^0o666 != 0 || bits&0o600 != 0o600 {
			return a, fmt.Errorf("'mode' expects read and write permissions in octal, from 0600 to 0666, not '%s'", *mode)
		}
		a.Mode = os.FileMode(bits)
	}
	if group == nil {
		return a, nil
	}
	if gid, err := strconv.ParseUint(*group, 10, 31); err == nil {
		a.GID = int(gid)
		return a, nil
	}
	found, err := user.LookupGroup(*group)
	if err != nil {
		return a, fmt.Errorf("'group' expects the name or number of a group, not '%s': %w", *group, err)
	}
	a.GID, err = strconv.Atoi(found.Gid)
	return a, err
}

// OnPath says whether the access can be had only on a socket with a path.
func (a Access) OnPath() bool { return a.Mode != 0 || a.GID >= 0 }

// Apply sets group and permissions of the socket at path, which this process has made. The group comes first: the other way
// round, the old group could connect for a moment.
func (a Access) Apply(path string) error {
	if !a.OnPath() {
		return nil
	}
	// By descriptor: whoever may write to the folder may put something else in the place of the socket at any time.
	fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("cannot set the permissions of socket '%s': %w", path, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("cannot set the permissions of socket '%s': %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK || int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("cannot set the permissions of socket '%s': somebody else put something in its place", path)
	}
	if a.GID >= 0 {
		if err := unix.Fchownat(fd, "", -1, a.GID, unix.AT_EMPTY_PATH); err != nil {
			return fmt.Errorf("cannot give socket '%s' to group %d: %w (the daemon must run as root or be a member of it)", path, a.GID, err)
		}
	}
	if a.Mode != 0 {
		if err := os.Chmod("/proc/self/fd/"+strconv.Itoa(fd), a.Mode); err != nil {
			return fmt.Errorf("cannot set the permissions of socket '%s': %w", path, err)
		}
	}
	return nil
}

// allowed is the list of users for messages.
func (a Access) allowed() string {
	var list []string
	for _, uid := range a.UIDs {
		list = append(list, strconv.FormatUint(uint64(uid), 10))
	}
	return strings.Join(list, ", ")
}
