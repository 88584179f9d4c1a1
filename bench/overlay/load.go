package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/bench/rig"
)

// quantity is something measured, and whether more of it is better.
type quantity struct {
	Name string `json:"name"` // with its unit
	More bool   `json:"more_is_better"`
}

func quantities() (trips, median, tail, packets quantity) {
	return quantity{"round trips, 1000/s", true},
		quantity{"round trip p50, us", false}, quantity{"round trip p99, us", false}, quantity{"64 B datagrams, 1000/s", true}
}

type value struct {
	quantity
	value float64
}

// load is one way to use a connection between containers.
type load struct {
	name string
	run  func(w way, length time.Duration) ([]value, error)
}

func loads() []load {
	all := []load{stream("cubic"), {"round trips", pingPong}, {"datagrams", blast}}
	if available, err := os.ReadFile("/proc/sys/net/ipv4/tcp_available_congestion_control"); err == nil &&
		slices.Contains(strings.Fields(string(available)), "bbr") {
		all = append(all, stream("bbr"))
	}
	return all
}

// warmUp is how long a load runs before it counts.
const warmUp = 200 * time.Millisecond

// patience bounds what should take no time.
const patience = 5 * time.Second

// onCPU runs fn on a thread that has a CPU of its own, if there are two.
func onCPU(cpu int, fn func() error) error {
	return rig.OnThread(func() error {
		var set unix.CPUSet
		set.Set(cpu % runtime.NumCPU())
		if err := unix.SchedSetaffinity(0, &set); err != nil {
			return err
		}
		return fn()
	})
}

// pair runs a receiver and a sender, the one until the other has ended.
func pair(receive, send func() error) error {
	received := make(chan error, 1)
	go func() { received <- onCPU(0, receive) }()
	err := onCPU(1, send)
	return errors.Join(err, <-received)
}

// dial gives both ends of a TCP connection.
func dial(w way) (client, server *net.TCPConn, err error) {
	var l net.Listener
	err = w.do(1, func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(w.addrs[1], 0).String())
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	defer l.Close()
	var conn net.Conn
	err = w.do(0, func() (err error) {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: w.addrs[0].AsSlice()}, Timeout: patience}
		conn, err = d.Dial("tcp", l.Addr().String())
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	peer, err := l.Accept()
	if err != nil {
		_ = conn.Close()
		return nil, nil, err
	}
	return conn.(*net.TCPConn), peer.(*net.TCPConn), nil
}

// stream is the throughput of one connection with a congestion control. It is
// named, since machines differ in what they have by default, and it decides: bbr
// sends as fast as the delay that it measures lets it, not as fast as it can.
func stream(control string) load {
	q := quantity{"TCP by " + control + ", Gbit/s", true}
	return load{"throughput by " + control, func(w way, length time.Duration) ([]value, error) {
		client, server, err := dial(w)
		if err != nil {
			return nil, err
		}
		defer server.Close()
		defer client.Close()
		if err := controlledBy(client, control); err != nil {
			return nil, fmt.Errorf("have a connection controlled by %s: %w", control, err)
		}
		rate, err := flow(client, server, length)
		return []value{{q, rate}}, err
	}}
}

// controlledBy sets the congestion control of what c sends.
func controlledBy(c *net.TCPConn, name string) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		failed = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, name)
	})
	return errors.Join(err, failed)
}

// flow is how much a server gets of a client that sends all it can, Gbit/s.
func flow(client, server *net.TCPConn, length time.Duration) (rate float64, err error) {
	var got atomic.Int64
	err = pair(func() error {
		buffer := make([]byte, 1<<18)
		for {
			n, err := server.Read(buffer)
			got.Add(int64(n))
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
		}
	}, func() error {
		defer func() { _ = client.CloseWrite() }()
		chunk := make([]byte, 1<<17)
		send := func(until time.Time) error {
			for time.Now().Before(until) {
				if _, err := client.Write(chunk); err != nil {
					return err
				}
			}
			return nil
		}
		if err := send(time.Now().Add(warmUp)); err != nil {
			return err
		}
		before, began := got.Load(), time.Now()
		if err := send(began.Add(length)); err != nil {
			return err
		}
		rate = float64(got.Load()-before) * 8 / time.Since(began).Seconds() / 1e9
		return nil
	})
	return rate, err
}

// pingPong sends one byte there and back again.
func pingPong(w way, length time.Duration) ([]value, error) {
	client, server, err := dial(w)
	if err != nil {
		return nil, err
	}
	defer server.Close()
	defer client.Close()
	var times []time.Duration
	var took time.Duration
	err = pair(func() error {
		one := make([]byte, 1)
		for {
			if _, err := io.ReadFull(server, one); errors.Is(err, io.EOF) {
				return nil
			} else if err != nil {
				return err
			}
			if _, err := server.Write(one); err != nil {
				return err
			}
		}
	}, func() error {
		defer func() { _ = client.CloseWrite() }()
		one := make([]byte, 1)
		trip := func() error {
			if _, err := client.Write(one); err != nil {
				return err
			}
			_, err := io.ReadFull(client, one)
			return err
		}
		for until := time.Now().Add(warmUp); time.Now().Before(until); {
			if err := trip(); err != nil {
				return err
			}
		}
		began := time.Now()
		for last := began; last.Sub(began) < length; {
			if err := trip(); err != nil {
				return err
			}
			now := time.Now()
			times = append(times, now.Sub(last))
			last = now
		}
		took = time.Since(began)
		return nil
	})
	if err != nil || len(times) == 0 {
		return nil, errors.Join(err, errors.New("no round trip was completed"))
	}
	slices.Sort(times)
	at := func(share float64) float64 {
		return float64(times[int(share*float64(len(times)-1))].Nanoseconds()) / 1000
	}
	trips, median, tail, _ := quantities()
	return []value{{trips, float64(len(times)) / took.Seconds() / 1000}, {median, at(0.5)}, {tail, at(0.99)}}, nil
}

// blast sends small datagrams as fast as can be, and counts those that arrive.
func blast(w way, length time.Duration) ([]value, error) {
	server, err := udp(w, 1, netip.AddrPort{})
	if err != nil {
		return nil, err
	}
	defer unix.Close(server)
	name, err := unix.Getsockname(server)
	if err != nil {
		return nil, err
	}
	to := netip.AddrPortFrom(w.addrs[1], uint16(name.(*unix.SockaddrInet4).Port))
	client, err := udp(w, 0, to)
	if err != nil {
		return nil, err
	}
	defer unix.Close(client)
	var got atomic.Int64
	var done atomic.Bool
	var rate float64
	err = pair(func() error {
		buffer := make([]byte, 128)
		for !done.Load() {
			switch _, _, err := unix.Recvfrom(server, buffer, 0); {
			case err == nil:
				got.Add(1)
			case !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR):
				return err
			}
		}
		return nil
	}, func() error {
		defer done.Store(true)
		packet := make([]byte, 64)
		send := func(until time.Time) {
			for time.Now().Before(until) {
				for range 64 {
					_ = unix.Send(client, packet, 0) // one that does not fit a queue is lost, as on the way
				}
			}
		}
		send(time.Now().Add(warmUp))
		// On a machine with other work the receiver may not have its turn for a while.
		for limit := time.Now().Add(patience); rate == 0; {
			if time.Now().After(limit) {
				return errors.New("no datagram arrives")
			}
			before, began := got.Load(), time.Now()
			send(began.Add(length))
			rate = float64(got.Load()-before) / time.Since(began).Seconds() / 1000
		}
		return nil
	})
	_, _, _, packets := quantities()
	return []value{{packets, rate}}, err
}

// udp is a socket that gives up waiting now and then.
func udp(w way, end int, to netip.AddrPort) (fd int, err error) {
	err = w.do(end, func() error {
		if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		limit := unix.NsecToTimeval((100 * time.Millisecond).Nanoseconds())
		err := errors.Join(unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit),
			unix.Bind(fd, &unix.SockaddrInet4{Addr: w.addrs[end].As4()}))
		if err == nil && to.IsValid() {
			err = unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()})
		}
		if err != nil {
			_ = unix.Close(fd)
		}
		return err
	})
	return fd, err
}
