// SPDX-License-Identifier: Apache-2.0

package blackbox

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestNBDInfo(t *testing.T) {
	tool(t, "nbdinfo")
	d, _ := exportedImage(t)
	d.do("block-export-add", args{"type": "nbd", "id": "second", "node-name": "src", "name": "read only", "description": "for readers"})

	var info struct {
		Protocol string
		Exports  []map[string]any
	}
	must(t, json.Unmarshal([]byte(run(t, "nbdinfo", "--json", d.uri("src"))), &info))
	if info.Protocol != "newstyle-fixed" || len(info.Exports) != 1 {
		t.Fatalf("nbdinfo says %+v", info)
	}
	for name, want := range map[string]any{"export-size": 8388608.0, "is_read_only": false, "can_flush": true, "can_fua": true,
		"can_trim": true, "can_zero": true, "can_fast_zero": true, "can_multi_conn": true, "can_df": true,
		"block_size_minimum": 1.0, "block_size_maximum": 33554432.0} {
		if got := info.Exports[0][name]; got != want {
			t.Errorf("nbdinfo says %s is %v, want %v", name, got, want)
		}
	}

	must(t, json.Unmarshal([]byte(run(t, "nbdinfo", "--list", "--json", d.uri(""))), &info))
	var names []string
	for _, e := range info.Exports {
		names = append(names, e["export-name"].(string))
	}
	if list := strings.Join(names, ", "); !strings.Contains(list, "src") || !strings.Contains(list, "read only") {
		t.Errorf("nbdinfo lists %s", list)
	}

	var extents []struct {
		Offset, Length int64
		Type           int
	}
	must(t, json.Unmarshal([]byte(run(t, "nbdinfo", "--map", "--json", d.uri("src"))), &extents))
	if len(extents) != 3 || extents[0].Type != 3 || extents[1].Offset != 1<<20 || extents[1].Length != 2<<20 || extents[1].Type != 0 {
		t.Errorf("nbdinfo maps %+v", extents)
	}
}

func TestNBDCopyBothWays(t *testing.T) {
	tool(t, "nbdcopy")
	d, path := exportedImage(t)
	run(t, "nbdcopy", d.uri("src"), d.path("copy.img"))
	same(t, path, d.path("copy.img"))

	image(t, d.path("other.img"), 8<<20, 512<<10, 0, 3<<20, 8<<20-512<<10)
	run(t, "nbdcopy", "--flush", "--connections=4", d.path("other.img"), d.uri("src"))
	same(t, d.path("other.img"), path)
}
