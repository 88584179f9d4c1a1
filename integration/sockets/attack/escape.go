package attack

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/integration/sockets/sock"
)

// escapeCases leave the namespaces and cgroups that the container was given, into
// ones where the attacker is root, and use what that brings. Each does so in a
// child of the attacker: a user namespace is entered by a process of one thread
// (unshare(2)).
func escapeCases() []Case {
	const user = unix.CLONE_NEWUSER
	child := func(name string, flags uintptr) Case {
		return Case{"escape/" + name, func(a *attacker) verdict { return a.inside(name, flags) }}
	}
	return []Case{
		// Root of a new network namespace comes back to the old one.
		child("return", user|unix.CLONE_NEWNET),
		// A socket made before is used there.
		child("carry", user|unix.CLONE_NEWNET),
		// Root of a user namespace that is not the network namespace's owner.
		child("raw", user),
		child("address", user),
		child("transparent", user),
		// Deeper cgroups of its own, in a view of them that can be written.
		child("nest", user|unix.CLONE_NEWNS|unix.CLONE_NEWCGROUP),
		// A view of /proc that nothing hides.
		child("settings", user|unix.CLONE_NEWNS|unix.CLONE_NEWPID),
	}
}

// Descriptors that a child finds open.
const (
	fdNamespace = 3 // of the network
	fdCarried   = 4 // a UDP socket of it
)

// insideArgs tell the child what to do.
type insideArgs struct {
	Kind, Entry string
	Victim      netip.Addr
}

// inside runs a case in a child with namespaces of its own.
func (a *attacker) inside(kind string, flags uintptr) verdict {
	ns, err := os.Open("/proc/self/ns/net")
	if err != nil {
		return failed(bare(err))
	}
	defer ns.Close()
	fd, err := a.socket(udp4)
	if err != nil {
		return failed(err)
	}
	carried, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return failed(err)
	}
	file := os.NewFile(uintptr(carried), "carried")
	defer file.Close()
	args, err := json.Marshal(insideArgs{kind, a.entry, a.Victim.Four})
	if err != nil {
		return failed(err)
	}
	cmd := exec.Command("/proc/self/exe", "inside", string(args))
	cmd.ExtraFiles = []*os.File{ns, file}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags}
	if flags&unix.CLONE_NEWUSER != 0 {
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return verdict{err: bare(err), detail: strings.TrimSpace(errs.String())}
	}
	var r Result
	if err := json.Unmarshal(out, &r); err != nil {
		return failed(err)
	}
	v := verdict{success: r.Success, detail: r.Detail}
	if r.Errno != "" {
		v.detail = strings.TrimSpace(v.detail + " " + r.Errno)
	}
	return v
}

// Inside is the child of an attacker. It writes a Result to standard output.
func Inside(args string) error {
	var in insideArgs
	if err := json.Unmarshal([]byte(args), &in); err != nil {
		return err
	}
	// What is entered and moved is the thread.
	runtime.LockOSThread()
	v := in.try()
	return json.NewEncoder(os.Stdout).Encode(Result{Case: in.Kind, Success: v.success, Errno: sock.Errno(v.err), Detail: v.detail})
}

func (in insideArgs) try() verdict {
	switch in.Kind {
	case "return":
		if err := unix.Setns(fdNamespace, unix.CLONE_NEWNET); err != nil {
			return verdict{err: err, detail: "setns"}
		}
		return in.bind(-1)
	case "carry":
		return in.bind(fdCarried)
	case "raw":
		_, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
		return outcome(err)
	case "address":
		return unlessForbidden(tellNetlink(unix.NETLINK_ROUTE, unix.RTM_NEWADDR, make([]byte, 8)))
	case "transparent":
		return outcome(unix.SetsockoptInt(fdCarried, unix.SOL_IP, unix.IP_TRANSPARENT, 1))
	case "nest":
		leave, err := nest("/mnt", 24)
		defer leave()
		if err != nil {
			return verdict{err: bare(err), detail: err.Error()}
		}
		v := in.bind(-1)
		v.detail = "in a cgroup 24 levels deeper"
		return v
	case "root-cgroup", "victim-cgroup":
		return in.move(in.Kind == "root-cgroup")
	case "settings":
		if err := unix.Mount("proc", "/mnt", "proc", 0, ""); err != nil {
			return verdict{err: err, detail: "mount"}
		}
		return rewrite("/mnt/sys/net/ipv4/ip_nonlocal_bind")
	}
	return failed(unix.EINVAL)
}

// bind binds the victim's address to a socket, or to a new one.
func (in insideArgs) bind(fd int) verdict {
	k, err := sock.Open(in.Entry, patience)
	if err != nil {
		return failed(err)
	}
	defer k.Close()
	if fd < 0 {
		if fd, err = k.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0); err != nil {
			return failed(err)
		}
	}
	return outcome(k.Bind(fd, sock.In(in.Victim, 0)))
}

// nest mounts cgroup2 and moves the process into a chain of new cgroups; leave
// goes back and removes them.
func nest(dir string, depth int) (leave func(), err error) {
	made := []string{dir}
	leave = func() {
		_ = os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0) // the container's end does it, too
		for _, d := range slices.Backward(made[1:]) {
			_ = os.Remove(d)
		}
	}
	if err := unix.Mount("cgroup2", dir, "cgroup2", 0, ""); err != nil {
		return leave, fmt.Errorf("mount: %w", err)
	}
	for level := range depth {
		next := filepath.Join(made[level], "n"+strconv.Itoa(level))
		if err := os.Mkdir(next, 0o755); err != nil && !os.IsExist(err) {
			return leave, err
		}
		made = append(made, next)
	}
	return leave, os.WriteFile(filepath.Join(made[depth], "cgroup.procs"), []byte("0"), 0)
}
