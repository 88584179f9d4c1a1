package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/internal/fault"
)

// procID names one process for good: a pid is reused, a pid with its start time
// (clock ticks since boot, field 22 of /proc/PID/stat) is not.
type procID struct {
	Pid   int    `json:"pid"`
	Start uint64 `json:"start"`
}

// processOf reads the identity of a running process.
func processOf(pid int) (procID, error) {
	start, dead, err := readStat(pid)
	if err != nil {
		return procID{}, err
	}
	if dead {
		return procID{}, fault.New("look at process", strconv.Itoa(pid), "it has ended", "")
	}
	return procID{Pid: pid, Start: start}, nil
}

// alive tells whether the process still runs; a zombie does not.
func (p procID) alive() bool {
	if p.Pid == 0 {
		return false
	}
	start, dead, err := readStat(p.Pid)
	return err == nil && !dead && start == p.Start
}

func readStat(pid int) (start uint64, dead bool, err error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, false, err
	}
	// The command name may hold spaces and parentheses: fields begin after the last one.
	end := bytes.LastIndexByte(raw, ')')
	if end < 0 {
		return 0, false, fault.New("read", fmt.Sprintf("/proc/%d/stat", pid), "no command name in it", "")
	}
	fields := strings.Fields(string(raw[end+1:]))
	if len(fields) < 20 {
		return 0, false, fault.New("read", fmt.Sprintf("/proc/%d/stat", pid), "too few fields", "")
	}
	start, err = strconv.ParseUint(fields[19], 10, 64)
	return start, fields[0] == "Z" || fields[0] == "X", err
}

// kill ends the process with SIGKILL and waits until the kernel has ended it. For
// the init of a pid namespace that is after everything in the namespace has ended.
// A process that is gone already is no error.
func (p procID) kill(ctx context.Context) error {
	if !p.alive() {
		return nil
	}
	fd, err := unix.PidfdOpen(p.Pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return &fault.Error{Op: "open process", On: strconv.Itoa(p.Pid), Err: err}
	}
	defer unix.Close(fd)
	if !p.alive() { // the pid may have been reused between the two looks
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return &fault.Error{Op: "end process", On: strconv.Itoa(p.Pid), Err: err}
	}
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 100)
		if n > 0 {
			return nil
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return &fault.Error{Op: "wait for process", On: strconv.Itoa(p.Pid), Err: err}
		}
		if ctx.Err() != nil {
			return &fault.Error{Op: "wait for process", On: strconv.Itoa(p.Pid), Err: ctx.Err(), Fix: "run down again"}
		}
	}
}

// initsOf finds the inits whose command line names a node below dir. Processes
// that end while the table is read are passed over.
func initsOf(dir string) ([]procID, error) {
	var found []procID
	err := eachProcess(func(pid int) {
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil {
			return
		}
		argv := strings.Split(string(raw), "\x00")
		if len(argv) < 2 || (argv[0] != hookInit && argv[0] != hookBoot) || !strings.HasPrefix(argv[1], dir+"/") {
			return
		}
		if p, err := processOf(pid); err == nil {
			found = append(found, p)
		}
	})
	return found, err
}

// eachProcess calls visit with every pid of /proc.
func eachProcess(visit func(pid int)) error {
	entries, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if pid, err := strconv.Atoi(filepath.Base(entry)); err == nil {
			visit(pid)
		}
	}
	return nil
}
