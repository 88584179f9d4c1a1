package attack

import (
	"encoding/binary"
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// Netlink messages that x/sys does not name.
const (
	nftBatchBegin = 0x10 // NFNL_MSG_BATCH_BEGIN
	diagDestroy   = unix.SOCK_DESTROY
	loIndex       = 1

	netlinkProtocols = 32 // MAX_LINKS
)

// netlinkCases try to change the namespace: its addresses, routes, neighbours,
// links and rules, others' sockets, and its settings.
func netlinkCases() []Case {
	order := binary.NativeEndian
	address := func(a *attacker) []byte { // struct ifaddrmsg, IFA_LOCAL
		body := []byte{unix.AF_INET, 32, 0, 0}
		body = order.AppendUint32(body, loIndex)
		return append(body, attribute(unix.IFA_LOCAL, a.Victim.Four.AsSlice())...)
	}
	route := func(a *attacker) []byte { // struct rtmsg, RTA_DST, RTA_OIF
		body := []byte{unix.AF_INET, 32, 0, 0, unix.RT_TABLE_LOCAL, unix.RTPROT_STATIC, unix.RT_SCOPE_HOST, unix.RTN_LOCAL, 0, 0, 0, 0}
		body = append(body, attribute(unix.RTA_DST, []byte{192, 0, 2, 1})...)
		return append(body, attribute(unix.RTA_OIF, order.AppendUint32(nil, loIndex))...)
	}
	neighbour := func(a *attacker) []byte { // struct ndmsg, NDA_DST, NDA_LLADDR
		body := []byte{unix.AF_INET, 0, 0, 0}
		body = order.AppendUint32(body, loIndex)
		body = append(body, unix.NUD_PERMANENT, 0, 0, 0)
		body = append(body, attribute(unix.NDA_DST, a.Victim.Four.AsSlice())...)
		return append(body, attribute(unix.NDA_LLADDR, make([]byte, 6))...)
	}
	link := func(*attacker) []byte { // struct ifinfomsg: nothing to change
		body := []byte{unix.AF_UNSPEC, 0, 0, 0}
		body = order.AppendUint32(body, loIndex)
		return append(body, make([]byte, 8)...)
	}
	change := func(name string, protocol int, kind uint16, body func(*attacker) []byte) Case {
		return Case{"change/" + name, func(a *attacker) verdict { return unlessForbidden(tellNetlink(protocol, kind, body(a))) }}
	}
	return []Case{
		change("address", unix.NETLINK_ROUTE, unix.RTM_NEWADDR, address),
		change("route", unix.NETLINK_ROUTE, unix.RTM_NEWROUTE, route),
		change("neighbour", unix.NETLINK_ROUTE, unix.RTM_NEWNEIGH, neighbour),
		change("link", unix.NETLINK_ROUTE, unix.RTM_SETLINK, link),
		change("rules", unix.NETLINK_NETFILTER, nftBatchBegin, func(*attacker) []byte { return []byte{0, 0, 0, unix.NFNL_SUBSYS_NFTABLES} }),
		change("kill-socket", unix.NETLINK_SOCK_DIAG, diagDestroy, func(a *attacker) []byte { return diagRequest(a) }),
		{"change/anycast", func(a *attacker) verdict {
			fd, err := a.socket(udp6)
			if err == nil {
				err = unix.SetsockoptIPv6Mreq(fd, unix.SOL_IPV6, unix.IPV6_JOIN_ANYCAST, &unix.IPv6Mreq{Multiaddr: a.Victim.Six.As16(), Interface: loIndex})
			}
			return unlessForbidden(err)
		}},
		{"change/setting", func(*attacker) verdict { return rewrite("/proc/sys/net/ipv4/ip_nonlocal_bind") }},
	}
}

// diagRequest is a struct inet_diag_req_v2 for the victim's listener.
func diagRequest(a *attacker) []byte {
	body := make([]byte, 56)
	body[0], body[1] = unix.AF_INET, unix.IPPROTO_TCP
	binary.NativeEndian.PutUint32(body[4:], 1<<10) // TCP_LISTEN
	binary.BigEndian.PutUint16(body[8:], portTCPOwn)
	copy(body[12:], a.Victim.Four.AsSlice())
	for i := 48; i < 56; i++ {
		body[i] = 0xff // no cookie
	}
	return body
}

// unlessForbidden takes every answer but a refusal for success: whoever gets to
// be told that the request is wrong can send a right one.
func unlessForbidden(err error) verdict {
	forbidden := errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.EROFS)
	return verdict{success: !forbidden, err: err}
}

// attribute is a netlink attribute, padded.
func attribute(kind uint16, data []byte) []byte {
	out := binary.NativeEndian.AppendUint16(nil, uint16(4+len(data)))
	out = binary.NativeEndian.AppendUint16(out, kind)
	out = append(out, data...)
	return append(out, make([]byte, -len(data)&3)...)
}

// tellNetlink sends one request and returns the kernel's answer to it.
func tellNetlink(protocol int, kind uint16, body []byte) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	timeout := unix.NsecToTimeval(patience.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		return err
	}
	order := binary.NativeEndian
	msg := order.AppendUint32(nil, uint32(unix.SizeofNlMsghdr+len(body)))
	msg = order.AppendUint16(msg, kind)
	msg = order.AppendUint16(msg, unix.NLM_F_REQUEST|unix.NLM_F_ACK|unix.NLM_F_CREATE)
	msg = order.AppendUint32(msg, 1)
	msg = order.AppendUint32(msg, 0)
	if err := unix.Sendto(fd, append(msg, body...), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	answer := make([]byte, 4096)
	n, _, err := unix.Recvfrom(fd, answer, 0)
	if err != nil {
		return err
	}
	if n < unix.SizeofNlMsghdr+4 || order.Uint16(answer[4:]) != unix.NLMSG_ERROR {
		return unix.EBADMSG
	}
	if code := -int32(order.Uint32(answer[unix.SizeofNlMsghdr:])); code != 0 {
		return unix.Errno(code)
	}
	return nil
}

// rewrite writes to a setting what it is, which shows the right to change it.
func rewrite(path string) verdict {
	value, err := os.ReadFile(path)
	if err != nil {
		return failed(err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.Write(value)
		err = errors.Join(err, f.Close())
	}
	return outcome(bare(err))
}

// bare is the errno inside an error, if there is one.
func bare(err error) error {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}
