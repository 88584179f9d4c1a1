package attack

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/integration/sockets/sock"
)

// forgeCases use sockets that take whole packets, and those that see them.
func forgeCases() []Case {
	raw := func(name string, family, kind, protocol int) Case {
		return Case{"sniff/" + name, func(a *attacker) verdict {
			_, err := a.Socket(family, kind, protocol)
			return outcome(err)
		}}
	}
	all := int(htons(unix.ETH_P_ALL))
	third := func(a *attacker) netip.Addr { return a.Third.Four }
	self := func(a *attacker) netip.Addr { return a.Self.Four }
	return []Case{
		{"forge/header", func(a *attacker) verdict { return a.forgeHeader(third(a)) }},
		{"forge/packet", func(a *attacker) verdict { return a.forgePacket(third(a)) }},
		// Who may make packets can make true ones, too: that shows that the false
		// ones are well made.
		{"forge/header-true", func(a *attacker) verdict { return a.forgeHeader(self(a)) }},
		{"forge/packet-true", func(a *attacker) verdict { return a.forgePacket(self(a)) }},
		raw("packet", unix.AF_PACKET, unix.SOCK_RAW, all),
		raw("packet-cooked", unix.AF_PACKET, unix.SOCK_DGRAM, all),
		raw("packet-old", unix.AF_INET, unix.SOCK_PACKET, all),
		raw("raw-icmp", unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP),
		raw("raw-tcp", unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_TCP),
		raw("raw-udp", unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_UDP),
		raw("raw-icmp6", unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_ICMPV6),
		raw("raw-udp6", unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_UDP),
		raw("xdp", unix.AF_XDP, unix.SOCK_RAW, 0),
		{"overhear/packets", func(a *attacker) verdict { return a.overhearPackets(all) }},
		{"forge/tcp-repair", func(a *attacker) verdict {
			fd, err := a.socket(tcp4)
			if err == nil {
				err = unix.SetsockoptInt(fd, unix.SOL_TCP, unix.TCP_REPAIR, 1)
			}
			return outcome(err)
		}},
	}
}

// overhearPackets sees on its own links what the victim sends to somebody else.
func (a *attacker) overhearPackets(protocol int) verdict {
	fd, err := a.Socket(unix.AF_PACKET, unix.SOCK_DGRAM, protocol)
	if err != nil {
		return failed(err)
	}
	a.victimCalls(udp4, netip.AddrPortFrom(a.Third.Four, portFree), 1)
	packet := make([]byte, 2048)
	for end := time.Now().Add(patience); time.Now().Before(end); {
		n, _, _, err := a.Receive(fd, packet, nil)
		if err != nil {
			return failed(err)
		}
		if bytes.HasSuffix(packet[:n], []byte(callText)) && bytes.Contains(packet[:n], a.Third.Four.AsSlice()) {
			return verdict{success: true}
		}
	}
	return failed(unix.EAGAIN)
}

// forgeHeader sends a packet from an address by a raw socket.
func (a *attacker) forgeHeader(from netip.Addr) verdict {
	fd, err := a.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW)
	if err == nil {
		_, err = a.Send(fd, sock.Message{Data: a.forged(from), To: sock.In(a.Victim.Four, 0)})
	}
	return a.forgedBy(err)
}

// forgePacket sends one past the routes, on every link.
func (a *attacker) forgePacket(from netip.Addr) verdict {
	fd, err := a.Socket(unix.AF_PACKET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return failed(err)
	}
	links, err := net.Interfaces()
	for _, link := range links {
		for _, mac := range neighbours(link.Name) {
			_, _ = a.Send(fd, sock.Message{Data: a.forged(from), To: linkLayer(link.Index, unix.ETH_P_IP, mac)}) // not every link takes it
		}
	}
	return a.forgedBy(err)
}

// forgedBy waits for a forged packet to be heard, if it went out.
func (a *attacker) forgedBy(err error) verdict {
	if err != nil {
		return failed(err)
	}
	return verdict{token: a.token()}
}

// forged is an IPv4 packet with the token to the victim, from an address.
func (a *attacker) forged(from netip.Addr) []byte {
	data := []byte(a.token())
	udp := make([]byte, 8, 8+len(data))
	binary.BigEndian.PutUint16(udp, 4242)
	binary.BigEndian.PutUint16(udp[2:], portUDPAny)
	binary.BigEndian.PutUint16(udp[4:], uint16(8+len(data)))
	udp = append(udp, data...) // a checksum of 0 is none: RFC 768
	return append(header4(from, a.Victim.Four, unix.IPPROTO_UDP, len(udp)), udp...)
}

// header4 is an IPv4 header (RFC 791).
func header4(from, to netip.Addr, protocol byte, payload int) []byte {
	h := make([]byte, 20)
	h[0], h[8], h[9] = 0x45, 64, protocol
	binary.BigEndian.PutUint16(h[2:], uint16(20+payload))
	copy(h[12:], from.AsSlice())
	copy(h[16:], to.AsSlice())
	binary.BigEndian.PutUint16(h[10:], checksum(h))
	return h
}

// checksum is the internet checksum (RFC 1071) of words.
func checksum(words []byte) uint16 {
	var sum uint32
	for i := 0; i < len(words); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(words[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// linkLayer is a struct sockaddr_ll for a protocol, to a MAC on a link.
func linkLayer(index int, protocol uint16, mac net.HardwareAddr) []byte {
	raw := make([]byte, unix.SizeofSockaddrLinklayer)
	binary.NativeEndian.PutUint16(raw, unix.AF_PACKET)
	binary.BigEndian.PutUint16(raw[2:], protocol)
	binary.NativeEndian.PutUint32(raw[4:], uint32(index))
	raw[11] = byte(copy(raw[12:], mac))
	return raw
}

// everybody is the MAC of all on a link.
func everybody() net.HardwareAddr { return net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff} }

// neighbours are everybody's MAC and those that are known on a link: what is sent to all
// is not forwarded.
func neighbours(link string) []net.HardwareAddr {
	macs := []net.HardwareAddr{everybody()}
	table, _ := os.ReadFile("/proc/net/arp") // without it nobody is known
	for line := range strings.Lines(string(table)) {
		if fields := strings.Fields(line); len(fields) == 6 && fields[5] == link {
			if mac, err := net.ParseMAC(fields[3]); err == nil {
				macs = append(macs, mac)
			}
		}
	}
	return macs
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }
