package holder_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/internal/holder"
)

// Wildcards become the own address, loopback is private, and what is another's is
// refused, for each family and kind.
func TestBind(t *testing.T) {
	b := newBed(t)
	one, two := b.container(1), b.container(2)
	for _, x := range []*box{one, two} {
		x.all("socket a tcp4", "bind a 0.0.0.0:80", "listen a",
			"socket b tcp6", "only6 b", "bind b [::]:80", "listen b",
			"socket c tcp6", "bind c [::]:81", "listen c",
			"socket d udp4", "bind d 127.0.0.1:53",
			"socket e udp6", "bind e [::1]:53",
			"socket f mptcp4", "bind f 0.0.0.0:82", "listen f",
			"socket g ping4", "bind g 0.0.0.0:0",
			"socket h tcp6", "bind h [::ffff:127.0.0.2]:83")
	}
	two.all("name a => 10.77.0.2:80", "name b => [fd00:77::2]:80", "name c => [::ffff:10.77.0.2]:81", "name d => 127.0.2.1:53",
		"name e => [fdb9:1f1f:eea::2]:53", "name f => 10.77.0.2:82", "name h => [::ffff:127.0.2.2]:83",
		"socket z tcp4", "bind z 10.77.0.1:90 => EADDRNOTAVAIL", "bind z 8.8.8.8:90 => EADDRNOTAVAIL", "bind z 127.0.1.1:90 => EADDRNOTAVAIL",
		"bind z 127.0.0.11:90 => EADDRNOTAVAIL", "bind z [::]:90 => EAFNOSUPPORT",
		"bind z 10.77.0.2:80 => EADDRINUSE", "bind z 10.77.0.2:90", "bind z 10.77.0.2:91 => EINVAL",
		"socket y udp6", "bind y [::ffff:10.77.0.1]:90 => EADDRNOTAVAIL", "bind y [fd00:77::1]:90 => EADDRNOTAVAIL", "bind y [fdb9:1f1f:eea::1]:90 => EADDRNOTAVAIL",
		"bind y [fd00:77::2]:90",
		"socket m udp4", "bind m 224.0.0.251:5353", "name m => 10.77.0.2:5353", "socket n udp4", "bind n 255.255.255.255:67", "name n => 10.77.0.2:67",
		"socket o udp6", "only6 o", "bind o [ff15::fb]:5353", "name o => [fd00:77::2]:5353",
		"socket p udp6", "bind p [::ffff:224.0.0.251]:1900", "name p => [::ffff:10.77.0.2]:1900",
		"socket x netlink", "bind x @what => EINVAL")
	if denials, err := holder.Count(b.dir); err != nil || denials[id(2)].Binds != 7 || len(denials) != 2 {
		t.Errorf("counted %+v, %v", denials, err)
	}
}

// Sources are the own address, whether a program binds or not; loopback leads to the
// own server, on the wildcard too, and to no neighbour's.
func TestConnect(t *testing.T) {
	b := newBed(t)
	one, two := b.container(1), b.container(2)
	one.all("socket wild tcp4", "bind wild 0.0.0.0:80", "listen wild", "socket lo tcp4", "bind lo 127.0.0.1:81", "listen lo",
		"socket wild6 tcp6", "only6 wild6", "bind wild6 [::]:80", "listen wild6", "socket dual tcp6", "bind dual [::]:82", "listen dual",
		"socket never tcp4", "listen never")
	two.all("socket a tcp4", "connect a 10.77.0.1:80",
		"socket b tcp6", "connect b [::ffff:10.77.0.1]:80",
		"socket c tcp6", "connect c [fd00:77::1]:80",
		"socket d tcp4", "connect d 127.0.0.1:80 => ECONNREFUSED", "connect d 127.0.1.1:81 => ENETUNREACH", "connect d 10.77.0.1:81 => ECONNREFUSED",
		"socket e tcp6", "connect e [::1]:80 => ECONNREFUSED", "connect e [fdb9:1f1f:eea::1]:80 => ENETUNREACH")
	for _, peer := range []string{"wild p", "wild q", "wild6 r"} {
		if got := one.do("accept " + peer); !strings.HasPrefix(got, "10.77.0.2:") && !strings.HasPrefix(got, "[fd00:77::2]:") {
			t.Errorf("accept %s: %s", peer, got)
		}
	}
	one.all("socket a tcp4", "connect a 127.0.0.1:80", "socket b tcp4", "connect b 127.0.0.1:81", "socket c tcp6", "connect c [::1]:80",
		"socket d tcp6", "connect d [::1]:82", "socket e tcp4", "connect e 0.0.0.0:81",
		"peer a => 10.77.0.1:80", "peer b => 127.0.1.1:81", "peer c => [fd00:77::1]:80", "peer d => [::ffff:10.77.0.1]:82", "peer e => 127.0.1.1:81")
	// "A server on 127.0.0.1 and one on the wildcard with the same port: clients of
	// 127.0.0.1 find the one that was bound last."
	one.all("socket w tcp4", "bind w 0.0.0.0:84", "listen w", "socket x tcp4", "bind x 127.0.0.1:84", "listen x",
		"socket y tcp4", "bind y 127.0.0.1:85", "listen y", "socket z tcp4", "bind z 0.0.0.0:85", "listen z",
		"socket f tcp4", "connect f 127.0.0.1:84", "peer f => 127.0.1.1:84", "socket g tcp4", "connect g 127.0.0.1:85", "peer g => 10.77.0.1:85")
	// "A server for both families on the wildcard has IPv4 alone; at ::1 it is found if
	// the client's socket is for both", as d was.
	two.all("socket h tcp4", "connect h 10.77.0.1:82", "socket i tcp6", "connect i [fd00:77::1]:82 => ECONNREFUSED")
	one.all("socket h tcp6", "only6 h", "connect h [::1]:82 => ENETUNREACH")
	// IPv6 for a socket of IPv4 is for the kernel to refuse.
	two.all("socket f tcp4", "connect f [fd00:77::1]:80 => EAFNOSUPPORT", "connect f [::1]:80 => EAFNOSUPPORT",
		"socket g udp4", "connect g [2001:db8::1]:80 => EAFNOSUPPORT", "send g hello [2001:db8::1]:80 => EAFNOSUPPORT", "send g hello [::1]:80 => EAFNOSUPPORT")
	if name := one.do("name never"); !strings.HasPrefix(name, "10.77.0.1:") {
		t.Errorf("a listener that was never bound is at %s", name)
	}
}

func TestDatagrams(t *testing.T) {
	b := newBed(t)
	one, two := b.container(1), b.container(2)
	one.all("socket s udp4", "bind s 0.0.0.0:53", "socket l udp4", "bind l 127.0.0.1:54", "socket six udp6", "only6 six", "bind six [::]:55")
	two.all("socket a udp4", "send a hello 10.77.0.1:53", "socket b udp6", "send b mapped [::ffff:10.77.0.1]:53",
		"socket c udp6", "send c six [fd00:77::1]:55", "socket d udp4", "send d no 127.0.1.1:54 => ENETUNREACH")
	for _, want := range [][2]string{{"receive s", "hello 10.77.0.2:"}, {"receive s", "mapped 10.77.0.2:"}, {"receive six", "six [fd00:77::2]:"}} {
		if got := one.do(want[0]); !strings.HasPrefix(got, want[1]) {
			t.Errorf("%s: %s, want %s", want[0], got, want[1])
		}
	}
	one.all("socket a udp4", "send a self 127.0.0.1:54", "send a wild 127.0.0.1:53", "socket c udp4", "connect c 127.0.0.1:54", "peer c => 127.0.1.1:54", "send c again 127.0.0.1:54")
	for _, want := range [][2]string{{"receive l", "self 10.77.0.1:"}, {"receive s", "wild 10.77.0.1:"}} {
		if got := one.do(want[0]); !strings.HasPrefix(got, want[1]) {
			t.Errorf("%s: %s, want %s", want[0], got, want[1])
		}
	}
	// The answer finds its way.
	from, _ := strings.CutPrefix(one.do("receive l"), "again ")
	one.all("send l answer "+from, "receive c => answer 127.0.1.1:54")
	// What the kernel binds by itself is reached at the own address alone.
	two.all("socket e udp4", "send e x 10.77.0.1:53")
	if name := two.do("name e"); !strings.HasPrefix(name, "10.77.0.2:") {
		t.Errorf("a socket that sent without a bind is at %s", name)
	}
}

// A client calls before it has a filter, and may take its time then: nobody waits for
// it, and it is served.
func TestSlowClient(t *testing.T) {
	b := newBed(t)
	b.container(1)
	slow, err := holder.Connect(b.dir, "/nonexistent", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	if held, err := holder.Count(b.dir); err != nil || len(held) != 1 {
		t.Fatalf("counted %v, %v", held, err)
	}
	listener, other, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	defer other.Close() // which lets the listener go
	disturb(t, b.dir)
	if err := slow.Hold(id(2), true, int(listener.Fd())); err != nil {
		t.Error(err)
	}
	if held, err := holder.Count(b.dir); err != nil || len(held) != 2 {
		t.Errorf("counted %v, %v", held, err)
	}
}

// More calls of a container at once than are answered at once wait for their turn, and
// none of them fails: here each waits for the server's queue.
func TestCrowd(t *testing.T) {
	newBed(t).container(1).all("crowd 127.0.0.1:80")
}

// crowd connects to a server that accepts when most of its clients wait.
func crowd(to string) error {
	const clients = 100
	server, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err == nil {
		err = errors.Join(unix.Bind(server, address(to)), unix.Listen(server, 8))
	}
	if err != nil {
		return err
	}
	results := make(chan error, clients)
	for range clients {
		go func() {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
			if err == nil {
				err = unix.Connect(fd, address(to))
			}
			results <- err
		}()
	}
	connecting := func() int {
		table, _ := os.ReadFile("/proc/thread-self/net/tcp")
		return strings.Count(string(table), " 02 ") // SYN_SENT
	}
	for len(results) < 9 || connecting() < 55 && len(results) < clients {
		runtime.Gosched()
	}
	go func() {
		for {
			if _, _, err := unix.Accept(server); err != nil {
				return
			}
		}
	}()
	for range clients {
		err = errors.Join(err, <-results)
	}
	return err
}

// A host may have thousands of containers; the receipt that lists them is long.
func TestThousands(t *testing.T) {
	b := newBed(t)
	b.container(1)
	listener, other, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	defer other.Close() // which lets the listeners go
	const many = 5000
	for n := 2; n <= many; n++ {
		line, err := holder.Connect(b.dir, "/nonexistent", nil)
		if err == nil {
			err = line.Hold(id(n), true, int(listener.Fd()))
			line.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if held, err := holder.Count(b.dir); err != nil || len(held) != many {
		t.Errorf("counted %d, %v", len(held), err)
	}
}

// disturb sends each thread of the holder the signal by which Go takes processors from
// its goroutines.
func disturb(t *testing.T, dir string) {
	t.Helper()
	pid, err := holder.Pid(dir)
	if err != nil {
		t.Fatal(err)
	}
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, thread := range threads {
		tid, err := strconv.Atoi(thread.Name())
		if err == nil {
			err = unix.Tgkill(pid, tid, unix.SIGURG)
		}
		if err != nil && err != unix.ESRCH { // ended meanwhile
			t.Fatal(err)
		}
	}
}

// Before an address is claimed nothing can be bound, and docker exec's processes are
// the container's.
func TestProcesses(t *testing.T) {
	b := newBed(t)
	x := b.process(3, "fresh")
	x.all("socket a tcp4", "bind a 0.0.0.0:80 => EPERM", "connect a 10.77.0.3:80 => EPERM", "socket n netlink", "socket u unix",
		"bind u @early", "connect u @none => ECONNREFUSED")
	if err := holder.Tell(b.dir, id(3), b.identity(3)); err != nil {
		t.Fatal(err)
	}
	x.all("bind a 0.0.0.0:80", "listen a")
	y := b.process(3, "exec")
	y.all("socket a tcp4", "connect a 127.0.0.1:80", "peer a => 10.77.0.3:80", "socket b tcp4", "bind b 0.0.0.0:80 => EADDRINUSE")
	if held, err := holder.Count(b.dir); err != nil || len(held) != 1 {
		t.Errorf("held: %v, %v", held, err)
	}
	if err := holder.End(b.dir); err == nil {
		t.Error("a holder with a container ends")
	}
	// One that joins its network is it, too.
	if err := holder.Tell(b.dir, id(9), b.identity(3)); err != nil {
		t.Fatal(err)
	}
	b.process(9, "exec").all("socket a tcp4", "connect a 127.0.0.1:80", "peer a => 10.77.0.3:80")
	x.end()
	y.all("socket c tcp4", "bind c 0.0.0.0:81")
	// The same id again, with another address.
	if err := holder.Tell(b.dir, id(3), b.identity(4)); err != nil {
		t.Fatal(err)
	}
	z := b.process(3, "fresh")
	z.all("socket a tcp4", "bind a 0.0.0.0:81", "name a => 10.77.0.4:81")
	y.end()
	z.all("socket b tcp4", "bind b 0.0.0.0:82", "name b => 10.77.0.4:82")
}

// "Sockets of files are made by the process of the host", and are the caller's all the
// same: below its directory, with its mode and its rights.
func TestUnixSockets(t *testing.T) {
	b := newBed(t)
	x := b.container(1)
	dir := filepath.Join(b.dir, "home")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	x.all("chdir "+dir, "umask 027", "socket a unix", "bind a some-socket-with-a-name", "listen a", "socket b unix", "connect b "+dir+"/some-socket-with-a-name",
		"socket c unix", "bind c some-socket-with-a-name => EADDRINUSE", "bind c no/such/directory/here => ENOENT", "bind c @abstract-name-of-some-length",
		"socket d unix", "bind d @abstract-name-of-some-length => EADDRINUSE")
	// Names of the namespace are shared, and lead to no neighbour.
	two := b.container(2)
	two.all("socket a unix", "connect a @abstract-name-of-some-length => ECONNREFUSED", "bind a @abstract-name-of-some-length => EADDRINUSE",
		"socket b unix", "bind b @n", "listen b", "connect a @n")
	x.all("listen c", "socket f unix", "connect f @abstract-name-of-some-length", "socket g unix", "connect g @n => ECONNREFUSED")
	info, err := os.Lstat(filepath.Join(dir, "some-socket-with-a-name"))
	if err != nil || info.Mode() != os.ModeSocket|0o750 {
		t.Errorf("the socket's file: %v, %v", info.Mode(), err)
	}
	x.all("user 65534", "socket e unix", "bind e another-socket-of-nobody => EACCES")
}

// "If the process of the host dies, those calls fail with ENOSYS": nothing hangs and
// nothing passes, and a new one serves those that come later.
func TestHolderDies(t *testing.T) {
	b := newBed(t)
	x := b.container(1)
	x.all("socket a tcp4", "bind a 0.0.0.0:80", "listen a")
	b.kill()
	x.all("socket b tcp4", "bind b 0.0.0.0:81 => ENOSYS", "bind b 10.77.0.2:81 => ENOSYS", "connect b 10.77.0.1:80 => ENOSYS", "listen b => ENOSYS")
	y := b.process(1, "exec")
	y.all("socket a tcp4", "bind a 10.77.0.2:81 => EADDRNOTAVAIL", "bind a 0.0.0.0:81", "name a => 10.77.0.1:81",
		"socket b tcp4", "connect b 10.77.0.1:80")
}

// "While the process of the host is stopped, those calls wait": they are answered
// as ever when it goes on, and a program that waits can be killed.
func TestHolderIsStopped(t *testing.T) {
	b := newBed(t)
	x, y := b.container(1), b.container(2)
	x.all("socket a tcp4", "socket b tcp4")
	y.all("socket a tcp4")
	b.signal(syscall.SIGSTOP)
	defer b.signal(syscall.SIGCONT)
	x.waits("bind a 10.77.0.2:80")
	y.waits("bind a 0.0.0.0:80")
	if err := y.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := y.cmd.Wait(); err == nil || y.cmd.ProcessState.Success() {
		t.Errorf("a program that waits was killed, and ended with %v", err)
	}
	b.signal(syscall.SIGCONT)
	if got := x.hear(); got != "EADDRNOTAVAIL" {
		t.Errorf("a bind of a neighbour's address that waited: %s", got)
	}
	x.all("bind b 0.0.0.0:80", "name b => 10.77.0.1:80")
}

// waits gives an order, and returns when its call waits for an answer.
func (x *box) waits(order string) {
	x.t.Helper()
	if _, err := fmt.Fprintln(x.write, order); err != nil {
		x.t.Fatal(err)
	}
	call := fmt.Sprintf("%d ", unix.SYS_BIND)
	for deadline := time.Now().Add(time.Minute); ; {
		tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/syscall", x.cmd.Process.Pid))
		for _, path := range tasks {
			if text, err := os.ReadFile(path); err == nil && strings.HasPrefix(string(text), call) {
				return
			}
		}
		if time.Now().After(deadline) {
			x.t.Fatalf("%s does not wait", order)
		}
	}
}

func (b *bed) signal(s syscall.Signal) {
	b.t.Helper()
	pid, err := holder.Pid(b.dir)
	if err == nil {
		err = syscall.Kill(pid, s)
	}
	if err != nil {
		b.t.Fatal(err)
	}
}

// kill ends the holder as the kernel would for want of memory.
func (b *bed) kill() {
	b.t.Helper()
	b.signal(syscall.SIGKILL)
	for {
		if _, err := holder.Pid(b.dir); err != nil {
			return
		}
	}
}
