package table

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/integration/sockets/sock"
)

// unixCases use unix sockets without files.
func unixCases() []testCase {
	stream := func(t *trial) socket { return t.open(unix.AF_UNIX, unix.SOCK_STREAM, 0) }
	name := func(t *trial) []byte { return sock.Abstract(fmt.Sprintf("particle-table-%d", t.port)) }
	return []testCase{
		{"unix/stream", func(t *trial) {
			server := stream(t).bind(name(t)).listen()
			stream(t).connect(name(t)).send("hello", nil)
			conn := server.accept().receive()
			conn.peered()
		}},
		{"unix/seqpacket", func(t *trial) {
			server := t.open(unix.AF_UNIX, unix.SOCK_SEQPACKET, 0).bind(name(t)).listen()
			t.open(unix.AF_UNIX, unix.SOCK_SEQPACKET, 0).connect(name(t)).send("hello", nil)
			server.accept().receive()
		}},
		{"unix/dgram", func(t *trial) {
			server := t.open(unix.AF_UNIX, unix.SOCK_DGRAM, 0).bind(name(t))
			t.open(unix.AF_UNIX, unix.SOCK_DGRAM, 0).send("hello", name(t))
			server.receive()
		}},
		{"unix/name-in-use", func(t *trial) {
			stream(t).bind(name(t))
			stream(t).bind(name(t))
		}},
		{"unix/nobody", func(t *trial) { stream(t).connect(name(t)) }},
		{"unix/pair", func(t *trial) {
			pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			t.fail("socketpair", err)
			if err == nil {
				t.kernel.Adopt(pair[0])
				t.kernel.Adopt(pair[1])
				socket{t, pair[0]}.send("hello", nil)
				socket{t, pair[1]}.receive()
			}
		}},
	}
}

// familyCases open sockets of every family that programs know, and look up names
// and addresses.
func familyCases() []testCase {
	var out []testCase
	for _, c := range []struct {
		name                   string
		family, kind, protocol int
	}{
		{"raw-icmp", unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP},
		{"raw-tcp", unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_TCP},
		{"raw-icmp6", unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_ICMPV6},
		{"packet", unix.AF_PACKET, unix.SOCK_RAW, 0},
		{"packet-cooked", unix.AF_PACKET, unix.SOCK_DGRAM, 0},
		{"sctp", unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_SCTP},
		{"dccp", unix.AF_INET, unix.SOCK_DCCP, unix.IPPROTO_DCCP},
		{"udplite", unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_UDPLITE},
		{"mptcp", unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP},
		{"smc", unix.AF_SMC, unix.SOCK_STREAM, 0},
		{"vsock", unix.AF_VSOCK, unix.SOCK_STREAM, 0},
		{"alg", unix.AF_ALG, unix.SOCK_SEQPACKET, 0},
		{"netlink-route", unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE},
		{"netlink-diag", unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_SOCK_DIAG},
		{"xdp", unix.AF_XDP, unix.SOCK_RAW, 0},
		{"wrong-type", unix.AF_INET, unix.SOCK_SEQPACKET, 0},
		{"wrong-protocol", unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_UDP},
		{"wrong-family", 45, unix.SOCK_STREAM, 0},
	} {
		out = append(out, testCase{"family/" + c.name, func(t *trial) { t.open(c.family, c.kind, c.protocol) }})
	}
	return append(out,
		testCase{"name/localhost", func(t *trial) {
			found, err := (&net.Resolver{PreferGo: true}).LookupHost(context.Background(), "localhost")
			t.fail("lookup", err)
			slices.Sort(found)
			t.saw("%s", strings.Join(found, " "))
		}},
		testCase{"name/localhost-server", func(t *trial) {
			l, err := net.Listen("tcp", fmt.Sprintf("localhost:%d", t.port))
			t.fail("listen", err)
			if err != nil {
				return
			}
			defer l.Close()
			conn, err := net.Dial("tcp", fmt.Sprintf("localhost:%d", t.port))
			t.fail("dial", err)
			if err == nil {
				t.saw("%s", strings.TrimSuffix(conn.RemoteAddr().String(), fmt.Sprint(":", t.port)))
				conn.Close()
			}
		}},
		testCase{"name/own-address-on-a-link", func(t *trial) {
			addrs, err := net.InterfaceAddrs()
			t.fail("list", err)
			t.saw("%v", slices.ContainsFunc(addrs, func(a net.Addr) bool {
				ip, ok := a.(*net.IPNet)
				return ok && ip.IP.Equal(t.self.Four.AsSlice())
			}))
		}})
}
