// SPDX-License-Identifier: Apache-2.0

package nbdserver

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/blkmirror/blkmirror/block"
	"github.com/blkmirror/blkmirror/block/blocktest"
	"github.com/blkmirror/blkmirror/block/driver/null"
)

// shell has libnbd's shell run a program in Python, in which u is the URI of an export and big that of one of 8 GiB.
func (h *house) shell(newest bool, program string) {
	h.t.Helper()
	if _, err := exec.LookPath("nbdsh"); err != nil && !newest {
		h.t.Skip("nbdsh is not installed")
	}
	name, args := "nbdsh", []string{"-c", "u, big = '" + h.uri("d") + "', '" + h.uri("big") + "'", "-c", program}
	if newest {
		root := os.Getenv("PEER_ROOT")
		if root == "" {
			h.t.Skip("needs the newest libnbd, in the system that $PEER_ROOT names")
		}
		name, args = "chroot", append([]string{root, name}, args...)
	}
	cmd := exec.CommandContext(h.bounded(), name, args...)
	cmd.Env = append(os.Environ(), "PATH=/usr/bin:"+os.Getenv("PATH")) // the Python that the packages are for
	if out, err := cmd.CombinedOutput(); err != nil {
		h.t.Fatalf("nbdsh: %v\n%s", err, out)
	}
}

const shellHandshake = `
h.set_opt_mode(True)
h.set_full_info(True) if hasattr(h, 'set_full_info') else None
h.connect_uri(u)
assert h.get_protocol() == 'newstyle-fixed'
names = []
h.opt_list(lambda name, words: names.append((name, words)))
assert ('d', 'words') in names and ('big', '') in names, names
found = []
h.opt_list_meta_context(lambda name: found.append(name))
assert found == ['base:allocation', 'qemu:allocation-depth', 'qemu:dirty-bitmap:b'], found
if hasattr(h, 'opt_list_meta_context_queries'):
    found = []
    h.opt_list_meta_context_queries(['qemu:dirty-bitmap:'], lambda name: found.append(name))
    assert found == ['qemu:dirty-bitmap:b'], found
h.set_export_name('none')
try:
    h.opt_info()
    assert False
except nbd.Error:
    pass
h.set_export_name('d')
for c in ['base:allocation', 'qemu:allocation-depth', 'qemu:dirty-bitmap:b', 'qemu:dirty-bitmap:none', 'x:y']:
    h.add_meta_context(c)
h.opt_info()
assert h.get_size() == 4 << 20
h.opt_go()
assert [h.can_meta_context(c) for c in ['base:allocation', 'qemu:allocation-depth', 'qemu:dirty-bitmap:b', 'x:y']] == [True, True, True, False]
assert h.get_structured_replies_negotiated()
assert h.get_block_size(nbd.SIZE_MINIMUM) == 1 and h.get_block_size(nbd.SIZE_MAXIMUM) == 32 << 20
assert all([h.can_flush(), h.can_fua(), h.can_trim(), h.can_zero(), h.can_fast_zero(), h.can_df(), h.can_cache(), h.can_multi_conn()])
assert not h.is_read_only() and not h.is_rotational()
extended = hasattr(h, 'get_extended_headers_negotiated')
if extended:
    assert h.get_extended_headers_negotiated() and h.can_block_status_payload()
`

const shellCommands = `
def errno(f):
    try:
        f()
    except nbd.Error as e:
        return e.errno
    return None
def status(n, off, flags=0):
    found = {}
    h.block_status(n, off, lambda name, at, entries, error: found.update({name: entries}), flags)
    return found

h.pwrite(b'\x11' * 65536, 1 << 20, nbd.CMD_FLAG_FUA)
h.flush()
h.pwrite(b'\x22' * 3, (1 << 20) + 7)
assert h.pread(4, (1 << 20) + 6) == b'\x11\x22\x22\x22'
pieces = []
got = h.pread_structured(2 << 20, 0, lambda data, at, kind, error: pieces.append((at, len(data), kind)))
assert got[:1 << 20] == bytes(1 << 20) and got[(1 << 20) + 10:(1 << 20) + 65536] == b'\x11' * 65526
assert any(kind == nbd.READ_HOLE for _, _, kind in pieces), pieces
pieces = []
h.pread_structured(2 << 20, 0, lambda data, at, kind, error: pieces.append((at, len(data), kind)), nbd.CMD_FLAG_DF)
assert pieces == [(0, 2 << 20, nbd.READ_DATA)], pieces

s = status(4 << 20, 0)
assert s['base:allocation'] == [1 << 20, 3, 65536, 0, (3 << 20) - 65536, 3], s
assert s['qemu:allocation-depth'][1] == 1, s
assert s['qemu:dirty-bitmap:b'] == [1 << 20, 0, 65536, 1, (3 << 20) - 65536, 0], s
assert status(4 << 20, 0, nbd.CMD_FLAG_REQ_ONE)['base:allocation'] == [1 << 20, 3]

h.zero(4096, 1 << 20, nbd.CMD_FLAG_FUA | nbd.CMD_FLAG_NO_HOLE)
h.zero(4096, (1 << 20) + 8192, nbd.CMD_FLAG_FAST_ZERO)
h.trim(4096, (1 << 20) + 16384, nbd.CMD_FLAG_FUA)
h.cache(1 << 20, 0)
assert h.pread(4096, 1 << 20) == bytes(4096) and h.pread(4096, (1 << 20) + 8192) == bytes(4096)
assert h.pread(1, (1 << 20) + 4096) == b'\x11'

strict = h.get_strict_mode()
h.set_strict_mode(0)
assert errno(lambda: h.pread(512, 4 << 20)) == 'EINVAL'
assert errno(lambda: h.pwrite(bytes(512), 4 << 20)) == 'ENOSPC'
assert errno(lambda: h.zero(512, 4 << 20)) == 'ENOSPC'
assert errno(lambda: h.trim(512, 4 << 20)) == 'EINVAL'
assert errno(lambda: h.flush(1 << 15)) == 'EINVAL'
h.set_strict_mode(strict)
assert h.pread(1, (1 << 20) + 4096) == b'\x11'

second = nbd.NBD()
second.connect_uri(u)
second.pwrite(b'\x33', 0)
h.flush()
assert h.pread(1, 0) == b'\x33'
second.shutdown()

if extended:
    found = {}
    h.block_status_filter(4 << 20, 0, ['qemu:allocation-depth'], lambda name, at, entries, error: found.update({name: entries}))
    assert list(found) == ['qemu:allocation-depth'], found
    assert errno(lambda: h.block_status_filter(4 << 20, 0, [], lambda *a: 0)) == 'EINVAL'
    far = nbd.NBD()
    far.add_meta_context('base:allocation')
    far.connect_uri(big)
    far.zero(5 << 30, 0)
    far.trim(5 << 30, 1 << 30)
    far.cache(6 << 30, 0)
    found = []
    far.block_status_64(8 << 30, 0, lambda name, at, entries, error: found.extend(entries))
    assert found == [(8 << 30, 3)], found
    far.shutdown()
h.shutdown()
`

// TestShell goes through options and commands as libnbd sends them.
func TestShell(t *testing.T) {
	for name, newest := range map[string]bool{"installed": false, "newest": true} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t, Options{MaxConnections: 100})
			h.node = blocktest.NewNode(t, h.graph, "shell", blocktest.NewMem(blocktest.MemOptions{Size: 4 << 20}), block.Options{Discard: true})
			huge, err := null.Open(null.Options{Size: new(int64(8 << 30)), ReadZeroes: true})
			h.must(err)
			var bitmap *block.DirtyBitmap
			blocktest.Change(t, h.graph, func(tx *block.Tx) (err error) {
				bitmap, err = tx.AddBitmap(h.node, block.BitmapConfig{Name: "b", Granularity: 64 << 10})
				return err
			})
			h.must(h.server.AddExport(t.Context(), Config{ID: "d", Name: "d", Node: h.node, Writable: true, Description: "words",
				AllocationDepth: true, Bitmaps: []*block.DirtyBitmap{bitmap}}))
			h.must(h.server.AddExport(t.Context(), Config{ID: "big", Writable: true,
				Node: blocktest.NewNode(t, h.graph, "big", huge, block.Options{Discard: true})}))
			h.must(os.Chmod(h.path, 0o666))
			h.shell(newest, strings.TrimSpace(shellHandshake+shellCommands))
		})
	}
}
