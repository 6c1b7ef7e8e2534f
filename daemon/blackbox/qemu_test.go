// SPDX-License-Identifier: Apache-2.0

package blackbox

import (
	"encoding/json"
	"testing"
)

// exportedImage exports a thin image of 8 MiB that has data from 1 MiB to 3 MiB.
func exportedImage(t *testing.T) (d *daemon, path string) {
	d = start(t)
	path = d.path("src.img")
	image(t, path, 8<<20, 2<<20, 1<<20)
	d.disk("src", path, args{"discard": "unmap"})
	d.export("src")
	return d, path
}

func TestQEMUImgReadsExport(t *testing.T) {
	tool(t, "qemu-img")
	d, path := exportedImage(t)
	var info struct {
		Format string
		Size   int64 `json:"virtual-size"`
	}
	must(t, json.Unmarshal([]byte(run(t, "qemu-img", "info", "--output=json", d.uri("src"))), &info))
	if info.Format != "raw" || info.Size != 8<<20 {
		t.Errorf("qemu-img info says %+v", info)
	}
	var extents []struct {
		Start, Length int64
		Zero, Data    bool
	}
	must(t, json.Unmarshal([]byte(run(t, "qemu-img", "map", "--output=json", "-f", "raw", d.uri("src"))), &extents))
	if len(extents) != 3 || extents[1].Start != 1<<20 || extents[1].Length != 2<<20 || !extents[1].Data || extents[1].Zero ||
		!extents[0].Zero || extents[0].Data || !extents[2].Zero {
		t.Errorf("qemu-img map says %+v", extents)
	}
	run(t, "qemu-img", "compare", "-U", "-f", "raw", "-F", "raw", d.uri("src"), path)
}

func TestQEMUIOWritesExport(t *testing.T) {
	tool(t, "qemu-io")
	d, path := exportedImage(t)
	run(t, "qemu-io", "-f", "raw", "-c", "write -P 0x5a 4M 192k", "-c", "write -z -u 1M 64k", "-c", "discard 2M 64k",
		"-c", "write -f -P 0xa5 7340543 3", "-c", "flush", d.uri("src"))
	check := []string{"-r", "-U", "-f", "raw", "-c", "read -P 0x5a 4M 192k", "-c", "read -P 0 1M 64k", "-c", "read -P 0 2M 64k",
		"-c", "read -P 0xa5 7340543 3"}
	if out, err := attempt(t, "qemu-io", append(check, path)...); err != nil {
		t.Errorf("the file does not hold what was written: %s", out)
	}
	if out, err := attempt(t, "qemu-io", append(check[:1:1], append(check[2:], d.uri("src"))...)...); err != nil {
		t.Errorf("the export does not read back what was written: %s", out)
	}
}
