package main

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
)

// forge sends a VXLAN packet that nobody's kernel has made: a datagram to a container,
// by way of the network's device on the host at ADDR:PORT.
func forge(ctx context.Context, _ io.Writer, args []string) error {
	o, rest, err := parse(args)
	if err != nil {
		return err
	}
	if len(rest) != 2 {
		return errors.New("ADDR:PORT and a text, please")
	}
	mac, err := net.ParseMAC(o.mac)
	if err != nil {
		return err
	}
	from, errFrom := netip.ParseAddrPort(o.source)
	to, errTo := netip.ParseAddrPort(o.to)
	if err := errors.Join(errFrom, errTo); err != nil {
		return err
	}
	packet := binary.BigEndian.AppendUint32([]byte{8, 0, 0, 0}, uint32(o.vni)<<8)
	packet = append(packet, mac...)
	packet = append(packet, 2, 0, 0, 0, 0, 1, 8, 0) // somebody, who sends IPv4
	packet = append(packet, datagram(from, to, rest[1])...)
	var d net.Dialer
	conn, err := d.DialContext(ctx, "udp", rest[0])
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.Write(packet)
	return err
}

// datagram is UDP in IPv4, without a checksum of UDP, which is optional.
func datagram(from, to netip.AddrPort, text string) []byte {
	const ip, udp = 20, 8
	packet := []byte{0x45, 0}
	packet = binary.BigEndian.AppendUint16(packet, uint16(ip+udp+len(text)))
	packet = append(packet, 0, 0, 0, 0, 64, 17, 0, 0)
	packet = append(packet, from.Addr().AsSlice()...)
	packet = append(packet, to.Addr().AsSlice()...)
	binary.BigEndian.PutUint16(packet[10:], checksum(packet))
	for _, field := range []uint16{from.Port(), to.Port(), uint16(udp + len(text)), 0} {
		packet = binary.BigEndian.AppendUint16(packet, field)
	}
	return append(packet, text...)
}

// checksum is that of an IPv4 header (RFC 1071).
func checksum(header []byte) uint16 {
	var sum uint32
	for i := 0; i < len(header); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(header[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
