package attack

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/integration/sockets/sock"
)

// Question is what the witness is asked, one on each connection.
type Question struct {
	// Op is "touches"; "setting"; "bind", to try an address as the victim; or
	// "call", to connect or send to an address as the victim.
	Op      string `json:"op"`
	Network string `json:"network,omitempty"` // tcp4, udp6...; unix; ping; netlink
	Address string `json:"address,omitempty"`
	Count   int    `json:"count,omitempty"` // of calls
}

// Answer is the witness's.
type Answer struct {
	Touches []Touch           `json:"touches,omitempty"`
	Ports   map[string]uint16 `json:"ports,omitempty"` // of services that never called bind
	Setting string            `json:"setting,omitempty"`
	Errno   string            `json:"errno,omitempty"` // of bind, and of the last call
}

// Victim listens until ctx ends, and says so in a line on out.
func Victim(ctx context.Context, out io.Writer, own, own6 netip.Addr) error {
	v := &victim{own: own, own6: own6, known: map[Touch]bool{}, ports: map[string]uint16{}}
	for _, s := range v.services() {
		if err := v.open(ctx, s); err != nil {
			return err
		}
	}
	if err := v.openUnbound(); err != nil {
		return err
	}
	if err := v.openGroups(); err != nil {
		return err
	}
	if err := v.openPing(); err != nil {
		return err
	}
	if err := v.openNetlink(); err != nil {
		return err
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp4", netip.AddrPortFrom(own, portWitness).String())
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { l.Close() })()
	fmt.Fprintf(out, "listening on %s\n", l.Addr())
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		go v.answer(ctx, conn)
	}
}

func (v *victim) answer(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	var q Question
	if err := json.NewDecoder(conn).Decode(&q); err != nil {
		return
	}
	_ = json.NewEncoder(conn).Encode(v.respond(ctx, q)) // the asker may have left
}

func (v *victim) respond(ctx context.Context, q Question) Answer {
	switch q.Op {
	case "touches":
		v.mu.Lock()
		defer v.mu.Unlock()
		return Answer{Touches: slices.Clone(v.touches), Ports: v.ports}
	case "setting":
		value, err := os.ReadFile("/proc/" + setting)
		return Answer{Setting: strings.TrimSpace(string(value)), Errno: sock.Errno(bare(err))}
	case "bind":
		return Answer{Errno: sock.Errno(tryBind(q.Network, q.Address))}
	case "call":
		var last error
		for range max(1, q.Count) {
			last = v.call(ctx, q.Network, q.Address)
		}
		if last != nil {
			return Answer{Errno: last.Error()}
		}
		return Answer{}
	}
	return Answer{Errno: "no such question"}
}

// callText is what a call says.
const callText = "call\n"

// call touches an address. To a group IPv6 has no source of its own where no link has an
// address, so that takes the victim's.
func (v *victim) call(ctx context.Context, network, address string) error {
	d := net.Dialer{Timeout: patience}
	if to, err := netip.ParseAddrPort(address); err == nil && to.Addr().Is6() && to.Addr().IsMulticast() {
		d.LocalAddr = net.UDPAddrFromAddrPort(netip.AddrPortFrom(v.own6, 0))
	}
	conn, err := d.DialContext(ctx, network, address)
	if err != nil {
		return err
	}
	_, err = conn.Write([]byte(callText))
	conn.Close()
	return err
}

// tryBind binds, listens if it is a stream, and lets go.
func tryBind(network, address string) error {
	k, err := sock.Open(sock.Syscall, patience)
	if err != nil {
		return err
	}
	defer k.Close()
	var raw []byte
	switch network {
	case "unix":
		raw = sock.Abstract(address)
	case "netlink":
		raw = sock.Netlink(numberNetlink + 1)
	default:
		at, err := netip.ParseAddrPort(address)
		if err != nil {
			return err
		}
		raw = sock.In(at.Addr(), at.Port())
	}
	kinds := map[string][3]int{
		"tcp4": {unix.AF_INET, unix.SOCK_STREAM, 0}, "udp4": {unix.AF_INET, unix.SOCK_DGRAM, 0},
		"tcp6": {unix.AF_INET6, unix.SOCK_STREAM, 0}, "udp6": {unix.AF_INET6, unix.SOCK_DGRAM, 0},
		"ping": {unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP}, "unix": {unix.AF_UNIX, unix.SOCK_STREAM, 0},
		"netlink": {unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE},
	}
	kind := kinds[network]
	fd, err := k.Socket(kind[0], kind[1], kind[2])
	if err == nil {
		err = k.Bind(fd, raw)
	}
	if err == nil && kind[1] == unix.SOCK_STREAM {
		err = k.Listen(fd)
	}
	return err
}
