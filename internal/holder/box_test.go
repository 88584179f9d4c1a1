package holder_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/internal/holder"
	"github.com/particle-net/particle/internal/netnstest"
	"github.com/particle-net/particle/seccomp/filter"
	"github.com/particle-net/particle/topology"
)

// box is a process of a container: it lives under a filter and does what it is told.
type box struct {
	t     testing.TB
	cmd   *exec.Cmd
	write io.WriteCloser
	read  *bufio.Scanner
}

// bed is a tenant namespace, and a holder's directory.
type bed struct {
	t     testing.TB
	dir   string
	space *netnstest.Namespace
	path  string
}

func newBed(t testing.TB) *bed {
	t.Helper()
	b := &bed{t: t, dir: netnstest.RunDir(t), space: netnstest.New(t)}
	b.path = b.space.Path()
	for _, words := range [][]string{
		{"ip", "route", "add", "local", "10.77.0.0/16", "dev", "lo"}, {"ip", "-6", "route", "add", "local", "fd00:77::/64", "dev", "lo"},
		{"ip", "-6", "route", "add", "local", "fdb9:1f1f:eea::/96", "dev", "lo"},
		{"sysctl", "-qw", "net.ipv6.ip_nonlocal_bind=1"}, {"sysctl", "-qw", "net.ipv4.ping_group_range=0 100"},
	} {
		b.space.Run(words[0], words[1:]...)
	}
	t.Cleanup(b.end)
	return b
}

// end waits until the kernel has told the holder that the processes are gone.
func (b *bed) end() {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for range 5000 {
		held, err := holder.Count(b.dir)
		if err == nil && len(held) == 0 {
			err = holder.End(b.dir)
			if err == nil {
				return
			}
		}
		<-tick.C
	}
	b.t.Error("the holder keeps containers that are gone")
}

func id(n int) topology.ContainerID { return topology.ContainerID(fmt.Sprintf("%064x", n)) }

// identity is that of the container with a number.
func (b *bed) identity(n int) holder.Identity {
	return holder.Identity{
		Namespace: b.path,
		IPv4:      netip.AddrFrom4([4]byte{10, 77, 0, byte(n)}), IPv6: netip.MustParseAddr(fmt.Sprintf("fd00:77::%x", n)),
		Loopback4: netip.AddrFrom4([4]byte{127, 0, byte(n), 0}), Loopback6: netip.MustParseAddr(fmt.Sprintf("fdb9:1f1f:eea::%x", n)),
	}
}

// container starts the first process of one.
func (b *bed) container(n int) *box {
	b.t.Helper()
	x := b.process(n, "fresh")
	if err := holder.Tell(b.dir, id(n), b.identity(n)); err != nil {
		b.t.Fatal(err)
	}
	return x
}

// process starts one of a container; how is "fresh" for its first, "plain" for one
// without a filter.
func (b *bed) process(n int, how string) *box {
	b.t.Helper()
	self, err := os.Executable()
	if err != nil {
		b.t.Fatal(err)
	}
	x := &box{t: b.t, cmd: exec.Command(self, string(id(n)), how)}
	x.cmd.Env = append(os.Environ(), dirVariable+"="+b.dir)
	x.cmd.Stderr = os.Stderr
	x.write, err = x.cmd.StdinPipe()
	out, errOut := x.cmd.StdoutPipe()
	b.space.Do(func() { err = errors.Join(err, errOut, x.cmd.Start()) })
	if err != nil {
		b.t.Fatal(err)
	}
	x.read = bufio.NewScanner(out)
	b.t.Cleanup(x.end)
	if got := x.hear(); got != "ready" {
		b.t.Fatalf("container %d: %s", n, got)
	}
	return x
}

// end is the process's, and may be called twice.
func (x *box) end() {
	_ = x.write.Close()
	_ = x.cmd.Wait()
}

func (x *box) hear() string {
	x.t.Helper()
	if !x.read.Scan() {
		x.t.Fatalf("a process of a container ended: %v", x.read.Err())
	}
	return x.read.Text()
}

// do gives an order and returns the answer.
func (x *box) do(order string) string {
	x.t.Helper()
	if _, err := fmt.Fprintln(x.write, order); err != nil {
		x.t.Fatal(err)
	}
	return x.hear()
}

// all gives orders and compares the answers, "ok" if none is written behind "=>".
func (x *box) all(orders ...string) {
	x.t.Helper()
	for _, o := range orders {
		order, want, found := strings.Cut(o, " => ")
		if !found {
			want = "ok"
		}
		if got := x.do(order); got != want {
			x.t.Errorf("%s: %s, want %s", order, got, want)
		}
	}
}

// live is such a process.
func live(dir string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if os.Args[2] == "plain" {
		return work()
	}
	line, err := holder.Connect(dir, self, os.Environ())
	if err != nil {
		return err
	}
	listener, err := filter.Install(filter.Supervise)
	if err != nil {
		return err
	}
	if err := line.Hold(topology.ContainerID(os.Args[1]), os.Args[2] == "fresh", listener); err != nil {
		return err
	}
	return unix.Exec(self, []string{os.Args[0], handsCommand}, os.Environ()) // all threads have the filter then
}

// handsCommand is how a process works that has the filter.
const handsCommand = "hands"

func work() error {
	runtime.LockOSThread() // users are the thread's
	fmt.Println("ready")
	h := hands{fds: map[string]int{}}
	orders := bufio.NewScanner(os.Stdin)
	for orders.Scan() {
		answer, err := h.obey(strings.Fields(orders.Text()))
		if err != nil {
			answer = err.Error()
			if errno := unix.Errno(0); errors.As(err, &errno) {
				answer = unix.ErrnoName(errno)
			}
		}
		fmt.Println(answer)
	}
	return orders.Err()
}
