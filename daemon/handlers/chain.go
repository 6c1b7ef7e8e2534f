// SPDX-License-Identifier: Apache-2.0

package handlers

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/driver/nbd"
	"github.com/blkmirror/blkmirror/block/driver/qcow2"
	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
)

// maxChain is how many images one chain of backing files may have.
const maxChain = 200

// site is where in the graph a node is opened. The zero value is that of a root.
type site struct {
	parent *nodeOptions // options of the node above that defines it, and that it inherits from
	role   string       // what it is to that node
	chain  []image      // the images above it, from the top down
	probed bool         // its format was found by looking, and is not to be trusted
}

// image is one image of a chain.
type image struct {
	name string
	id   string // the same for all names of one file
}

func imageOf(n *block.Node) image {
	i := image{name: n.FileName()}
	i.id = i.name
	if info, err := os.Stat(i.name); err == nil {
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			i.id = fmt.Sprintf("%d:%d", st.Dev, st.Ino)
		}
	}
	return i
}

// children opens the nodes below a new one, or finds those that it refers to.
func (h *Handlers) children(ctx context.Context, tx *block.Tx, o *api.BlockdevOptions, n *nodeOptions, at site) ([]child, error) {
	var list []child
	for _, role := range childrenOf(o) {
		c, err := h.child(ctx, tx, role.ref, site{parent: n, role: role.name})
		if err != nil {
			return nil, err
		}
		list = append(list, c)
	}
	if o.Qcow2 == nil {
		return list, nil
	}
	more, err := h.chainChildren(ctx, tx, o.Qcow2, list[0].Node, n, at, len(list) > 1)
	return append(list, more...), err
}

// child is a node below a new one.
type child struct {
	block.Child
	inline bool // opened for it
}

// chainChildren opens what a qcow2 image says that it stands on, unless the options say something else.
func (h *Handlers) chainChildren(ctx context.Context, tx *block.Tx, o *api.BlockdevOptionsQcow2, file *block.Node, n *nodeOptions,
	at site, hasData bool) ([]child, error) {
	this := imageOf(file)
	chain := append(slices.Clip(at.chain), this)
	switch i := slices.IndexFunc(at.chain, func(above image) bool { return above.id == this.id }); {
	case i >= 0:
		return nil, qmp.Errorf("The backing files form a loop: %s", namesOf(chain[i:]))
	case len(chain) > maxChain:
		return nil, qmp.Errorf("The chain of backing files has more than %d images: %s …", maxChain, namesOf(chain[:3]))
	}
	info, err := qcow2.Probe(ctx, file)
	if err != nil {
		return nil, err
	}
	switch {
	case info.Encryption != "" || o.Encrypt != nil:
		return nil, qmp.Errorf("'%s' is encrypted or to be opened as such, which is not supported", this.name)
	case hasData && !info.HasDataFile:
		return nil, qmp.Errorf("'data-file' can only be set for images with an external data file, which '%s' is not", this.name)
	case at.probed && (info.BackingFile != "" || info.HasDataFile):
		return nil, qmp.Errorf("'%s' looks like a qcow2 image that stands on another file, but the image above it does not say that "+
			"its format is qcow2, and whoever could write to a raw image could have made it look so: record the format there, or give "+
			"the chain with 'backing'", this.name)
	}
	var list []child
	if info.HasDataFile && !hasData {
		c, err := h.named(ctx, tx, info.DataFile, "", this, site{parent: n, role: "data-file"})
		if err != nil {
			return nil, qmp.Errorf("Could not open data file '%s' of '%s': %s", info.DataFile, this.name, h.config.Explain(err))
		}
		list = append(list, c)
	}
	below := site{parent: n, role: "backing", chain: chain}
	switch b := o.Backing; {
	case b != nil && b.Null != nil:
	case b != nil:
		c, err := h.child(ctx, tx, &api.BlockdevRef{Definition: b.Definition, Reference: b.Reference}, below)
		if err != nil {
			return nil, err
		}
		list = append(list, c)
	case info.BackingFile != "":
		c, err := h.named(ctx, tx, info.BackingFile, either(info.BackingFormat, "?"), this, below)
		if err != nil {
			return nil, qmp.Errorf("Could not open backing file '%s' of '%s': %s", info.BackingFile, this.name, h.config.Explain(err))
		}
		list = append(list, c)
	}
	return list, nil
}

// either is a or, if that is empty, b.
func either(a, b string) string {
	if a == "" {
		return b
	}
	return a
}

func namesOf(chain []image) string {
	var names []string
	for _, i := range chain {
		names = append(names, "'"+i.name+"'")
	}
	return strings.Join(names, " → ")
}

// named opens a file that an image names. format is that of what the file has: "" if the node of the file itself is wanted, and
// "?" if it is not known; then an image that does not begin like qcow2 is raw.
func (h *Handlers) named(ctx context.Context, tx *block.Tx, name, format string, from image, at site) (child, error) {
	full, err := fullName(name, from.name)
	if err != nil {
		return child{}, err
	}
	o, err := definitionOf(full)
	if err != nil {
		return child{}, err
	}
	if format == "?" && isProtocol(o.Driver) {
		at.probed = true
		if format, err = h.probe(ctx, tx, o, at); err != nil {
			return child{}, err
		}
	}
	switch {
	case !isProtocol(o.Driver): // json: says it all
	case format == "qcow2":
		o = &api.BlockdevOptions{Driver: api.BlockdevDriverQcow2, Qcow2: &api.BlockdevOptionsQcow2{
			BlockdevOptionsGenericCOWFormat: api.BlockdevOptionsGenericCOWFormat{
				BlockdevOptionsGenericFormat: api.BlockdevOptionsGenericFormat{File: api.BlockdevRef{Definition: o}}}}}
	case format == "raw":
		o = &api.BlockdevOptions{Driver: api.BlockdevDriverRaw, Raw: &api.BlockdevOptionsRaw{
			BlockdevOptionsGenericFormat: api.BlockdevOptionsGenericFormat{File: api.BlockdevRef{Definition: o}}}}
	case format != "" && format != string(o.Driver):
		return child{}, qmp.Errorf("Its format '%s' is not supported", format)
	}
	return h.child(ctx, tx, &api.BlockdevRef{Definition: o}, at)
}

// probe looks what is in a file.
func (h *Handlers) probe(ctx context.Context, tx *block.Tx, o *api.BlockdevOptions, at site) (format string, err error) {
	n, err := h.open(ctx, tx, o, at)
	if err != nil {
		return "", err
	}
	magic := make([]byte, min(4, n.Size()))
	if err := n.ReadAt(ctx, magic, 0); err != nil {
		return "", err
	}
	if format = "raw"; string(magic) == "QFI\xfb" {
		format = "qcow2"
	}
	return format, tx.RemoveNode(n)
}

func isProtocol(d api.BlockdevDriver) bool {
	switch d {
	case api.BlockdevDriverFile, api.BlockdevDriverHostDevice, api.BlockdevDriverNBD, api.BlockdevDriverNullCo,
		api.BlockdevDriverNullAIO:
		return true
	}
	return false
}

// fullName is a name that an image has, with the folder of that image if it is a relative path.
func fullName(name, image string) (string, error) {
	protocol, _, found := strings.Cut(name, ":")
	if found && !strings.Contains(protocol, "/") || filepath.IsAbs(name) {
		return name, nil
	}
	if nbd.IsURI(image) || image == "" {
		return "", qmp.Errorf("It is relative to an image that is no local file: '%s'", image)
	}
	full := filepath.Join(filepath.Dir(image), name)
	if strings.Contains(full, ":") && !filepath.IsAbs(full) {
		full = "./" + full
	}
	return full, nil
}
