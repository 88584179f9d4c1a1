package sock

import (
	"bytes"
	"errors"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestAddresses(t *testing.T) {
	for _, c := range []struct {
		name      string
		got, want []byte
	}{
		{"IPv4", At("10.0.0.2", 80), []byte{2, 0, 0, 80, 10, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0}},
		{"mapped", In(netip.AddrFrom16(netip.MustParseAddr("10.0.0.2").As16()), 80)[:24],
			[]byte{10, 0, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 2}},
		{"another family", As(At("10.0.0.2", 80), unix.AF_UNSPEC)[:8], []byte{0, 0, 0, 80, 10, 0, 0, 2}},
		{"abstract", Abstract("ab"), []byte{1, 0, 0, 'a', 'b'}},
	} {
		if !bytes.Equal(c.got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, c.got, c.want)
		}
	}
}

// Every entry that the machine has leads to the same answers.
func TestEntries(t *testing.T) {
	for _, name := range []string{Syscall, Socketcall, Uring, UringAsync, UringSqpoll, UringSend, UringMessages, UringPages} {
		t.Run(name, func(t *testing.T) {
			k, err := Open(name, time.Second)
			if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) {
				t.Log("not here:", err)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer k.Close()
			exchange(t, k)
			datagrams(t, k)
			pair(t, k)
			other, err := k.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
			if err != nil {
				t.Fatal(err)
			}
			if err := k.Bind(other, At("192.0.2.1", 0)); err != unix.EADDRNOTAVAIL {
				t.Errorf("bind to a strange address: %v", err)
			}
		})
	}
}

// exchange lets a client speak to a listener over loopback.
func exchange(t *testing.T, k *Kernel) {
	t.Helper()
	server, err := k.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err == nil {
		err = k.Bind(server, At("127.0.0.1", 0))
	}
	if err == nil {
		err = k.Listen(server)
	}
	if err != nil {
		t.Fatal(err)
	}
	name, err := unix.Getsockname(server)
	if err != nil {
		t.Fatal(err)
	}
	client, err := k.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err == nil {
		err = k.Connect(client, At("127.0.0.1", AddrPort(name).Port()))
	}
	if err == nil {
		_, err = k.Send(client, Message{Data: []byte("hello")})
	}
	if err != nil {
		t.Fatal(err)
	}
	conn, peer, err := k.Accept(server)
	if err != nil {
		t.Fatal(err)
	}
	data := make([]byte, 16)
	n, _, _, err := k.Receive(conn, data, nil)
	if err != nil || string(data[:n]) != "hello" || AddrPort(peer).Addr().String() != "127.0.0.1" {
		t.Errorf("received %q from %s: %v", data[:n], Text(peer), err)
	}
}

// datagrams name where they go to, and one of them where it comes from.
func datagrams(t *testing.T, k *Kernel) {
	t.Helper()
	server, err := k.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err == nil {
		err = k.Bind(server, At("127.0.0.1", 0))
	}
	if err != nil {
		t.Fatal(err)
	}
	name, err := unix.Getsockname(server)
	if err != nil {
		t.Fatal(err)
	}
	for want, control := range map[string][]byte{
		"127.0.0.1": nil,
		"127.0.0.9": unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: [4]byte{127, 0, 0, 9}}),
	} {
		client, err := k.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
		if err == nil {
			_, err = k.Send(client, Message{Data: []byte("from " + want), To: At("127.0.0.1", AddrPort(name).Port()), Control: control})
		}
		if err != nil {
			t.Fatal(err)
		}
		data := make([]byte, 32)
		n, _, peer, err := k.Receive(server, data, nil)
		if err != nil || string(data[:n]) != "from "+want || AddrPort(peer).Addr().String() != want {
			t.Errorf("received %q from %s: %v", data[:n], Text(peer), err)
		}
	}
}

// pair sends by sockets that take no pages of a sender's.
func pair(t *testing.T, k *Kernel) {
	t.Helper()
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range ends {
		k.Adopt(fd)
		if err := k.bound(fd); err != nil {
			t.Fatal(err)
		}
	}
	for _, text := range []string{"hello", "again"} {
		if n, err := k.Send(ends[0], Message{Data: []byte(text)}); err != nil || n != len(text) {
			t.Errorf("sent %d bytes of %q: %v", n, text, err)
		}
		data := make([]byte, 16)
		n, _, _, err := k.Receive(ends[1], data, nil)
		if err != nil {
			t.Fatal(err)
		}
		if string(data[:n]) != text {
			t.Errorf("received %q, want %q", data[:n], text)
		}
	}
}

func TestPacketDestination(t *testing.T) {
	// Inet4Pktinfo as received: the header's destination is its last part.
	four := unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: [4]byte{10, 0, 0, 1}, Addr: [4]byte{10, 0, 0, 2}})
	six := unix.PktInfo6(&unix.Inet6Pktinfo{Addr: netip.MustParseAddr("fd00::2").As16()})
	for _, c := range []struct {
		control []byte
		want    string
	}{{four, "10.0.0.2"}, {six, "fd00::2"}} {
		if got, err := PacketDestination(c.control); err != nil || got.String() != c.want {
			t.Errorf("%s, %v; want %s", got, err, c.want)
		}
	}
	if _, err := PacketDestination(nil); err == nil {
		t.Error("no control message, and an address")
	}
}
