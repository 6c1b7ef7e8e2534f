// SPDX-License-Identifier: Apache-2.0

// Package export keeps the exports of a daemon: the ways in which guests reach its nodes.
//
// An [Export] has an id, a type such as "nbd" and a node, and stands in a [Registry] from the end of its creation to
// the end of its removal. Removal is safe (refused while a client is connected) or hard (clients are thrown out), and
// whoever asked for it returns when the export is gone and its node free:
//
//	         Add                    Remove
//	(none) ───────► listed ───────► shutting down ───────► (none), Deleted called
//	                  ▲   in use, safe │
//	                  └────────────────┘
//
// How requests get from a client to a node is the business of the packages below this one. An export follows its node:
// it holds a [github.com/blkmirror/blkmirror/block.Backend], which a change of the graph may point elsewhere.
package export
