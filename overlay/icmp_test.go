package overlay_test

import (
	"errors"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// socket6 is a raw socket of ICMPv6.
type socket6 struct{ fd, link int }

// rawICMP opens one in the namespace of the thread, at an address, on a link
// unless its name is empty. All it sends has passed no router.
func rawICMP(source, link string) (s socket6, err error) {
	if link != "" {
		found, err := net.InterfaceByName(link)
		if err != nil {
			return s, err
		}
		s.link = found.Index
	}
	s.fd, err = unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMPV6)
	if err != nil {
		return s, err
	}
	wait := unix.NsecToTimeval(patience.Nanoseconds())
	err = errors.Join(
		unix.SetsockoptInt(s.fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, 255),
		unix.SetsockoptInt(s.fd, unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, 255),
		unix.SetsockoptTimeval(s.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait),
		unix.Bind(s.fd, s.sockaddr(source)),
	)
	return s, err
}

func (s socket6) sockaddr(addr string) *unix.SockaddrInet6 {
	a := netip.MustParseAddr(addr)
	to := &unix.SockaddrInet6{Addr: a.As16()}
	if a.IsLinkLocalUnicast() || a.IsMulticast() {
		to.ZoneId = uint32(s.link)
	}
	return to
}

// send sends a message of a type with nothing in it; the kernel adds the
// checksum.
func (s socket6) send(to string, message byte) error {
	return unix.Sendto(s.fd, append([]byte{message}, make([]byte, 23)...), 0, s.sockaddr(to))
}

// next waits for a message and gives its type, those aside that the kernel
// sends by itself: answers to echo requests, reports of multicast listeners.
func (s socket6) next() (message byte, err error) {
	const echoReply, listenerReport = 129, 143
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		buffer := make([]byte, 1500)
		n, _, err := unix.Recvfrom(s.fd, buffer, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n == 0 {
			return 0, err
		}
		if buffer[0] != echoReply && buffer[0] != listenerReport {
			return buffer[0], nil
		}
	}
	return 0, unix.ETIMEDOUT
}

func (s socket6) close() { _ = unix.Close(s.fd) }

// advertise sends a router advertisement (RFC 4861 section 4.2) to all nodes on
// a link, from its link-local address.
func advertise(link string) error {
	s, err := rawICMP("::", link)
	if err != nil {
		return err
	}
	defer s.close()
	const routerAdvertisement, lifetime = 134, 0x0708
	message := []byte{routerAdvertisement, 0, 0, 0, 64, 0, lifetime >> 8, lifetime & 0xff, 0, 0, 0, 0, 0, 0, 0, 0}
	return unix.Sendto(s.fd, message, 0, s.sockaddr("ff02::1"))
}
