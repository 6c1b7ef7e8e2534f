// SPDX-License-Identifier: Apache-2.0

package conformance

import "path"

// leftOut lists the scenarios that are not run, and why. Shorten it: a row
// goes as soon as what it waits for is there.
var leftOut = []struct{ pattern, reason string }{
	{"quirks/*", "recorded behaviour of qemu-storage-daemon that is improved on purpose, see better/"},
}

// LeftOut tells whether a scenario is not run by default, and why.
func LeftOut(name string) (reason string, ok bool) {
	for _, row := range leftOut {
		if match, err := path.Match(row.pattern, name); err == nil && match {
			return row.reason, true
		}
	}
	return "", false
}
