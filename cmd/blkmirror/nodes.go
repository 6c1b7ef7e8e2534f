// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"os"
	"strings"

	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
)

// executor is who carries out commands: a session, or an engine.
type executor interface {
	Execute(ctx context.Context, command string, args, result any) error
}

// nodeList are all nodes of a daemon.
type nodeList []api.BlockDeviceInfo

func queryNodes(ctx context.Context, e executor) (nodeList, error) {
	var nodes nodeList
	err := e.Execute(ctx, "query-named-block-nodes", &api.QueryNamedBlockNodesArguments{Flat: ptr(true)}, (*[]api.BlockDeviceInfo)(&nodes))
	return nodes, err
}

func nameOf(n api.BlockDeviceInfo) string { return qmp.Or(n.NodeName, "") }

func (l nodeList) find(name string) (api.BlockDeviceInfo, bool) {
	for _, n := range l {
		if nameOf(n) == name {
			return n, true
		}
	}
	return api.BlockDeviceInfo{}, false
}

// child is the node that n has in one of the roles, the first that there is.
func (l nodeList) child(n api.BlockDeviceInfo, roles ...string) (api.BlockDeviceInfo, bool) {
	for _, role := range roles {
		for _, c := range n.Children {
			if c.Child == role {
				return l.find(c.NodeName)
			}
		}
	}
	return api.BlockDeviceInfo{}, false
}

// leaf is the node at the end of the way down from n that data takes.
func (l nodeList) leaf(n api.BlockDeviceInfo) api.BlockDeviceInfo {
	for range l { // so that a daemon that lies cannot hold us
		roles := []string{"file", "image"}
		if isFilter(n) {
			roles = append(roles, "backing")
		}
		below, ok := l.child(n, roles...)
		if !ok {
			break
		}
		n = below
	}
	return n
}

// isFilter tells whether a job put n where it stands.
func isFilter(n api.BlockDeviceInfo) bool { return strings.HasSuffix(n.Drv, "_top") }

// above are the nodes that stand on the one of this name.
func (l nodeList) above(name string) (list nodeList) {
	for _, n := range l {
		for _, c := range n.Children {
			if c.NodeName == name {
				list = append(list, n)
				break
			}
		}
	}
	return list
}

// path is the local file or device behind a leaf, or "".
func (l nodeList) path(n api.BlockDeviceInfo) string {
	if leaf := l.leaf(n); leaf.Drv == "file" || leaf.Drv == "host_device" {
		return leaf.Image.Filename
	}
	return ""
}

// sameFile tells whether two paths lead to one file.
func sameFile(a, b string) bool {
	if a == b {
		return true
	}
	x, err := os.Stat(a)
	if err != nil {
		return false
	}
	y, err := os.Stat(b)
	return err == nil && os.SameFile(x, y)
}
