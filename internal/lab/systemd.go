package lab

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/internal/fault"
)

const (
	systemdProgram = "/lib/systemd/systemd"
	// systemdSocket is where systemd takes requests of root, as runc's for a scope.
	systemdSocket = "/run/systemd/private"
	// systemdTarget is the whole of what systemd boots: it asks for nothing, so that no
	// unit of the machine's starts, udev least of all.
	systemdTarget = "lab.target"
)

// asService starts a program as one of systemd's: in a cgroup of its own below
// /system.slice, beside the containers. It may make cgroups there, as Docker's units
// may.
var asService = []string{"/usr/bin/systemd-run", "--scope", "--quiet", "--collect", "--slice=system.slice", "--property=Delegate=yes", "--"}

// visible are the hierarchies that a host has, each where the machine has it. With
// systemd there is one, whose controllers are those that version 1 leaves to it.
func (s bootSpec) visible() []hierarchy {
	if s.Systemd {
		return []hierarchy{{Mount: cgroupRoot, V2: true}}
	}
	return s.Cgroups
}

func prepareSystemd(spec bootSpec, root string) error {
	if !spec.Systemd {
		return nil
	}
	if err := shieldMachine(root); err != nil {
		return err
	}
	// They look for what a machine has, and what they find nobody asks for.
	for _, kind := range []string{"system-generators", "system-environment-generators"} {
		if err := mount("tmpfs", filepath.Join(root, filepath.Dir(systemdProgram), kind), "tmpfs", unix.MS_RDONLY, "mode=755"); err != nil {
			return err
		}
	}
	return writeTarget(root)
}

// shieldMachine keeps from systemd what it would set for the whole machine.
func shieldMachine(root string) error {
	const limits = "proc/sys/fs" // file-max and nr_open, which it raises
	at := filepath.Join(root, limits)
	if err := mount(at, at, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	if err := mount("", at, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		return err
	}
	console := filepath.Join(root, "dev/console")
	if _, err := os.Lstat(console); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return mount(filepath.Join(root, "dev/null"), console, "", unix.MS_BIND, "")
}

// writeTarget gives systemd what to boot.
func writeTarget(root string) error {
	path := filepath.Join(root, "run/systemd/system", systemdTarget)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, []byte("[Unit]\nDescription=Host of a lab\nDefaultDependencies=no\n"), 0o644)
}

// becomeSystemd leaves process 1 to systemd. What an init does else, a process of the
// node goes on with.
func becomeSystemd(args []string, control *os.File) error {
	server := &exec.Cmd{
		Path: "/proc/self/exe", Args: append([]string{hookServe}, args...), Env: os.Environ(), Dir: "/",
		Stdout: os.Stdout, Stderr: os.Stderr,
		ExtraFiles: []*os.File{os.NewFile(fdRelease, "release"), os.NewFile(fdReady, "ready"), control},
	}
	err := server.Start()
	if err == nil {
		// It takes arguments that it does not know without a word, and by these Down
		// recognises the init.
		argv := append(append([]string{hookBoot}, args...), "--system", "--unit="+systemdTarget, "--show-status=no")
		err = unix.Exec(systemdProgram, argv, append(os.Environ(), "container="+cgroupTop))
	}
	return reportReady(&fault.Error{Op: "run", On: systemdProgram, Err: err, Fix: "install the package systemd"})
}

// runServe is an init's second stage beside systemd.
func runServe(args []string) error {
	if len(args) != 2 || os.Getppid() != 1 {
		return fault.New("serve", "", "wrong arguments", "use particle-lab up")
	}
	control := inherit()
	if err := awaitSystemd(); err != nil {
		return reportReady(err)
	}
	services := newServices(shareInside)
	services.prefix = asService
	return services.run(args[1], control, endNamespace)
}

func awaitSystemd() error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute) // where all is emulated
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		conn, err := net.Dial("unix", systemdSocket)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return &fault.Error{Op: "wait for systemd", On: systemdSocket, Err: err, Fix: "look into the host's init.log"}
		}
	}
}

// endNamespace ends everything in this pid namespace, process 1 included, which no
// signal from inside can. In the machine's own it would turn the machine off.
func endNamespace() {
	const machines = 0xEFFFFFFC // PROC_PID_INIT_INO
	var st unix.Stat_t
	if unix.Stat("/proc/self/ns/pid", &st) == nil && st.Ino != machines {
		_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	}
}
