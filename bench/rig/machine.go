package rig

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Machine tells when and on what a run was made.
type Machine struct {
	Date   string `json:"date"`
	CPU    string `json:"cpu"`
	CPUs   int    `json:"cpus"`
	Kernel string `json:"kernel"`
	Go     string `json:"go"`
	Load   string `json:"load"` // when the run began, as in /proc/loadavg
}

// Describe leaves out what it cannot find.
func Describe() Machine {
	m := Machine{
		Date: time.Now().UTC().Format(time.RFC3339), CPU: Field("/proc/cpuinfo", "model name"), CPUs: runtime.NumCPU(),
		Kernel: Kernel(), Go: runtime.Version(),
	}
	if load, err := os.ReadFile("/proc/loadavg"); err == nil {
		m.Load = strings.TrimSpace(string(load))
	}
	return m
}

// Print writes the line that heads a report.
func (m Machine) Print(w io.Writer) {
	fmt.Fprintf(w, "%d x %s, Linux %s, %s\n", m.CPUs, m.CPU, m.Kernel, m.Go)
}

// Kernel is the running kernel's release, empty if it does not tell.
func Kernel() string {
	var name unix.Utsname
	if unix.Uname(&name) != nil {
		return ""
	}
	return unix.ByteSliceToString(name.Release[:])
}

// Field is the first value of a key in a file of "key : value" lines, empty if
// there is none.
func Field(path, key string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		name, value, ok := strings.Cut(lines.Text(), ":")
		if ok && strings.TrimSpace(name) == key {
			return strings.TrimSpace(value)
		}
	}
	return ""
}
