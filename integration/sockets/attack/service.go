package attack

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Ports of the victim. The names tell what each is bound to.
const (
	portTCPAny     = 7001 // 0.0.0.0, SO_REUSEPORT
	portTCPAny6    = 7002 // [::] alone, SO_REUSEPORT
	portTCPDual    = 7003 // [::] and 0.0.0.0 by one socket
	portTCPOwn     = 7004 // own address, SO_REUSEPORT
	portTCPOwn6    = 7005
	portUDPAny     = 7011 // 0.0.0.0, SO_REUSEPORT
	portUDPAny6    = 7012 // [::] alone, SO_REUSEPORT
	portUDPDual    = 7013
	portUDPOwn     = 7014 // own address, SO_REUSEPORT
	portUDPShared  = 7015 // 0.0.0.0, SO_REUSEADDR
	portUDPGroup   = 7016 // a group of each family
	portTCPLo      = 7021 // 127.0.0.1, SO_REUSEPORT
	portUDPLo      = 7022 // 127.0.0.1, SO_REUSEPORT
	portTCPLo6     = 7023 // ::1
	portUDPLo6     = 7024
	portWitness    = 7040 // own address
	identPing      = 7050 // own address
	numberNetlink  = 7051 // of all protocols that there are
	portFree       = 7060 // to this and the next 39 the victim binds nothing
	abstractPrefix = "particle-victim-"
)

// Greeting comes before the address that the victim sees a peer by, in the first
// packet to it.
const Greeting = "you are "

// Touch is one contact with a service of the victim.
type Touch struct {
	Service string `json:"service"`
	Peer    string `json:"peer"`  // address
	Token   string `json:"token"` // what the peer said
}

// victim is a running victim.
type victim struct {
	own, own6 netip.Addr

	mu      sync.Mutex // guards the rest
	touches []Touch
	known   map[Touch]bool
	ports   map[string]uint16 // of what chose its own port
}

// touched remembers a contact; one that repeats another, from whatever port, is
// not worth its memory: a scan makes 65,535.
func (v *victim) touched(service string, peer net.Addr, token string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	t := Touch{Service: service, Token: strings.TrimSpace(token)}
	if peer != nil {
		if from, err := netip.ParseAddrPort(peer.String()); err == nil { // unix sockets have no address
			t.Peer = from.Addr().String()
		}
	}
	if !v.known[t] {
		v.known[t] = true
		v.touches = append(v.touches, t)
	}
}

// service is something the victim listens on.
type service struct {
	name, network, address string
	options                []int // of SOL_SOCKET, each set to 1
}

func (v *victim) services() []service {
	port := []int{unix.SO_REUSEPORT}
	in := func(host string, p uint16) string { return netip.AddrPortFrom(netip.MustParseAddr(host), p).String() }
	own := func(p uint16) string { return netip.AddrPortFrom(v.own, p).String() }
	own6 := func(p uint16) string { return netip.AddrPortFrom(v.own6, p).String() }
	return []service{
		{"tcp-any", "tcp4", in("0.0.0.0", portTCPAny), port},
		{"tcp-any6", "tcp6", in("::", portTCPAny6), port},
		{"tcp-dual", "tcp", in("::", portTCPDual), nil},
		{"tcp-own", "tcp4", own(portTCPOwn), port},
		{"tcp-own6", "tcp6", own6(portTCPOwn6), port},
		{"tcp-lo", "tcp4", in("127.0.0.1", portTCPLo), port},
		{"tcp-lo6", "tcp6", in("::1", portTCPLo6), nil},
		{"udp-any", "udp4", in("0.0.0.0", portUDPAny), port},
		{"udp-any6", "udp6", in("::", portUDPAny6), port},
		{"udp-dual", "udp", in("::", portUDPDual), nil},
		{"udp-own", "udp4", own(portUDPOwn), port},
		{"udp-shared", "udp4", in("0.0.0.0", portUDPShared), []int{unix.SO_REUSEADDR}},
		{"udp-lo", "udp4", in("127.0.0.1", portUDPLo), port},
		{"udp-lo6", "udp6", in("::1", portUDPLo6), nil},
		{"stream", "unix", "@" + abstractPrefix + "stream", nil},
		{"seqpacket", "unixpacket", "@" + abstractPrefix + "seqpacket", nil},
		{"dgram", "unixgram", "@" + abstractPrefix + "dgram", nil},
	}
}

// open starts a service.
func (v *victim) open(ctx context.Context, s service) error {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		for _, option := range s.options {
			err = errors.Join(err, c.Control(func(fd uintptr) {
				err = errors.Join(err, unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, option, 1))
			}))
		}
		return err
	}}
	if strings.HasPrefix(s.network, "udp") || s.network == "unixgram" {
		conn, err := lc.ListenPacket(ctx, s.network, s.address)
		if err == nil {
			go v.hear(s.name, conn)
		}
		return err
	}
	l, err := lc.Listen(ctx, s.network, s.address)
	if err == nil {
		go v.accept(s.name, l)
	}
	return err
}

// hear remembers datagrams, and answers them.
func (v *victim) hear(name string, conn net.PacketConn) {
	packet := make([]byte, 2048)
	for {
		n, peer, err := conn.ReadFrom(packet)
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			continue // an error of a former answer
		}
		v.touched(name, peer, string(packet[:n]))
		// An answer is not answered: a forged source may have led it to the victim itself.
		if peer != nil && !bytes.HasPrefix(packet[:n], []byte(Greeting)) {
			_, _ = conn.WriteTo([]byte(Greeting+peer.String()), peer) // who asked may be gone
		}
	}
}

// accept remembers connections.
func (v *victim) accept(name string, l net.Listener) {
	for {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		go func() {
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(time.Minute))
			_, _ = io.WriteString(conn, Greeting+conn.RemoteAddr().String())
			line, _ := bufio.NewReader(conn).ReadString('\n') // saying nothing is a touch, too
			v.touched(name, conn.RemoteAddr(), line)
		}()
	}
}

// openUnbound starts a TCP listener and a UDP socket that never called bind.
func (v *victim) openUnbound() error {
	stream, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.Listen(stream, 128)
	}
	if err != nil {
		return err
	}
	packets, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.Sendto(packets, []byte("autobind"), 0, &unix.SockaddrInet4{Port: portUDPOwn, Addr: v.own.As4()})
	}
	if err != nil {
		return err
	}
	for name, fd := range map[string]int{"tcp-auto": stream, "udp-auto": packets} {
		name4, err := unix.Getsockname(fd)
		if err != nil {
			return err
		}
		v.ports[name] = uint16(name4.(*unix.SockaddrInet4).Port)
	}
	l, err := net.FileListener(os.NewFile(uintptr(stream), "tcp-auto"))
	if err != nil {
		return err
	}
	go v.accept("tcp-auto", l)
	conn, err := net.FilePacketConn(os.NewFile(uintptr(packets), "udp-auto"))
	if err != nil {
		return err
	}
	go v.hear("udp-auto", conn)
	return nil
}

// openNetlink hears what other programs say by netlink.
func (v *victim) openNetlink() error {
	for protocol := range netlinkProtocols {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
		if errors.Is(err, unix.EPROTONOSUPPORT) {
			continue
		}
		if err == nil {
			err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Pid: numberNetlink})
		}
		if err != nil {
			return fmt.Errorf("netlink's protocol %d: %w", protocol, err)
		}
		go func() {
			packet := make([]byte, 2048)
			for {
				n, _, err := unix.Recvfrom(fd, packet, 0)
				if err != nil && err != unix.EINTR && err != unix.ENOBUFS {
					return // nobody can be heard here
				}
				if err == nil && n > unix.SizeofNlMsghdr {
					v.touched("netlink", nil, string(packet[unix.SizeofNlMsghdr:n]))
				}
			}
		}()
	}
	return nil
}

// openPing holds a ping socket of a known identifier, if the group may.
func (v *victim) openPing() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrInet4{Port: identPing, Addr: v.own.As4()})
	}
	return err
}
