// SPDX-License-Identifier: Apache-2.0

package handlers

import (
	"errors"
	"io/fs"
	"os"
	"strings"

	"github.com/blkmirror/blkmirror/block/driver/nbd"
	"github.com/blkmirror/blkmirror/daemon/options"
	"github.com/blkmirror/blkmirror/qmp"
	"github.com/blkmirror/blkmirror/qmp/api"
)

// definitionOf turns a file name, such as that of a backing file in the header of an image, into the options of the node that
// it stands for:
//
//	/path/to/image, image, file:image      file, or host_device for a device
//	nbd://HOST/EXPORT and its kin          nbd; so does the old form nbd:HOST:PORT:exportname=EXPORT
//	json:{"driver": …}                     whatever the options say
//
// What stands before a colon that no slash precedes is a protocol, as in QEMU. A relative path is taken as it is: who has the
// name from an image makes it relative to that image. Nothing is opened.
func definitionOf(filename string) (*api.BlockdevOptions, error) {
	switch protocol, rest, found := strings.Cut(filename, ":"); {
	case nbd.IsURI(filename):
		if _, err := nbd.ParseURI(filename); err != nil {
			return nil, err
		}
		return &api.BlockdevOptions{Driver: api.BlockdevDriverNBD, NBD: &api.BlockdevOptionsNbd{URI: &filename}}, nil
	case !found || strings.Contains(protocol, "/"):
		return pathDefinition(filename)
	case protocol == "file":
		return pathDefinition(rest)
	case protocol == "json":
		return jsonDefinition(rest)
	default:
		return nil, qmp.Errorf("Unknown protocol '%s' in '%s': the name of a file with a colon is written file:NAME or ./NAME",
			protocol, filename)
	}
}

// pathDefinition is how a file is opened. What is not there is left to the driver to say.
func pathDefinition(path string) (*api.BlockdevOptions, error) {
	if path == "" {
		return nil, qmp.Errorf("A file name is empty")
	}
	if strings.ContainsRune(path, 0) {
		return nil, qmp.Errorf("The file name %q has a zero byte", path)
	}
	file := &api.BlockdevOptionsFile{Filename: path}
	if info, err := os.Stat(path); err == nil && info.Mode()&fs.ModeDevice != 0 {
		return &api.BlockdevOptions{Driver: api.BlockdevDriverHostDevice, HostDevice: file}, nil
	}
	return &api.BlockdevOptions{Driver: api.BlockdevDriverFile, File: file}, nil
}

// jsonDefinition takes options as blockdev-add does.
func jsonDefinition(text string) (*api.BlockdevOptions, error) {
	object, mode, err := options.Parse(strings.TrimSpace(text), "")
	if err == nil && mode != qmp.Strict {
		err = errors.New("json: is followed by an object in braces")
	}
	if err != nil {
		return nil, qmp.Errorf("'json:%s' is no file name: %s", text, err)
	}
	o := new(api.BlockdevOptions)
	if err := qmp.Decode(object, mode, o); err != nil {
		return nil, qmp.Errorf("'json:%s' is no file name: %s", text, err)
	}
	return o, nil
}

// byName is o or, if o names a file by an NBD URI, the options of the node that this stands for.
func byName(o *api.BlockdevOptions) (*api.BlockdevOptions, error) {
	if o.File == nil || !nbd.IsURI(o.File.Filename) {
		return o, nil
	}
	for _, p := range []struct {
		name  string
		given bool
	}{
		{"pr-manager", o.File.PrManager != nil}, {"locking", o.File.Locking != ""}, {"aio", o.File.AIO != ""},
		{"aio-max-batch", o.File.AIOMaxBatch != nil}, {"drop-cache", o.File.DropCache != nil},
	} {
		if p.given {
			return nil, qmp.Errorf("Parameter '%s' does not go with '%s', which is no local file", p.name, o.File.Filename)
		}
	}
	named, err := definitionOf(o.File.Filename)
	if err != nil {
		return nil, err
	}
	remote := *o
	remote.Driver, remote.File, remote.NBD = named.Driver, nil, named.NBD
	return &remote, nil
}
