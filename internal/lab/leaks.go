package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/internal/fault"
)

// Held is what a lab held at a moment: give it to [Leaks] after Down. The zero Held
// is nothing.
type Held struct {
	namespaces []string // as the kernel names them: "net:[4026532201]"
	at         uint64   // clock ticks since boot, as in procID
}

// Held notes every namespace that the lab's nodes hold.
func (l *Lab) Held() (Held, error) {
	own, err := namespacesOf("self")
	if err != nil {
		return Held{}, err
	}
	var held Held
	for _, n := range l.nodes() {
		names, err := namespacesOf(fmt.Sprint(n.Pid()))
		if err != nil {
			return Held{}, err
		}
		for _, ns := range names {
			if !slices.Contains(own, ns) { // the user and time namespaces are the machine's
				held.namespaces = append(held.namespaces, ns)
			}
		}
	}
	held.at, err = ticks()
	return held, err
}

// ticks is the time since boot in the unit of a process's start time, which the
// kernel fixes at 100 per second for user space (USER_HZ).
func ticks() (uint64, error) {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return 0, &fault.Error{Op: "read clock", Err: err}
	}
	return uint64(now.Nano()) / 10_000_000, nil
}

func (l *Lab) nodes() []*Node {
	all := []*Node{l.internet}
	for _, h := range l.hosts {
		all = append(all, h.Node)
	}
	return all
}

func namespacesOf(pid string) ([]string, error) {
	links, err := os.ReadDir(filepath.Join("/proc", pid, "ns"))
	if err != nil {
		return nil, &fault.Error{Op: "list namespaces", On: pid, Err: err}
	}
	var all []string
	for _, l := range links {
		if ns, err := os.Readlink(filepath.Join("/proc", pid, "ns", l.Name())); err == nil && !slices.Contains(all, ns) {
			all = append(all, ns)
		}
	}
	return all, nil
}

// Leaks lists what the machine still holds of a lab: processes, mounts in any
// mount namespace, links, cgroups, its directory, and whatever keeps one of the
// namespaces alive that the lab held. After Down the list is empty; of a running lab
// it lists the lab itself. The lines are for people.
func Leaks(name string, held ...Held) ([]string, error) {
	dir := labDir(name)
	var found []string
	if _, err := os.Lstat(dir); err == nil {
		found = append(found, "directory "+dir)
	}
	hs, err := hierarchies()
	if err != nil {
		return nil, err
	}
	for _, h := range hs {
		path := filepath.Join(h.Mount, cgroupTop, name)
		if _, err := os.Lstat(path); err == nil {
			found = append(found, "cgroup "+path)
		}
	}
	// The underlay's links have no business in the machine's namespace.
	if _, err := netlink.LinkByName(underlayBridge); err == nil {
		found = append(found, "link "+underlayBridge)
	}
	seen := map[string]bool{} // mount namespaces looked at
	err = eachProcess(func(pid int) {
		for _, line := range leaksOfProcess(pid, name, held, seen) {
			if !slices.Contains(found, line) {
				found = append(found, line)
			}
		}
	})
	return found, err
}

// leaksOfProcess looks at one process. It may end meanwhile: what cannot be read
// is not there.
func leaksOfProcess(pid int, name string, held []Held, seen map[string]bool) []string {
	if _, dead, err := readStat(pid); err != nil || dead {
		return nil // a zombie holds nothing any more, and is its parent's to collect
	}
	proc := fmt.Sprintf("/proc/%d", pid)
	command, _ := os.ReadFile(proc + "/cmdline")
	who := fmt.Sprintf("process %d (%s)", pid, strings.TrimSpace(strings.ReplaceAll(string(command), "\x00", " ")))
	var found []string
	argv := strings.Split(string(command), "\x00")
	hooked := len(argv) > 1 && (argv[0] == hookInit || argv[0] == hookBoot) && strings.HasPrefix(argv[1], labDir(name)+"/")
	groups, _ := os.ReadFile(proc + "/cgroup")
	inLab := strings.Contains(string(groups), "/"+cgroupTop+"/")
	own := strings.Contains(string(groups), "/"+cgroupTop+"/"+name+"/")
	if hooked || own {
		found = append(found, who)
	}
	if inLab && !own {
		// The kernel gives a dead namespace's number to the next one made, and
		// what lives in another lab cannot hold ours.
		return found
	}
	namespaces := namespacesBefore(pid, held)
	for _, pattern := range []string{"/ns/*", "/task/*/ns/*", "/fd/*"} {
		links, _ := filepath.Glob(proc + pattern)
		for _, link := range links {
			if target, err := os.Readlink(link); err == nil && slices.Contains(namespaces, target) {
				found = append(found, fmt.Sprintf("namespace %s held by %s", target, who))
			}
		}
	}
	mountNS, err := os.Readlink(proc + "/ns/mnt")
	if err != nil || seen[mountNS] {
		return found
	}
	seen[mountNS] = true
	mounts, _ := readMounts(proc + "/mountinfo")
	for _, m := range mounts {
		ours := strings.Contains(m.Super, "upperdir="+labDir(name)+"/") || strings.HasPrefix(m.Point, labDir(name)+"/") ||
			strings.HasPrefix(m.Root, labDir(name)+"/")
		if ours || slices.Contains(namespaces, m.Root) {
			found = append(found, fmt.Sprintf("mount %s of %s in %s", m.Point, m.Root, mountNS))
		}
	}
	return found
}

// namespacesBefore are the namespaces noted when the process already ran. The kernel
// gives a namespace's number to another one once it is free, so what a younger
// process has under that number is its own.
func namespacesBefore(pid int, held []Held) []string {
	start, _, err := readStat(pid)
	var all []string
	for _, h := range held {
		if err == nil && start <= h.at {
			all = append(all, h.namespaces...)
		}
	}
	return all
}
