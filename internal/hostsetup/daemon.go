package hostsetup

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/internal/fault"
)

// defaultConfigFile is what dockerd reads unless it is told otherwise.
const defaultConfigFile = "/etc/docker/daemon.json"

// daemon is a running dockerd.
type daemon struct {
	pid    int
	args   []string // of its command line, without the program
	path   string   // its PATH
	config string   // its configuration file, absolute; the file may not exist
}

// findDaemon finds the dockerd that keeps its data in dataRoot, among the
// processes of this process's pid namespace. A file with a pid would not do:
// its place can be configured, and several daemons may run on one host. The
// databases that each holds open in its data root tell them apart.
func findDaemon(dataRoot string) (daemon, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return daemon{}, &fault.Error{Op: "find dockerd", Err: err}
	}
	own, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return daemon{}, &fault.Error{Op: "find dockerd", Err: err, Fix: "run with the host's pid namespace"}
	}
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || !strings.HasPrefix(readProc(pid, "comm"), "dockerd") {
			continue
		}
		if ns, err := os.Readlink(procPath(pid, "ns/pid")); err != nil || ns != own {
			continue
		}
		if holdsOpen(pid, dataRoot) {
			return describeDaemon(pid)
		}
	}
	return daemon{}, fault.New("find dockerd", "", "no process of that name has its files open in "+dataRoot,
		"run this on the machine that dockerd runs on, not in a container of it")
}

// holdsOpen tells whether the process has a file open below dir.
func holdsOpen(pid int, dir string) bool {
	fds, err := os.ReadDir(procPath(pid, "fd"))
	if err != nil {
		return false
	}
	for _, fd := range fds {
		file, err := os.Readlink(procPath(pid, "fd/"+fd.Name()))
		if err == nil && strings.HasPrefix(file, strings.TrimRight(dir, "/")+"/") {
			return true
		}
	}
	return false
}

func describeDaemon(pid int) (daemon, error) {
	cmdline, err := os.ReadFile(procPath(pid, "cmdline"))
	if err != nil {
		return daemon{}, &fault.Error{Op: "read dockerd's command line", Err: err, Fix: "try again"}
	}
	environ, err := os.ReadFile(procPath(pid, "environ"))
	if err != nil {
		return daemon{}, &fault.Error{Op: "read dockerd's environment", Err: err, Fix: "try again"}
	}
	d := daemon{pid: pid, args: split(cmdline), path: variable(split(environ), "PATH"), config: defaultConfigFile}
	if len(d.args) > 0 {
		d.args = d.args[1:]
	}
	if file, given := flagValue(d.args, "config-file"); given {
		d.config = file
	}
	if !filepath.IsAbs(d.config) {
		cwd, err := os.Readlink(procPath(pid, "cwd"))
		if err != nil {
			return daemon{}, &fault.Error{Op: "find dockerd's configuration file", On: d.config, Err: err}
		}
		d.config = filepath.Join(cwd, d.config)
	}
	// A link to a file kept elsewhere stays a link.
	if file, err := filepath.EvalSymlinks(d.config); err == nil {
		d.config = file
	}
	return d, nil
}

// conflict names the first flag of dockerd's command line that forbids setting
// the same thing in the file: dockerd refuses to load a file that sets what a
// flag has set already.
func (d daemon) conflict(makeDefault bool) error {
	names := []string{"add-runtime"}
	if makeDefault {
		names = append(names, "default-runtime")
	}
	for _, name := range names {
		if value, given := flagValue(d.args, name); given {
			return fault.New("configure dockerd", "", fmt.Sprintf("its command line has --%s %s, and it refuses a file that sets the same", name, value),
				"move that flag into "+d.config+" and restart dockerd")
		}
	}
	return nil
}

// reload makes dockerd read its configuration file again.
func (d daemon) reload() error {
	if err := unix.Kill(d.pid, unix.SIGHUP); err != nil {
		return &fault.Error{Op: "reload dockerd", On: strconv.Itoa(d.pid), Err: err, Fix: "try again"}
	}
	return nil
}

// lookup finds a program as dockerd would: a name in its PATH, a path as it is.
func (d daemon) lookup(program string) (string, error) {
	if filepath.IsAbs(program) {
		return program, executable(program)
	}
	// PATH first, then where distributions put runc, for a daemon whose
	// containerd was started with a longer PATH than its own.
	dirs := append(filepath.SplitList(d.path), "/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
	for _, dir := range dirs {
		file := filepath.Join(dir, program)
		if filepath.IsAbs(file) && executable(file) == nil {
			return file, nil
		}
	}
	return "", fmt.Errorf("%s is not in dockerd's PATH (%s)", program, d.path)
}

func executable(file string) error {
	info, err := os.Stat(file)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() || info.Mode()&0o111 == 0 {
		return &fs.PathError{Op: "execute", Path: file, Err: fs.ErrPermission}
	}
	return nil
}

// flagValue finds --name in a command line, in both of pflag's spellings. The
// last one counts.
func flagValue(args []string, name string) (value string, given bool) {
	for i, arg := range args {
		if arg == "--" {
			break
		}
		if v, ok := strings.CutPrefix(arg, "--"+name+"="); ok {
			value, given = v, true
		}
		if arg == "--"+name && i+1 < len(args) {
			value, given = args[i+1], true
		}
	}
	return value, given
}

// variable finds a name in an environment.
func variable(environ []string, name string) string {
	i := slices.IndexFunc(environ, func(s string) bool { return strings.HasPrefix(s, name+"=") })
	if i < 0 {
		return ""
	}
	return environ[i][len(name)+1:]
}

// split cuts the kernel's form of a list of strings.
func split(raw []byte) []string {
	raw = bytes.TrimSuffix(raw, []byte{0})
	if len(raw) == 0 {
		return nil
	}
	return strings.Split(string(raw), "\x00")
}

func procPath(pid int, file string) string { return fmt.Sprintf("/proc/%d/%s", pid, file) }

func readProc(pid int, file string) string {
	raw, err := os.ReadFile(procPath(pid, file))
	if err != nil {
		return "" // the process has gone
	}
	return strings.TrimSpace(string(raw))
}

// readConfig gives the configuration file's text, nil if there is no file.
func (d daemon) readConfig() ([]byte, error) {
	info, err := os.Stat(d.config)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var text []byte
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("not a regular file")
	}
	if err == nil {
		text, err = os.ReadFile(d.config)
	}
	if err != nil {
		return nil, &fault.Error{Op: "read dockerd's configuration", On: d.config, Err: err,
			Fix: "start dockerd with a --config-file that is a file"}
	}
	if text == nil {
		text = []byte{}
	}
	return text, nil
}
