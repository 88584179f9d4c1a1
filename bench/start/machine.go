package main

import (
	"fmt"
	"os"
	"runtime"

	"github.com/particle-net/particle/bench/rig"
)

// machineInfo tells what a run ran on.
type machineInfo struct {
	CPU       string `json:"cpu"`
	Cores     int    `json:"cores"`
	MemoryMiB int    `json:"memoryMiB"`
	Kernel    string `json:"kernel"`
	Arch      string `json:"arch"`
	// Load is the average number of runnable processes in the minute before: more
	// than the cores means that others were at work too.
	Load float64 `json:"load"`
}

func (m machineInfo) String() string {
	return fmt.Sprintf("%d cores (%s, %s), %.1f GiB, Linux %s", m.Cores, m.CPU, m.Arch, float64(m.MemoryMiB)/1024, m.Kernel)
}

// describeMachine leaves out what it cannot find.
func describeMachine() machineInfo {
	m := machineInfo{CPU: "unnamed CPU", Cores: runtime.NumCPU(), Arch: runtime.GOARCH}
	if name := rig.Field("/proc/cpuinfo", "model name"); name != "" {
		m.CPU = name
	}
	kib := 0
	if _, err := fmt.Sscan(rig.Field("/proc/meminfo", "MemTotal"), &kib); err == nil {
		m.MemoryMiB = kib / 1024
	}
	if raw, err := os.ReadFile("/proc/loadavg"); err == nil {
		_, _ = fmt.Sscan(string(raw), &m.Load)
	}
	m.Kernel = rig.Kernel()
	return m
}
