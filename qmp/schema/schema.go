// SPDX-License-Identifier: Apache-2.0

// Package schema holds the QMP contract as QAPI schema text.
//
// The files are written in QEMU's schema language: single-quoted JSON-like
// definitions of enums, structs, flat unions, alternates, commands and
// events, each below a documentation comment between two ## lines.  Names,
// types and defaults are QEMU's wherever QEMU has them; the words are ours.
//
// Nothing reads the text at run time.  The generator in qmp/internal/qapigen
// turns it into package qmp/api, and a test there fails when the two differ.
package schema

import "embed"

// Files has the schema, one file per part of it.
//
//go:embed *.json
var Files embed.FS
