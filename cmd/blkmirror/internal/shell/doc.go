// SPDX-License-Identifier: Apache-2.0

// Package shell reads commands from a person at a terminal, or from a script.
//
//	terminal ──► line editor ──► lines ──┐            words        COMMAND KEY=VALUE…, or a whole message
//	               ▲ Tab                 ├─► Lines ──► Split ──►   whoever executes them
//	script ──────  │  ───────────────────┘
//	             Schema.Complete ◄── query-qmp-schema
//
// The line editor is that of golang.org/x/term, which the client has anyway: it knows arrows, history and pasted text, draws what
// others write above the line that is being edited, and leaves it to us what Tab does. What it lacks, a search in the history, is
// not worth one more dependency.
//
// The package knows no daemon: what to execute and what there is to complete is given to it.
package shell
