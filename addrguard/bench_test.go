package addrguard_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/internal/netnstest"
	"github.com/particle-net/particle/topology"
)

// batch is so many system calls, one after another, and what goes before and after
// without being measured.
type batch struct {
	before func(n int) error
	step   func(i int) error
	after  func() error
}

// work is what programs do with sockets.
var work = map[string]func(addr [4]byte) (*batch, error){
	"socket":       func([4]byte) (*batch, error) { return makeSockets(udp), nil },
	"socket-tcp":   func([4]byte) (*batch, error) { return makeSockets(tcp), nil },
	"bind-udp":     func([4]byte) (*batch, error) { return onSockets(udp, bindAny), nil },
	"bind-tcp":     func([4]byte) (*batch, error) { return onSockets(tcp, bindAny), nil },
	"bind-tcp-own": func(addr [4]byte) (*batch, error) { return onSockets(tcp, bindTo(addr)), nil },
	"bind-udp-own": func(addr [4]byte) (*batch, error) { return onSockets(udp, bindTo(addr)), nil },
	"connect-udp":  func(addr [4]byte) (*batch, error) { return onSockets(udp, connectTo(addr)), nil },
	"getsockname":  func([4]byte) (*batch, error) { return onSockets(udp, askName), nil },
	"pair-udp":     pairs,
	"tcp":          connections,
}

func bindAny(fd int) error { return unix.Bind(fd, &unix.SockaddrInet4{}) }

func bindTo(addr [4]byte) func(int) error {
	return func(fd int) error { return unix.Bind(fd, &unix.SockaddrInet4{Addr: addr}) }
}

func askName(fd int) error {
	_, err := unix.Getsockname(fd)
	return err
}

func connectTo(addr [4]byte) func(int) error {
	return func(fd int) error { return unix.Connect(fd, &unix.SockaddrInet4{Port: 9, Addr: addr}) }
}

// onSockets does something with each of many fresh sockets.
func onSockets(kind int, do func(fd int) error) *batch {
	b := makeSockets(kind)
	var fds []int
	return &batch{
		before: func(n int) error {
			fds = fds[:0]
			for range n {
				fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
				if err != nil {
					return err
				}
				fds = append(fds, fd)
			}
			return nil
		},
		step:  func(i int) error { return do(fds[i]) },
		after: func() error { return b.closeAll(fds) },
	}
}

func (*batch) closeAll(fds []int) error {
	var errs []error
	for _, fd := range fds {
		errs = append(errs, unix.Close(fd))
	}
	return errors.Join(errs...)
}

// makeSockets includes closing them.
func makeSockets(kind int) *batch {
	return &batch{step: func(int) error {
		fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		return unix.Close(fd)
	}}
}

// pairs are datagrams to a socket of its own.
func pairs(addr [4]byte) (*batch, error) {
	from, err := unix.Socket(unix.AF_INET, udp|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	to, err := unix.Socket(unix.AF_INET, udp|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	buffer := make([]byte, 16)
	return &batch{step: func(int) error {
		if err := unix.Sendto(from, buffer, 0, &unix.SockaddrInet4{Port: 7777, Addr: addr}); err != nil {
			return err
		}
		_, _, err := unix.Recvfrom(to, buffer, 0)
		return err
	}}, unix.Bind(to, &unix.SockaddrInet4{Port: 7777})
}

// connections are to a server of its own: each is opened, used once and closed.
func connections(addr [4]byte) (*batch, error) {
	server, err := unix.Socket(unix.AF_INET, tcp|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Bind(server, &unix.SockaddrInet4{Port: 7778}); err != nil {
		return nil, err
	}
	if err := unix.Listen(server, 16); err != nil {
		return nil, err
	}
	buffer := make([]byte, 16)
	return &batch{step: func(int) error {
		client, err := unix.Socket(unix.AF_INET, tcp|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(client)
		if err := unix.Connect(client, &unix.SockaddrInet4{Port: 7778, Addr: addr}); err != nil {
			return err
		}
		conn, _, err := unix.Accept4(server, unix.SOCK_CLOEXEC)
		if err != nil {
			return err
		}
		defer unix.Close(conn)
		if _, err := unix.Write(client, buffer); err != nil {
			return err
		}
		_, err = unix.Read(conn, buffer)
		return err
	}}, nil
}

// batches are kept from call to call.
var batches = map[string]*batch{}

// bench does Value steps of Text with the address Addr, and tells how many
// nanoseconds they took.
func bench(c Call, a *Answer) (err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	b := batches[c.Text]
	if b == nil {
		sa, err := sockaddr(c.Addr)
		if err != nil {
			return err
		}
		if b, err = work[c.Text](sa.(*unix.SockaddrInet4).Addr); err != nil {
			return err
		}
		batches[c.Text] = b
	}
	if b.before != nil {
		if err := b.before(c.Value); err != nil {
			return err
		}
	}
	start := time.Now()
	for i := range c.Value {
		if err := b.step(i); err != nil {
			return err
		}
	}
	a.N = int(time.Since(start))
	if b.after != nil {
		return b.after()
	}
	return nil
}

// BenchmarkSockets compares system calls in four places: a container that is guarded,
// one of another network below the same anchor, a service of the host in the slice that
// containers of systemd's are in, and a process outside.
// Of many short batches, taken in turn, the fastest is least disturbed; the median
// is of the ratios of batches that followed each other.
func BenchmarkSockets(b *testing.B) {
	h := newHost(b)
	network := h.network(1, v4)
	guarded := h.box(network, 1, v4)
	other, host, outside := tenant(b, v4), tenant(b, v4), tenant(b, v4)
	for _, ns := range []*netnstest.Namespace{other, host, outside, h.spaces[network]} {
		// Connections that wait for stray packets would slow those that follow.
		ns.Run("sysctl", "-q", "-w", "net.ipv4.tcp_max_tw_buckets=0")
	}
	h.cgroup(h.top + "/other")
	h.cgroup(h.top + "-outside")
	slice, service := h.slice()
	h.cgroup(slice + "/docker-2.scope")
	h.admitted(slice+"/docker-2.scope", identityOf(network, 2, v4))
	places := []*box{h.start(h.top+"-outside", outside), h.start(h.top+"/other", other), h.start(service, host), guarded}
	for _, kind := range []string{"socket", "socket-tcp", "bind-udp", "bind-tcp", "bind-udp-own", "bind-tcp-own", "connect-udp", "getsockname", "pair-udp", "tcp"} {
		b.Run(kind, func(b *testing.B) {
			spent := spentAt(b, places, kind)
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(slices.Min(spent[0]), "ns/outside")
			for n, name := range []string{"other", "service", "guarded"} {
				b.ReportMetric(slices.Min(spent[n+1])/slices.Min(spent[0]), name+"/outside")
				b.ReportMetric(medianRatio(spent[n+1], spent[0]), name+"/outside-p50")
			}
		})
	}
}

// spentAt is what a call took at each of the places, ns, in batches that took turns.
func spentAt(b *testing.B, places []*box, kind string) [][]float64 {
	const batch = 100
	spent := make([][]float64, len(places))
	for range b.N {
		for range 300 {
			for n, place := range places {
				a := place.must(Call{Name: "bench", Text: kind, Addr: "10.77.0.1:0", Value: batch})
				spent[n] = append(spent[n], float64(a.N)/batch)
			}
		}
	}
	return spent
}

func medianRatio(a, b []float64) float64 {
	ratios := make([]float64, len(a))
	for i := range a {
		ratios[i] = a[i] / b[i]
	}
	slices.Sort(ratios)
	return ratios[len(ratios)/2]
}

func BenchmarkAdmit(b *testing.B) {
	h := newHost(b)
	network := h.network(1, v4|v6)
	const many = 1000
	for n := range many {
		h.cgroup(fmt.Sprintf("%s/%d", h.top, n))
	}
	ids := make([]topology.CgroupID, many)
	h.box(network, many+1, v4) // attaches the programs
	b.ResetTimer()
	for n := range b.N {
		if n >= many && n%many == 0 {
			b.StopTimer()
			for _, id := range ids {
				if err := h.Expel(id); err != nil {
					b.Fatal(err)
				}
			}
			b.StartTimer()
		}
		var err error
		if ids[n%many], err = h.Admit(b.Context(), filepath.Join(h.top, fmt.Sprint(n%many)), identityOf(network, n%many+1, v4|v6)); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkFirstAdmit is of what the programs are attached for: the first container of
// a cgroup at the top, and each of a slice.
func BenchmarkFirstAdmit(b *testing.B) {
	for name, pattern := range map[string]string{"top": "%s-%d", "slice": "%s.slice/docker-%d.scope"} {
		b.Run(name, func(b *testing.B) {
			h := newHost(b)
			network := h.network(1, v4)
			h.slice()
			for n := range b.N {
				b.StopTimer()
				cgroup := fmt.Sprintf(pattern, h.top, n)
				h.cgroup(cgroup)
				b.StartTimer()
				if _, err := h.Admit(b.Context(), cgroup, identityOf(network, n%60000+1, v4)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkExpel is the end of containers in a slice: each clears what hung on one that
// is gone.
func BenchmarkExpel(b *testing.B) {
	h := newHost(b)
	network := h.network(1, v4)
	slice, _ := h.slice()
	for n := range b.N {
		b.StopTimer()
		cgroup := fmt.Sprintf("%s/docker-%d.scope", slice, n)
		if err := os.Mkdir(h.opts.Cgroups+cgroup, 0o755); err != nil {
			b.Fatal(err)
		}
		id, err := h.Admit(b.Context(), cgroup, identityOf(network, n%60000+1, v4))
		if err == nil {
			err = os.Remove(h.opts.Cgroups + cgroup)
		}
		if err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		if err := h.Expel(id); err != nil {
			b.Fatal(err)
		}
	}
}
