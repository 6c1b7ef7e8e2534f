// SPDX-License-Identifier: Apache-2.0

package handlers

import (
	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/export"
	"github.com/blkmirror/blkmirror/block/export/nbdserver"
	"github.com/blkmirror/blkmirror/job"
)

// What follows is for those who watch, at any time and beside any command. They must not change anything.

// Graph has all nodes.
func (h *Handlers) Graph() *block.Graph { return h.graph }

// Jobs has all jobs.
func (h *Handlers) Jobs() *job.Registry { return h.jobs }

// Exports has all exports.
func (h *Handlers) Exports() *export.Registry { return h.exports }

// NBD is the NBD server, running or not.
func (h *Handlers) NBD() *nbdserver.Server { return h.nbd }
