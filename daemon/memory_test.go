// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"math"
	"runtime/debug"
	"testing"
	"testing/fstest"
)

func TestGroupLimit(t *testing.T) {
	none := int64(math.MaxInt64)
	for _, c := range []struct {
		name  string
		files map[string]string
		want  int64
	}{
		{"nothing", nil, none},
		{"v2", map[string]string{"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.max": "1073741824\n"}, 1 << 30},
		{"v2 without", map[string]string{"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/memory.max": "max\n"}, none},
		{"v2, above", map[string]string{"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.max": "max\n",
			"sys/fs/cgroup/a/memory.max": "536870912"}, 512 << 20},
		{"v2, container", map[string]string{"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "268435456\n"}, 256 << 20},
		{"v2, a path from outside", map[string]string{"proc/self/cgroup": "0::/../../x\n", "sys/fs/cgroup/memory.max": "268435456\n"}, 256 << 20},
		{"v1", map[string]string{"proc/self/cgroup": "5:cpu,cpuacct:/a\n4:memory:/a\n0::/b\n",
			"sys/fs/cgroup/memory/a/memory.limit_in_bytes": "134217728\n"}, 128 << 20},
		{"v1 without", map[string]string{"proc/self/cgroup": "4:memory:/a\n",
			"sys/fs/cgroup/memory/a/memory.limit_in_bytes": "9223372036854771712\n"}, none},
		{"rubbish", map[string]string{"proc/self/cgroup": "::\n0::\nx\n0::a\n0::/a\n", "sys/fs/cgroup/a/memory.max": "-1"}, none},
	} {
		files := fstest.MapFS{}
		for name, text := range c.files {
			files[name] = &fstest.MapFile{Data: []byte(text)}
		}
		if got := groupLimit(files); got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
}

func TestLimitMemory(t *testing.T) {
	before := debug.SetMemoryLimit(-1)
	defer debug.SetMemoryLimit(before)
	files := fstest.MapFS{"proc/self/cgroup": {Data: []byte("0::/a\n")}, "sys/fs/cgroup/a/memory.max": {Data: []byte("2000000000\n")}}
	given := func(value string) func(string) string { return func(string) string { return value } }
	if got := limitMemory(files, given("1GiB")); got != 0 || debug.SetMemoryLimit(-1) != before {
		t.Errorf("GOMEMLIMIT is overruled: %d", got)
	}
	if got := limitMemory(files, given("")); got != 1_800_000_000 || debug.SetMemoryLimit(-1) != got {
		t.Errorf("the limit is %d, and in force %d", got, debug.SetMemoryLimit(-1))
	}
	debug.SetMemoryLimit(before)
	files["sys/fs/cgroup/a/memory.max"] = &fstest.MapFile{Data: []byte("1000000\n")}
	if got := limitMemory(files, given("")); got != 0 || debug.SetMemoryLimit(-1) != before {
		t.Errorf("a limit that nothing fits into is in force: %d", got)
	}
}
