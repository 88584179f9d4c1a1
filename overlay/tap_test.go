package overlay_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/internal/netnstest"
	"github.com/particle-net/particle/overlay"
	"github.com/particle-net/particle/topology"
)

// tap is all that passes the links of a namespace.
type tap struct {
	t     *testing.T
	asked int

	mu     sync.Mutex
	frames [][]byte
	more   chan struct{} // closed at the next frame
}

// listenAll taps all links of the namespace, or one.
func listenAll(t *testing.T, ns *netnstest.Namespace, link ...string) *tap {
	t.Helper()
	var fd int
	var err error
	ns.Do(func() {
		all := binary.NativeEndian.Uint16([]byte{0, unix.ETH_P_ALL})
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, int(all)); err != nil {
			return
		}
		at := &unix.SockaddrLinklayer{Protocol: all}
		for _, name := range link {
			var found *net.Interface
			if found, err = net.InterfaceByName(name); err != nil {
				return
			}
			at.Ifindex = found.Index
		}
		err = errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20), unix.Bind(fd, at))
	})
	if err != nil {
		t.Fatal(err)
	}
	c := &tap{t: t, more: make(chan struct{})}
	file, done := os.NewFile(uintptr(fd), "tap"), make(chan struct{})
	go func() {
		defer close(done)
		c.read(file)
	}()
	t.Cleanup(func() {
		_ = file.Close()
		<-done
	})
	return c
}

func (c *tap) read(file *os.File) {
	buffer := make([]byte, 1<<16)
	for {
		n, err := file.Read(buffer)
		if err != nil {
			return
		}
		c.mu.Lock()
		c.frames = append(c.frames, bytes.Clone(buffer[:n]))
		close(c.more)
		c.more = make(chan struct{})
		c.mu.Unlock()
	}
}

// settle waits until the tap has what was sent before: a datagram that the host
// sends in plain by the same link follows it.
func (c *tap) settle(m *machine, to netip.Addr) {
	c.t.Helper()
	c.asked++
	text := fmt.Sprint("tapped ", c.asked)
	var err error
	m.Do(func() {
		var conn net.Conn
		if conn, err = net.Dial("udp", netip.AddrPortFrom(to, 9).String()); err == nil {
			_, err = conn.Write([]byte(text))
			err = errors.Join(err, conn.Close())
		}
	})
	if err != nil {
		c.t.Fatal(err)
	}
	c.await(text)
}

// await waits until the tap has the text.
func (c *tap) await(text string) {
	c.t.Helper()
	deadline := time.After(patience)
	for {
		c.mu.Lock()
		more := c.more
		c.mu.Unlock()
		if c.contains(text) {
			return
		}
		select {
		case <-more:
		case <-deadline:
			c.t.Fatal("the tap hears nothing")
		}
	}
}

func (c *tap) contains(text string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range c.frames {
		if bytes.Contains(f, []byte(text)) {
			return true
		}
	}
	return false
}

// wantNothingPlain finds no byte of what tenants sent, no tunnel address and no
// Ethernet address of a VXLAN device, and something encrypted.
func (c *tap) wantNothingPlain(hosts [3]*secured) {
	c.t.Helper()
	prefix := topology.WireGuardRange.Addr().As16()
	needles := map[string]string{"what a tenant sent": marker, "a tunnel address": string(prefix[:6])}
	for _, h := range hosts {
		needles["an address of a VXLAN device"+h.Address.String()] = string(overlay.HardwareAddr(h.Address))
	}
	for what, needle := range needles {
		if c.contains(needle) {
			c.t.Errorf("in plain on the underlay: %s", what)
		}
	}
	if len(c.encrypted()) == 0 {
		c.t.Error("nothing encrypted is on the underlay; the test proves nothing")
	}
}

// encrypted are the IP packets with WireGuard's data messages in them (type 4).
func (c *tap) encrypted() (packets [][]byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range c.frames {
		if len(f) < 14+48 {
			continue
		}
		packet, head, proto := f[14:], 20, f[14+9]
		if packet[0]>>4 == 6 {
			head, proto = 40, packet[6]
		}
		udp := packet[head:]
		if proto == unix.IPPROTO_UDP && binary.BigEndian.Uint16(udp[2:]) == 7793 && bytes.Equal(udp[8:12], []byte{4, 0, 0, 0}) {
			packets = append(packets, packet)
		}
	}
	return packets
}

// wantWhole finds no fragments, and encrypted packets as long as the underlay takes
// or nearly so: WireGuard pads to 16 bytes.
func (c *tap) wantWhole(mtu int) {
	c.t.Helper()
	longest := 0
	for _, p := range c.encrypted() {
		longest = max(longest, len(p))
		if p[0]>>4 == 4 && binary.BigEndian.Uint16(p[6:])&0x3fff != 0 { // more fragments, or an offset
			c.t.Error("an encrypted packet is sent in fragments")
		}
	}
	if longest > mtu || longest < mtu-16 {
		c.t.Errorf("the longest packet on the underlay has %d bytes, its MTU is %d", longest, mtu)
	}
}

// unfragmented has the kernel refuse what is too long.
func (s socket) unfragmented() {
	s.t.Helper()
	raw, err := s.PacketConn.(*net.UDPConn).SyscallConn()
	if err != nil {
		s.t.Fatal(err)
	}
	v6 := s.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Is6()
	failed := raw.Control(func(fd uintptr) {
		if v6 {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO)
		} else {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
		}
	})
	if err = errors.Join(err, failed); err != nil {
		s.t.Fatal(err)
	}
}

func (s socket) try(to, text string) error {
	_, err := s.WriteTo([]byte(text), net.UDPAddrFromAddrPort(netip.MustParseAddrPort(to)))
	return err
}

// whole waits for a datagram of any length.
func (s socket) whole() string {
	s.t.Helper()
	_ = s.SetReadDeadline(time.Now().Add(patience))
	buffer := make([]byte, 1<<16)
	n, _, err := s.ReadFrom(buffer)
	if err != nil {
		s.t.Fatal("waiting for a datagram: ", err)
	}
	return string(buffer[:n])
}
