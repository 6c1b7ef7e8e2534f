// SPDX-License-Identifier: Apache-2.0

package job

import "github.com/blkmirror/blkmirror/block"

// Policy says what a job does when a request fails.
type Policy uint8

// The policies.
const (
	PolicyReport Policy = iota // fail
	PolicyIgnore               // try again
	PolicyENOSPC               // stop when space is short, else fail
	PolicyStop                 // pause until the operator resumes
)

// Decide is the action for an error.
func (p Policy) Decide(err error) Action {
	switch p {
	case PolicyIgnore:
		return ActionIgnore
	case PolicyStop:
		return ActionStop
	case PolicyENOSPC:
		if block.KindOf(err) == block.KindNoSpace {
			return ActionStop
		}
	}
	return ActionReport
}
