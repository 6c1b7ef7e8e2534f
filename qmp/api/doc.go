// SPDX-License-Identifier: Apache-2.0

// Package api is the QMP contract in Go: types for the arguments and results
// of every command and for the data of every event, generated from the QAPI
// text in qmp/schema.
//
// How the schema becomes Go:
//
//	struct     struct; its base is embedded
//	union      struct with the common members, and a pointer per branch of
//	           which the discriminator selects one
//	alternate  struct with a pointer per choice, of which one is set
//	enum       string type with constants and Valid
//	optional   pointer; nil for lists and any; "" for enums
//	int, size  int64, uint64
//
// Taking arguments from the wire is strict and in a fixed order: the
// discriminator of a union, then what is missing or of the wrong type in the
// order of the schema, then what is unexpected. Defaults are not filled in;
// qmp.Or helps with them.
//
// A daemon implements Commands and hands Dispatch to its server. The package
// does nothing by itself, apart from answering for the schema (Introspection).
package api

//go:generate go run ../internal/qapigen -out .
