package lab_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/particle-net/particle/internal/lab"
)

// A host lives through what real hosts live through.
func TestHostLife(t *testing.T) {
	for name, o := range map[string]lab.Options{
		"debian": {}, "current": {Engine: lab.EngineCurrent}, "systemd": {Systemd: true},
	} {
		t.Run(name, func(t *testing.T) {
			o.Name, o.LiveRestore = "t-life-"+name, true
			limits := machineLimits(t)
			l := boot(t, o)
			h := l.Hosts()[0]
			if o.Systemd {
				containersAreSystemds(t, h)
				if now := machineLimits(t); now != limits {
					t.Errorf("the machine's limits were %q and are %q", limits, now)
				}
			}
			if err := lab.LoadImage(t.Context(), h); err != nil {
				t.Fatal(err)
			}
			containerReachesInternet(t, l, h)
			containerSurvivesDockerd(t, h)
			diskSurvivesReboot(t, h)
			replacementHasAnEmptyDisk(t, h)
		})
	}
}

// machineLimits are what systemd raises where it starts.
func machineLimits(t *testing.T) string {
	t.Helper()
	var all []string
	for _, name := range []string{"file-max", "nr_open"} {
		value, err := os.ReadFile("/proc/sys/fs/" + name)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, strings.TrimSpace(string(value)))
	}
	return strings.Join(all, " ")
}

func containersAreSystemds(t *testing.T, h *lab.Host) {
	t.Helper()
	if driver := on(t, h.Node, "docker", "info", "-f", "{{.CgroupDriver}} {{.CgroupVersion}}"); driver != "systemd 2" {
		t.Errorf("cgroups of containers are made by %s", driver)
	}
	if out := on(t, h.Node, "systemctl", "list-units", "--no-legend", "--plain", "--type=service"); out != "" {
		t.Errorf("services of the machine's run: %s", out)
	}
}

func containerReachesInternet(t *testing.T, l *lab.Lab, h *lab.Host) {
	t.Helper()
	webServer(t, l.Internet(), lab.InternetAddr4+":8080", "beyond the gateway")
	out := on(t, h.Node, "docker", "run", "--rm", lab.TestImage, "wget", "-qO-", "http://"+lab.InternetAddr4+":8080/")
	if out != "beyond the gateway" {
		t.Fatalf("the container read %q", out)
	}
}

func containerSurvivesDockerd(t *testing.T, h *lab.Host) {
	t.Helper()
	on(t, h.Node, "docker", "run", "-d", "--name", "steady", lab.TestImage, "probe", "sleep")
	process := func() string {
		return on(t, h.Node, "docker", "inspect", "-f", "{{.State.Status}} {{.State.Pid}}", "steady")
	}
	before := process()
	if !strings.HasPrefix(before, "running ") {
		t.Fatalf("the container is %s", before)
	}
	for _, end := range []func() error{func() error { return h.KillDockerd(t.Context()) }, func() error { return h.StopDockerd(t.Context()) }} {
		if err := end(); err != nil {
			t.Fatal(err)
		}
		if _, err := h.Exec(t.Context(), "docker", "version"); err == nil {
			t.Fatal("dockerd answers after its end")
		}
		if err := h.StartDockerd(t.Context()); err != nil {
			t.Fatal(err)
		}
		if after := process(); after != before {
			t.Fatalf("the container was %q and is %q", before, after)
		}
	}
}

func diskSurvivesReboot(t *testing.T, h *lab.Host) {
	t.Helper()
	on(t, h.Node, "sh", "-c", "echo disk | tee /etc/mark >/etc/docker/mark; echo memory >/run/mark; echo scratch >/tmp/mark")
	first := h.Pid()
	if err := h.Reboot(t.Context()); err != nil {
		t.Fatal(err)
	}
	if h.Pid() == first {
		t.Fatal("the init is the one from before the reboot")
	}
	if out := on(t, h.Node, "sh", "-c", "cat /etc/mark /etc/docker/mark; cat /run/mark /tmp/mark 2>/dev/null; true"); out != "disk\ndisk" {
		t.Fatalf("after the reboot there is %q, want only what was on disk", out)
	}
	if out := on(t, h.Node, "docker", "inspect", "-f", "{{.State.Running}}", "steady"); out != "false" {
		t.Fatalf("running: %s, after a power cut", out)
	}
	on(t, h.Node, "docker", "start", "steady")
	on(t, h.Node, "docker", "rm", "-f", "steady")
}

func replacementHasAnEmptyDisk(t *testing.T, h *lab.Host) {
	t.Helper()
	on(t, h.Node, "sh", "-c", "touch /etc/mark /etc/docker/mark; mkdir /var/lib/docker/mark")
	if err := h.Replace(t.Context()); err != nil {
		t.Fatal(err)
	}
	if out := on(t, h.Node, "sh", "-c", "ls -d /etc/mark /etc/docker/mark /var/lib/docker/mark 2>/dev/null; cat /etc/hostname"); out != h.Name() {
		t.Fatalf("another machine in the host's place has %q", out)
	}
	on(t, h.Node, "docker", "version")
	if out := on(t, h.Node, "docker", "images", "-q"); out != "" {
		t.Fatalf("it has images: %q", out)
	}
}

// What a host has of its own is neither the machine's nor another host's.
func TestHostsHaveTheirOwn(t *testing.T) {
	a := boot(t, lab.Options{Name: "t-own-a", Hosts: 2, DaemonJSON: []byte(`{"labels":["where=here"]}`)})
	b, err := lab.Up(t.Context(), lab.Options{Name: "t-own-b", Replace: true, Tied: true}) // the same addresses and names
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = lab.Down(context.Background(), b.Name()) })
	h1, h2, other := a.Hosts()[0], a.Hosts()[1], b.Hosts()[0]

	if out := on(t, h1.Node, "docker", "info", "-f", "{{.Labels}}"); out != "[where=here]" {
		t.Errorf("labels are %s", out)
	}
	if out := on(t, other.Node, "docker", "info", "-f", "{{.Labels}}"); out != "[]" {
		t.Errorf("labels of the other lab's host are %s", out)
	}
	for _, path := range []string{"/etc/mark", "/run/mark", "/tmp/mark", "/var/lib/docker/mark", "/dev/shm/mark", "/sys/fs/cgroup/" + firstCgroup(t, h1) + "mark"} {
		on(t, h1.Node, "mkdir", path)
		for where, root := range map[string]string{"the machine": "/", "h2": h2.Root(), "the other lab": other.Root()} {
			if _, err := os.Lstat(filepath.Join(root, path)); err == nil {
				t.Errorf("%s of h1 is seen on %s", path, where)
			}
		}
	}
	if out := on(t, h2.Node, "cat", "/proc/sys/kernel/hostname", "/etc/hostname"); out != "h2\nh2" {
		t.Errorf("h2 calls itself %q", out)
	}
	webServer(t, h2.Node, "198.51.100.2:80", "from h2")
	if out := on(t, h1.Node, "/bin/busybox", "wget", "-qO-", "http://198.51.100.2/"); out != "from h2" {
		t.Errorf("h1 reads %q", out)
	}
	takeDown(t, b)
	on(t, h1.Node, "docker", "version") // one lab's end is not another's
}

// firstCgroup is "" on a pure v2 machine and the directory of a hierarchy elsewhere.
func firstCgroup(t *testing.T, h *lab.Host) string {
	t.Helper()
	if _, err := os.Stat(filepath.Join(h.Root(), "sys/fs/cgroup/cgroup.procs")); err == nil {
		return ""
	}
	return "memory/"
}

// A cut host is silent and its link stays up, as behind a broken switch.
func TestCutAndHeal(t *testing.T) {
	l := boot(t, lab.Options{Name: "t-cut", Hosts: 2})
	h1, h2 := l.Hosts()[0], l.Hosts()[1]
	webServer(t, h2.Node, h2.Addr4().String()+":80", "from h2")
	get := []string{"/bin/busybox", "wget", "-qO-", "http://" + h2.Addr4().String() + "/"}
	if err := h2.Cut(); err != nil {
		t.Fatal(err)
	}
	if out, err := h1.Exec(t.Context(), append([]string{"timeout", "1"}, get...)...); err == nil {
		t.Fatalf("a cut host answers %q", out)
	}
	if out := on(t, h2.Node, "cat", "/sys/class/net/eth0/operstate"); out == "down" {
		t.Fatal("the cut host's link is down")
	}
	if err := h2.Heal(); err != nil {
		t.Fatal(err)
	}
	// h1 may remember for a moment that h2 did not answer its ARP requests.
	eventually(t, func() bool { out, err := h1.Exec(t.Context(), get...); return err == nil && out == "from h2" },
		func() string { return "the healed host does not answer" })
}

// Commands behave like commands of the machine.
func TestCommand(t *testing.T) {
	l := boot(t, lab.Options{Name: "t-command"})
	h := l.Hosts()[0]
	cmd := h.Command(t.Context(), "sh", "-c", `read line; echo "$GREETING $line"; exit 7`)
	cmd.Stdin = strings.NewReader("world\n")
	cmd.Env = append(cmd.Env, "GREETING=hello")
	out, err := cmd.Output()
	if cmd.ProcessState.ExitCode() != 7 || string(out) != "hello world\n" {
		t.Errorf("got %q, %v", out, err)
	}
	cmd = h.Command(t.Context(), "sh", "-c", `trap 'exit 3' TERM; echo ready; while :; do sleep 1; done`)
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fscanln(pipe, new(string)); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // its exit code says what it returned
	if cmd.ProcessState.ExitCode() != 3 {
		t.Errorf("after SIGTERM the exit code is %d, want the trap's", cmd.ProcessState.ExitCode())
	}
	if _, err := h.Exec(t.Context(), "no-such-command"); err == nil || !strings.Contains(err.Error(), "no-such-command") {
		t.Errorf("got %v", err)
	}
	for line := range strings.Lines(on(t, h.Node, "cat", "/proc/self/cgroup")) {
		if !strings.HasSuffix(strings.TrimSpace(line), ":/init") {
			t.Errorf("a command on a host is in cgroup %s", line)
		}
	}
	if out, err := l.Internet().Exec(t.Context(), "pwd"); err != nil || out != mustGetwd(t) {
		t.Errorf("the internet's working directory is %q, %v", out, err)
	}
}

func mustGetwd(t *testing.T) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// A host that begins with the disk of another has what was on it, and is another
// machine all the same.
func TestHostWithTheDiskOfAnother(t *testing.T) {
	first := boot(t, lab.Options{Name: "t-disk-of"}).Hosts()[0]
	if err := lab.LoadImage(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	on(t, first.Node, "sh", "-c", `echo disk >/etc/mark; echo memory >/run/mark; echo '{"debug": true}' >/etc/docker/daemon.json`)
	id := on(t, first.Node, "docker", "info", "-f", "{{.ID}}")
	disk := filepath.Join(t.TempDir(), "disk")
	if err := first.SaveDisk(t.Context(), disk); err != nil {
		t.Fatal(err)
	}
	for _, h := range boot(t, lab.Options{Name: "t-disk-to", Hosts: 2, Disk: disk, LiveRestore: true}).Hosts() {
		if out := on(t, h.Node, "sh", "-c", "cat /etc/mark /run/mark 2>/dev/null; cat /etc/hostname"); out != "disk\n"+h.Name() {
			t.Errorf("%s has %q", h.Name(), out)
		}
		on(t, h.Node, "docker", "run", "--rm", lab.TestImage, "true")
		out := on(t, h.Node, "docker", "info", "-f", "{{.LiveRestoreEnabled}} {{.Debug}} {{.ID}}")
		if !strings.HasPrefix(out, "true true ") || strings.HasSuffix(out, id) {
			t.Errorf("the engine of %s is as %q; the first one was %s", h.Name(), out, id)
		}
		id = out[len("true true "):]
		replacementHasAnEmptyDisk(t, h)
	}
}
