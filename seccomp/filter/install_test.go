package filter_test

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/particle-net/particle/seccomp/filter"
)

// childVariable makes the test binary a process that lives under filters, one for
// each letter: h for Harden, s for Supervise without anybody who answers; a p at the end
// has it probe.
const childVariable = "PARTICLE_FILTER_TEST"

func TestMain(m *testing.M) {
	kinds, ok := os.LookupEnv(childVariable)
	if !ok {
		os.Exit(m.Run())
	}
	for _, kind := range strings.TrimSuffix(kinds, "p") {
		k := filter.Harden
		if kind == 's' {
			k = filter.Supervise
		}
		fd, err := filter.Install(k)
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		switch {
		case fd < 0 || strings.HasSuffix(kinds, "ss"):
		case strings.HasSuffix(kinds, "p"): // it is to be there still after exec
			_, _, _ = syscall.RawSyscall(syscall.SYS_FCNTL, uintptr(fd), syscall.F_SETFD, 0)
		default:
			_ = syscall.Close(fd)
		}
	}
	// What is executed inherits the filters.
	if len(os.Args) > 1 {
		_ = os.Unsetenv(childVariable)
		last := kinds[strings.LastIndexAny(kinds, "hs")+1:]
		fmt.Println(syscall.Exec("/proc/self/exe", os.Args[:1], append(os.Environ(), childVariable+"="+last)))
		os.Exit(1)
	}
	if strings.HasSuffix(kinds, "p") {
		fmt.Println("probe:", filter.Probe())
		os.Exit(0)
	}
	try()
	os.Exit(0)
}

const afXDP, afCAN = 44, 29

func try() {
	for _, family := range []int{syscall.AF_UNIX, syscall.AF_INET, syscall.AF_INET6, syscall.AF_NETLINK, afXDP, afCAN} {
		kind := syscall.SOCK_DGRAM
		if family == afXDP {
			kind = syscall.SOCK_RAW
		}
		fd, err := syscall.Socket(family, kind, 0)
		fmt.Printf("socket %d: %v\n", family, err)
		if family == syscall.AF_INET {
			err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
			fmt.Printf("bind: %v\n", err)
		}
	}
}

// child runs the tries in a process of its own.
func child(t *testing.T, kinds string, args ...string) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, args...)
	cmd.Env = append(os.Environ(), childVariable+"="+kinds)
	out, _ := cmd.CombinedOutput() // what failed is in it
	return string(out)
}

func TestInstall(t *testing.T) {
	lines := func(xdp, can, bind string) string {
		return "socket 1: <nil>\nsocket 2: <nil>\nbind: " + bind + "\nsocket 10: <nil>\nsocket 16: <nil>\nsocket 44: " + xdp +
			"\nsocket 29: " + can + "\n"
	}
	const denied = "address family not supported by protocol"
	_, can := syscall.Socket(afCAN, syscall.SOCK_DGRAM, 0) // some kernels have no such family
	for kinds, want := range map[string]string{
		"":  lines("<nil>", fmt.Sprint(can), "<nil>"), // the kernel has XDP, so it is the filter that denies it below
		"h": lines(denied, denied, "<nil>"),
		// Nobody answers, and nothing hangs or passes.
		"s": lines(denied, denied, "function not implemented"),
	} {
		if got := child(t, kinds); got != want {
			t.Errorf("filters %q:\n%swant\n%s", kinds, got, want)
		}
		if kinds != "" {
			if got := child(t, kinds, "again"); got != want {
				t.Errorf("filters %q, and exec:\n%swant\n%s", kinds, got, want)
			}
		}
	}
	// "A program in the container cannot install a seccomp filter with a listener."
	if got, want := child(t, "ss"), "device or resource busy"; !strings.Contains(got, want) {
		t.Errorf("a second one with somebody to answer: %s, want %s", got, want)
	}
}

// Whoever lives under a filter with a listener cannot have another, and is told so.
func TestProbe(t *testing.T) {
	for kinds, want := range map[string]string{
		"hp": "probe: <nil>",
		"sp": "probe: answer system calls: another process answers those of the Docker daemon already: device or resource busy; run the daemon where none does",
	} {
		if got := child(t, kinds, "again"); !strings.HasPrefix(got, want) {
			t.Errorf("filters %q: %s, want %s", kinds, got, want)
		}
	}
	if err := filter.Probe(); err != nil {
		t.Error(err)
	}
	if err := filter.Probe(); err != nil {
		t.Error("the first one left something:", err)
	}
}
