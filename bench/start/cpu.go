package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// cpuMeter reads the CPU time of a lab host: of dockerd, containerd, the runtimes,
// the plugin and the containers, from the cgroup that holds them all. Unlike the
// time on the clock it hardly depends on what else the machine does. What the
// kernel does later in its own threads, such as destroying a network namespace, is
// not in it.
type cpuMeter struct{ root string }

// read returns 0 where the kernel does not account for it.
func (m cpuMeter) read() time.Duration {
	var n int64
	raw, err := os.ReadFile(filepath.Join(m.root, "sys/fs/cgroup/cpuacct/cpuacct.usage"))
	if err == nil { // cgroup v1: nanoseconds
		_, _ = fmt.Sscan(string(raw), &n)
		return time.Duration(n)
	}
	raw, err = os.ReadFile(filepath.Join(m.root, "sys/fs/cgroup/cpu.stat"))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(raw)) { // cgroup v2: microseconds
		if value, ok := strings.CutPrefix(line, "usage_usec "); ok {
			_, _ = fmt.Sscan(value, &n)
		}
	}
	return time.Duration(n) * time.Microsecond
}
