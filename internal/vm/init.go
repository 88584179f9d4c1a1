package vm

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/internal/fault"
)

// scratch is a directory in memory, which programs find as TMPDIR: file systems
// over 9p have no sockets, and overlays cannot be stacked at will.
const scratch = "/var/tmp"

// Hostname is what the machine is called, by which a program knows that it may do there
// what it must not do elsewhere.
const Hostname = "particle-vm"

// statusExit precedes the program's exit status in what init says on its port.
// Anything else is why there is none.
const statusExit = "exit "

// MaybeInit does not return where the program is the first process of a machine
// that Run has booted.
func MaybeInit() {
	if os.Getpid() != 1 {
		return
	}
	raw, err := os.ReadFile(jobFile)
	if err != nil {
		return
	}
	var j job
	text := ""
	if err := json.Unmarshal(raw, &j); err != nil {
		text = err.Error()
	} else if text, err = j.do(); err != nil {
		text = err.Error()
	}
	// The console tells too: there may be no port yet.
	if !strings.HasPrefix(text, statusExit) {
		fmt.Println("init:", text)
	}
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

// do makes the machine ready, runs the program and says how it ended.
func (j job) do() (status string, err error) {
	if err := mountAll("", []mount{{"proc", "/proc", "proc", 0, ""}, {"sys", "/sys", "sysfs", 0, ""}, {"dev", "/dev", "devtmpfs", 0, ""}}); err != nil {
		return "", err
	}
	for _, file := range j.Modules {
		if err := loadModule(file); err != nil {
			return "", err
		}
	}
	var ports [3]int
	for i, name := range []string{portStatus, portStdout, portStderr} {
		if ports[i], err = openPort(name); err != nil {
			return "", err
		}
	}
	defer func() {
		text := status
		if err != nil {
			text = err.Error()
		}
		_, _ = unix.Write(ports[0], []byte(text))
	}()
	if err := j.enterRoot(); err != nil {
		return "", err
	}
	return j.run(ports[1], ports[2])
}

// loadModule loads a module as it lies on disk, compressed or not.
func loadModule(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	flags := 0
	if !strings.HasSuffix(file, ".ko") {
		const compressed = 4 // MODULE_INIT_COMPRESSED_FILE
		flags = compressed
	}
	if err := unix.FinitModule(int(f.Fd()), "", flags); err != nil {
		return &fault.Error{Op: "load module", On: file, Err: err}
	}
	return nil
}

// openPort opens a virtio port by its name, which comes some time after its
// driver was loaded.
func openPort(name string) (int, error) {
	const class = "/sys/class/virtio-ports"
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); <-tick.C {
		entries, _ := os.ReadDir(class)
		for _, e := range entries {
			raw, _ := os.ReadFile(filepath.Join(class, e.Name(), "name"))
			if strings.TrimSpace(string(raw)) != name {
				continue
			}
			fd, err := unix.Open("/dev/"+e.Name(), unix.O_WRONLY|unix.O_CLOEXEC, 0)
			if errors.Is(err, unix.ENOENT) {
				break // not yet
			}
			return fd, os.NewSyscallError("open "+e.Name(), err)
		}
	}
	return 0, fault.New("open port", name, "there is none", "")
}

type mount struct {
	source, target, kind string
	flags                uintptr
	data                 string
}

func mountAll(root string, mounts []mount) error {
	for _, m := range mounts {
		target := root + m.target
		if err := os.MkdirAll(target, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.source, target, m.kind, m.flags, m.data); err != nil {
			return &fault.Error{Op: "mount", On: target, Err: err}
		}
	}
	return nil
}

// enterRoot makes the machine's files this one's, and leaves the initramfs.
func (j job) enterRoot() error {
	const root = "/root"
	err := mountAll("", []mount{
		// Nobody else changes what is cached: it is read-only here, and seldom there.
		{"machine", "/machine", "9p", unix.MS_RDONLY, "trans=virtio,version=9p2000.L,msize=512000,cache=loose"},
		{"memory", "/memory", "tmpfs", 0, ""},
	})
	if err != nil {
		return err
	}
	for _, dir := range []string{"/memory/upper", "/memory/work"} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	mounts := []mount{
		{"root", "", "overlay", 0, "lowerdir=/machine,upperdir=/memory/upper,workdir=/memory/work"},
		{"proc", "/proc", "proc", 0, ""},
		{"sys", "/sys", "sysfs", 0, ""},
		{"bpf", "/sys/fs/bpf", "bpf", 0, ""},
		{"cgroup2", "/sys/fs/cgroup", "cgroup2", 0, ""},
		{"dev", "/dev", "devtmpfs", 0, ""},
		{"shm", "/dev/shm", "tmpfs", 0, "mode=1777"},
		{"devpts", "/dev/pts", "devpts", 0, "ptmxmode=0666"},
		{"run", "/run", "tmpfs", 0, "mode=755"},
		{"scratch", scratch, "tmpfs", 0, "mode=1777"},
		{root + j.Tree, "/lib/modules", "", unix.MS_BIND, ""},
	}
	for _, dir := range j.Scratch {
		mounts = append(mounts, mount{"scratch", dir, "tmpfs", 0, "mode=755"})
	}
	if err := mountAll(root, mounts); err != nil {
		return err
	}
	// Under the new root they would be in every mount namespace, for nobody to see, and
	// whoever has rights there could mount them anew without what hides parts of them.
	for _, old := range []string{"/proc", "/sys", "/dev"} {
		if err := unix.Unmount(old, unix.MNT_DETACH); err != nil {
			return os.NewSyscallError("unmount "+old, err)
		}
	}
	if err := os.Chdir(root); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return os.NewSyscallError("mount", err)
	}
	if err := unix.Chroot("."); err != nil {
		return os.NewSyscallError("chroot", err)
	}
	return unix.Sethostname([]byte(Hostname))
}

// run runs the program and reaps what it leaves to the first process meanwhile.
func (j job) run(stdout, stderr int) (string, error) {
	if err := raiseLoopback(); err != nil {
		return "", err
	}
	null, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", os.NewSyscallError("open /dev/null", err)
	}
	pid, err := syscall.ForkExec(j.Argv[0], j.Argv, &syscall.ProcAttr{
		Dir: j.Dir, Env: j.Env, Files: []uintptr{uintptr(null), uintptr(stdout), uintptr(stderr)},
		Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return "", &fault.Error{Op: "run", On: j.Argv[0], Err: err}
	}
	for {
		var status unix.WaitStatus
		switch ended, err := unix.Wait4(-1, &status, 0, nil); {
		case errors.Is(err, unix.EINTR), err == nil && ended != pid:
		case err != nil:
			return "", os.NewSyscallError("wait4", err)
		case status.Signaled():
			return fmt.Sprint(statusExit, 128+int(status.Signal())), nil
		case status.Exited():
			return fmt.Sprint(statusExit, status.ExitStatus()), nil
		}
	}
}

func raiseLoopback() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_UP)
	return os.NewSyscallError("set lo up", unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request))
}
