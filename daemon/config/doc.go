// SPDX-License-Identifier: Apache-2.0

// Package config reads a configuration file: options of the command line, by their names, in YAML.
//
//	state-dir: /var/lib/blkmirror        an option with a value
//	sandbox: [/srv/images, /run]         one that may be given several times
//	blockdev:                            one that takes an object: a list of them, nested as in QMP
//	  - driver: file
//	    node-name: disk
//	    filename: /srv/images/disk.raw
//
// The package knows what kinds of options there are, not which: [Spec] says that. What it makes of a file are the texts that would
// stand on a command line, each with its place in the file. It is strict: unknown keys, keys given twice, aliases, and more than one document
// are errors that name file, line and key. The errors
// of this package have no values.
package config
