// SPDX-License-Identifier: Apache-2.0

package options

import (
	"errors"
	"fmt"
	"strings"

	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
)

// Chardev reads --chardev KIND,id=ID,...: socket with path, fd or host and
// port, or stdio. A switch may stand alone, as in server,nowait.
//
// What comes back can be carried out: exactly one address, a server, and
// nothing that is not available.
func Chardev(text string) (*api.ChardevOptions, error) {
	v, err := chardev(text)
	if err != nil {
		return nil, fmt.Errorf("--chardev %s: %w", text, err)
	}
	return v, nil
}

// QMP reads --qmp PATH[,...], which is short for a chardev with a local socket.
func QMP(text string) (*api.ChardevOptions, error) {
	v, err := chardev("socket,id=qmp,server=on,wait=off,path=" + text)
	if err == nil && (v.Socket == nil || v.Socket.Path == nil || *v.Socket.Path == "") {
		err = errors.New("a path is needed")
	}
	if err != nil {
		return nil, fmt.Errorf("--qmp %s: %w", text, err)
	}
	return v, nil
}

func chardev(text string) (*api.ChardevOptions, error) {
	items, err := split(text, "backend")
	if err != nil {
		return nil, err
	}
	for i := range items {
		if items[i].bare {
			items[i] = switched(items[i].key)
		}
	}
	o, err := build(items)
	if err != nil {
		return nil, err
	}
	v := new(api.ChardevOptions)
	if err := qmp.Decode(o, qmp.Keyval, v); err != nil {
		return nil, err
	}
	if v.Socket != nil {
		return v, checkSocket(v.Socket)
	}
	return v, nil
}

// switched returns what a key without value stands for: on, or off with a
// "no" before it.
func switched(key string) item {
	if rest, off := strings.CutPrefix(key, "no"); off && key != "nodelay" {
		return item{key: rest, value: "off"}
	}
	return item{key: key, value: "on"}
}

func checkSocket(s *api.ChardevSocketOptions) error {
	addresses := 0
	for _, given := range []bool{s.Path != nil, s.Fd != nil, s.Port != nil} {
		if given {
			addresses++
		}
	}
	switch {
	case addresses == 0:
		return errors.New("one of 'path', 'fd' and 'port' is needed")
	case addresses > 1:
		return errors.New("'path', 'fd' and 'port' exclude each other")
	case s.Host != nil && s.Port == nil:
		return errors.New("'host' needs 'port'")
	case !qmp.Or(s.Server, false):
		return errors.New("only 'server=on' is available")
	case qmp.Or(s.Telnet, false):
		return errors.New("'telnet' is not available")
	case qmp.Or(s.Abstract, false):
		return errors.New("'abstract' is not available")
	case s.Reconnect != nil:
		return errors.New("'reconnect' is for clients only")
	}
	return nil
}
