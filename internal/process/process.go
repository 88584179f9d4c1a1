// Package process tells a live process from a dead one and from another that
// came to have the same number.
package process

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Table reads processes under a /proc mount of the host's pid namespace.
type Table struct{ Root string }

// Namespace is the file of the process's network namespace.
func (t Table) Namespace(pid int) string {
	return filepath.Join(t.Root, strconv.Itoa(pid), "ns", "net")
}

// StartTime is when the process started, in clock ticks since boot (field 22 of
// /proc/PID/stat, proc(5)). ok is false if there is none, or only a zombie.
func (t Table) StartTime(pid int) (ticks uint64, ok bool) {
	data, err := os.ReadFile(filepath.Join(t.Root, strconv.Itoa(pid), "stat"))
	if err != nil {
		return 0, false
	}
	// The second field is the command in parentheses and may hold any byte;
	// what follows the last parenthesis starts with field 3, the state.
	fields := bytes.Fields(data[bytes.LastIndexByte(data, ')')+1:])
	const state, startTime = 0, 22 - 3
	if len(fields) <= startTime || bytes.Equal(fields[state], []byte("Z")) || bytes.Equal(fields[state], []byte("X")) {
		return 0, false
	}
	ticks, err = strconv.ParseUint(string(fields[startTime]), 10, 64)
	return ticks, err == nil
}

// Unified reads the path in hierarchy 0, which is cgroup v2, from a process's
// cgroup file (cgroups(7)); empty if it has none there.
func Unified(file string) (string, error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	for line := range bytes.Lines(raw) {
		if path, ok := strings.CutPrefix(string(line), "0::"); ok {
			return strings.TrimSuffix(path, "\n"), nil
		}
	}
	return "", nil
}
