// SPDX-License-Identifier: Apache-2.0

package qmp

// Event is what a server announces. The types are generated, in qmp/api.
type Event interface {
	// EventName returns the name on the wire, such as JOB_STATUS_CHANGE.
	EventName() string
	// EncodeQMP writes the data of the event, an object.
	Encodable
}
