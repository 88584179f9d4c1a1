package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/internal/fault"
)

// Options says what to run, and where.
type Options struct {
	Kernel  string        // the series of Debian's kernel: 6.1
	Memory  int           // MiB
	CPUs    int           //
	Timeout time.Duration // of the whole, boot included
	Accel   string        // kvm or tcg; "" for the faster one that works
	Scratch []string      // directories that are to be in memory, and empty
	Argv    []string      // the program and its arguments
	Stdout  io.Writer     // of the program
	Stderr  io.Writer     // of the program, and lines on what takes long
}

// Run boots a kernel, runs the program there with this process's environment and
// directory, and returns its exit status, as a shell would. The calling program
// must be one whose main calls MaybeInit.
func Run(ctx context.Context, o Options) (status int, err error) {
	if runtime.GOARCH != "amd64" {
		return 0, fault.New("boot", "Linux "+o.Kernel, "only amd64 can, this is "+runtime.GOARCH, "")
	}
	k, err := findKernel(ctx, o.Kernel, o.Stderr)
	if err != nil {
		return 0, err
	}
	initrd, err := o.initrd(k)
	if err != nil {
		return 0, err
	}
	defer initrd.Close()
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	var console tail
	var said tail
	m := machine{
		Options: o, kernel: k, initrd: initrd,
		ports: []port{{portStdout, o.Stdout}, {portStderr, o.Stderr}, {portStatus, &said}, {portConsole, &console}},
	}
	err = m.run(ctx)
	text := strings.TrimSpace(said.String())
	switch exit, ok := strings.CutPrefix(text, statusExit); {
	case ok:
		return strconv.Atoi(exit)
	case text != "":
		err = errors.New(text) // init says why
	case ctx.Err() != nil:
		err = fmt.Errorf("not done after %v", o.Timeout)
		if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
			err = ctx.Err()
		}
	case err == nil:
		err = errors.New("the kernel ended before the program")
	}
	return 0, &fault.Error{Op: "run under", On: "Linux " + k.release, Err: fmt.Errorf("%w\n--- console\n%s---", err, console.String())}
}

// initrd is the initramfs as a file that ends with its readers.
func (o Options) initrd(k kernel) (*os.File, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	dir, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	program, err := exec.LookPath(o.Argv[0])
	if err != nil {
		return nil, &fault.Error{Op: "run", On: o.Argv[0], Err: err}
	}
	archive, err := initramfs(k, self, job{
		Tree: k.modules(), Dir: dir, Scratch: o.Scratch,
		Argv: append([]string{program}, o.Argv[1:]...),
		Env:  append(os.Environ(), "TMPDIR="+scratch),
	})
	if err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate("initramfs", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	file := os.NewFile(uintptr(fd), "initramfs")
	_, err = file.Write(archive)
	return file, err
}

// port is a way out of the machine, by its name there.
type port struct {
	name string
	to   io.Writer
}

const (
	portStdout  = "stdout"
	portStderr  = "stderr"
	portStatus  = "status"
	portConsole = "console" // the kernel's, on the serial line
)

// machine is a virtual machine that is about to run.
type machine struct {
	Options
	kernel kernel
	initrd *os.File
	ports  []port
}

// run lasts until the machine has ended. It is killed when ctx ends, and ends
// with this process.
func (m machine) run(ctx context.Context) error {
	runtime.LockOSThread() // Pdeathsig is about the thread
	defer runtime.UnlockOSThread()
	files := []*os.File{m.initrd}
	cmd := exec.CommandContext(ctx, qemu)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var readers sync.WaitGroup
	for _, p := range m.ports {
		r, w, err := os.Pipe()
		if err != nil {
			return err
		}
		defer w.Close() // a second time is harmless
		files = append(files, w)
		readers.Go(func() {
			defer r.Close()
			_, _ = io.Copy(p.to, r)
		})
	}
	cmd.Args = m.args()
	cmd.ExtraFiles = files
	cmd.Stdout, cmd.Stderr = m.Stderr, m.Stderr
	err := cmd.Start()
	for _, w := range files[1:] {
		w.Close()
	}
	if err != nil {
		return &fault.Error{Op: "start", On: qemu, Err: err, Fix: "run make packages"}
	}
	err = cmd.Wait()
	readers.Wait()
	return err
}

const qemu = "qemu-system-x86_64"

// args is qemu's command line. Descriptors begin at 3: initramfs, then ports.
func (m machine) args() []string {
	const firstPort = 4
	args := []string{
		qemu, "-no-user-config", "-nodefaults", "-display", "none", "-no-reboot",
		"-machine", "q35", "-accel", m.accel(), "-cpu", "max",
		"-smp", strconv.Itoa(m.CPUs), "-m", strconv.Itoa(m.Memory),
		"-kernel", m.kernel.image(), "-initrd", "/proc/self/fd/3",
		"-append", "console=ttyS0 quiet panic=-1 mitigations=off rcupdate.rcu_expedited=1",
		"-fsdev", "local,id=machine,path=/,security_model=none,readonly=on,multidevs=remap",
		"-device", "virtio-9p-pci,fsdev=machine,mount_tag=machine",
		"-device", "virtio-serial-pci",
	}
	for i, p := range m.ports {
		args = append(args, "-chardev", fmt.Sprintf("file,id=%s,path=/proc/self/fd/%d", p.name, firstPort+i))
		if p.name == portConsole {
			args = append(args, "-serial", "chardev:"+p.name)
		} else {
			args = append(args, "-device", fmt.Sprintf("virtserialport,chardev=%s,name=%s", p.name, p.name))
		}
	}
	return args
}

// accel is what the machine runs on. There can be a /dev/kvm that makes machines
// which never run: processors that virtualize say so.
func (m machine) accel() string {
	if m.Accel != "" {
		return m.Accel
	}
	cpu, err := os.ReadFile("/proc/cpuinfo")
	if err != nil || !virtualizes(string(cpu)) || unix.Access("/dev/kvm", unix.R_OK|unix.W_OK) != nil {
		return "tcg"
	}
	return "kvm"
}

func virtualizes(cpuinfo string) bool {
	for line := range strings.Lines(cpuinfo) {
		if name, flags, _ := strings.Cut(line, ":"); strings.TrimSpace(name) == "flags" {
			flags = " " + strings.TrimSpace(flags) + " "
			return strings.Contains(flags, " vmx ") || strings.Contains(flags, " svm ")
		}
	}
	return false
}
