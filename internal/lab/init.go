package lab

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/internal/fault"
)

// File descriptors an init gets from its creator.
const (
	fdRelease = 3 // read: a line once the creator has recorded the init; EOF when it died first
	fdReady   = 4 // write: "ok" or the text of an error
	fdControl = 5 // listening unix socket
)

// Words the creator releases an init with.
const (
	wordKeep = "keep" // live until taken down
	wordTie  = "tie"  // end when the creator ends
)

// runInit is an init's first stage: it waits until it is recorded and placed in
// its cgroups. A cgroup namespace is rooted where its creator stands and belongs to
// one thread, so the process runs itself again on that thread: exec makes the
// calling thread the whole process.
func runInit(args []string) error {
	if len(args) != 1 {
		return fault.New("start init", "", "wrong arguments", "use particle-lab up")
	}
	spec, err := readBootSpec(args[0])
	if err != nil {
		return reportReady(err)
	}
	word, err := readWord(os.NewFile(fdRelease, "release"))
	if err != nil {
		return &fault.Error{Op: "wait for release", Err: err}
	}
	runtime.LockOSThread()
	if spec.Isolated {
		if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
			return reportReady(&fault.Error{Op: "unshare cgroup namespace", Err: err})
		}
	}
	// The machine's /proc is still mounted, so this link resolves by the outer pid.
	err = unix.Exec("/proc/self/exe", []string{hookBoot, args[0], word}, os.Environ())
	return reportReady(&fault.Error{Op: "run init", Err: err})
}

// readWord reads one line without reading past it.
func readWord(r io.Reader) (string, error) {
	var word []byte
	one := make([]byte, 1)
	for {
		n, err := r.Read(one)
		if n == 1 && one[0] == '\n' {
			return string(word), nil
		}
		if err != nil {
			return "", err
		}
		word = append(word, one[:n]...)
	}
}

// reportReady tells the creator how it went and returns the error it was given.
func reportReady(err error) error {
	text := "ok"
	if err != nil {
		text = err.Error()
	}
	f := os.NewFile(fdReady, "ready")
	fmt.Fprintln(f, text)
	f.Close()
	return err
}

// runBoot is an init's second stage: it makes the node and then serves it until
// it is killed.
func runBoot(args []string) error {
	if len(args) != 2 {
		return fault.New("boot", "", "wrong arguments", "use particle-lab up")
	}
	spec, err := readBootSpec(args[0])
	if err != nil {
		return reportReady(err)
	}
	control := inherit()
	logs := filepath.Join(filepath.Dir(args[0]), dirShare)
	if spec.Isolated {
		logs = shareInside
	}
	if err := makeNode(spec, filepath.Dir(args[0])); err != nil {
		return reportReady(err)
	}
	if spec.Systemd {
		return becomeSystemd(args, control)
	}
	return newServices(logs).run(args[1], control, func() { os.Exit(0) }) // with process 1 ends the node
}

// inherit takes over what the creator handed down, and returns the control socket.
func inherit() (control *os.File) {
	for _, fd := range []int{fdRelease, fdReady, fdControl} {
		unix.CloseOnExec(fd)
	}
	return os.NewFile(fdControl, "control")
}

// makeNode turns the new namespaces into the node the spec describes.
func makeNode(spec bootSpec, dir string) error {
	if err := unix.Sethostname([]byte(spec.Hostname)); err != nil {
		return &fault.Error{Op: "set host name", On: spec.Hostname, Err: err}
	}
	if err := mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	var err error
	if spec.Isolated {
		err = makeRoot(spec, dir)
	} else {
		err = mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	}
	if err != nil {
		return err
	}
	return setNetworkDefaults()
}

// setNetworkDefaults makes the node an end system whose addresses work at once.
// A new network namespace may inherit the machine's settings
// (net.core.devconf_inherit_init_net), so each is set whatever it was.
func setNetworkDefaults() error {
	for _, s := range [][2]string{
		{"net/ipv4/ip_forward", "0"},
		{"net/ipv4/conf/default/rp_filter", "0"},
		{"net/ipv4/conf/all/rp_filter", "0"},
		{"net/ipv6/conf/default/disable_ipv6", "0"},
		{"net/ipv6/conf/all/disable_ipv6", "0"},
		{"net/ipv6/conf/all/forwarding", "0"},
		// Duplicate address detection would keep a new address unusable for a second.
		{"net/ipv6/conf/default/accept_dad", "0"},
		{"net/ipv6/conf/default/accept_ra", "0"},
	} {
		if err := os.WriteFile(filepath.Join("/proc/sys", s[0]), []byte(s[1]), 0o644); err != nil {
			return &fault.Error{Op: "set", On: s[0], Err: err, Fix: "use a kernel with IPv6"}
		}
	}
	return nil
}
