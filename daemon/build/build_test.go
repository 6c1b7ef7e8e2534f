// SPDX-License-Identifier: Apache-2.0

package build

import "testing"

func TestInfo(t *testing.T) {
	for _, c := range []struct {
		info            Info
		short, describe string
	}{
		{Info{Version: "1.0"}, "1.0", "p version 1.0 (protocol of qemu-storage-daemon 11.1)\n"},
		{Info{"1.0", "0123456789abcdef", "2026-01-02T03:04:05Z", true, "go1.26.0"}, "1.0 (0123456789ab, modified)",
			"p version 1.0 (protocol of qemu-storage-daemon 11.1)\nrevision 0123456789abcdef of 2026-01-02T03:04:05Z, with changes\nbuilt with go1.26.0\n"},
		{Info{Version: "1.0", Revision: "abc", Go: "go1.26.0"}, "1.0 (abc)",
			"p version 1.0 (protocol of qemu-storage-daemon 11.1)\nrevision abc of \nbuilt with go1.26.0\n"},
	} {
		if got := c.info.String(); got != c.short {
			t.Errorf("%+v is %q, want %q", c.info, got, c.short)
		}
		if got := c.info.Describe("p"); got != c.describe {
			t.Errorf("%+v is %q, want %q", c.info, got, c.describe)
		}
	}
	if i := Read(); i.Version != Version || i.Go == "" {
		t.Errorf("this program is %+v", i)
	}
}
