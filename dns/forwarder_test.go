package dns_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	particledns "github.com/particle-net/particle/dns"
	"github.com/particle-net/particle/internal/fault"
)

func TestChoiceOfUpstream(t *testing.T) {
	type servers []netip.AddrPort
	one, two := nameServer(t, says("one")), nameServer(t, says("two"))
	servfail, refused := nameServer(t, rcode(dns.RcodeServerFailure)), nameServer(t, rcode(dns.RcodeRefused))
	nxdomain := nameServer(t, rcode(dns.RcodeNameError))
	for _, c := range []struct {
		name    string
		servers servers
		want    string
	}{
		{"the first that answers", servers{one, two}, "one"},
		{"the next if the first is not there", servers{absent(t), two}, "two"},
		{"the next if the first is silent", servers{silent(t), two}, "two"},
		{"the next if the first fails", servers{servfail, two}, "two"},
		{"the next if the first refuses", servers{refused, two}, "two"},
		{"no such name is an answer", servers{nxdomain, two}, "NXDOMAIN"},
		{"the first refusal if nobody answers", servers{absent(t), refused, servfail}, "REFUSED"},
		{"nobody is there", servers{absent(t), silent(t)}, "SERVFAIL"},
		{"no servers", nil, "SERVFAIL"},
	} {
		t.Run(c.name, func(t *testing.T) {
			at := forwarder(t, particledns.Options{Timeout: time.Second / 10}, c.servers...)
			for _, network := range []string{"udp", "tcp"} {
				if got := text(ask(t, network, at, query("example.org"))); got != c.want {
					t.Errorf("%s: %s, want %s", network, got, c.want)
				}
			}
		})
	}
}

func TestUpstreamsMayChange(t *testing.T) {
	one, two := nameServer(t, says("one")), nameServer(t, says("two"))
	var current atomic.Pointer[netip.AddrPort]
	current.Store(&one)
	at := forwarder(t, particledns.Options{Upstreams: func() []netip.AddrPort { return []netip.AddrPort{*current.Load()} }})
	first := text(ask(t, "udp", at, query("example.org")))
	current.Store(&two)
	if second := text(ask(t, "udp", at, query("example.org"))); first != "one" || second != "two" {
		t.Errorf("answers %s, then %s", first, second)
	}
}

// The name server must see what the container sent, and the container what the
// name server sent, including what this program knows nothing about.
func TestNothingIsLost(t *testing.T) {
	seen := make(chan *dns.Msg, 1)
	reply := make(chan []byte, 1)
	server := nameServer(t, func(w dns.ResponseWriter, q *dns.Msg) {
		seen <- q
		m := new(dns.Msg).SetReply(q)
		m.AuthenticatedData, m.RecursionAvailable, m.Compress = true, true, true
		m.Answer = []dns.RR{
			&dns.TXT{Hdr: header(q), Txt: slices.Repeat([]string{strings.Repeat("x", 250)}, 6)}, // more than 512 bytes, the size without EDNS
			&dns.RFC3597{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: 65400, Class: dns.ClassINET}, Rdata: "c0ffee"},
		}
		m.SetEdns0(4000, true)
		m.IsEdns0().Option = append(m.IsEdns0().Option, &dns.EDNS0_EDE{InfoCode: dns.ExtendedErrorCodeStaleAnswer, ExtraText: "stale"})
		raw, err := m.Pack()
		if err != nil {
			t.Error(err)
		}
		reply <- raw
		w.Write(raw)
	})
	at := forwarder(t, particledns.Options{}, server)
	for _, network := range []string{"udp", "tcp"} {
		q := query("MiXeD.example.org")
		q.CheckingDisabled, q.AuthenticatedData = true, true
		q.SetEdns0(3000, true)
		q.IsEdns0().Option = append(q.IsEdns0().Option, &dns.EDNS0_LOCAL{Code: 65001, Data: []byte("mark")})
		conn, err := net.Dial(network, at.String())
		if err != nil {
			t.Fatal(err)
		}
		c := &dns.Conn{Conn: conn, UDPSize: 3000}
		c.SetDeadline(time.Now().Add(patience))
		if err := c.WriteMsg(q); err != nil {
			t.Fatal(err)
		}
		got, err := c.ReadMsgHeader(nil)
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()

		received, sent := <-seen, <-reply
		if received.Id == q.Id {
			t.Errorf("%s: the name server saw the container's id", network)
		}
		received.Id = q.Id
		if received.String() != q.String() {
			t.Errorf("%s: the name server saw\n%s\nthe container sent\n%s", network, received, q)
		}
		if id := uint16(got[0])<<8 | uint16(got[1]); id != q.Id || !bytes.Equal(got[2:], sent[2:]) {
			t.Errorf("%s: reply with id %d, want %d\n%x\nthe name server sent\n%x", network, id, q.Id, got, sent)
		}
	}
}

func TestLargeAnswerGoesOverTCP(t *testing.T) {
	long := strings.Repeat("x", 250)
	var overUDP, overTCP atomic.Int32
	server := nameServer(t, func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		for range 200 {
			m.Answer = append(m.Answer, &dns.TXT{Hdr: header(q), Txt: []string{long}})
		}
		if w.RemoteAddr().Network() == "udp" {
			overUDP.Add(1)
			m.Truncate(dns.MinMsgSize)
		} else {
			overTCP.Add(1)
		}
		w.WriteMsg(m)
	})
	at := forwarder(t, particledns.Options{}, server)
	if m := ask(t, "udp", at, query("example.org")); !m.Truncated || overTCP.Load() != 0 {
		t.Errorf("over UDP: TC is %t after %d queries over TCP; want it passed on", m.Truncated, overTCP.Load())
	}
	if m := ask(t, "tcp", at, query("example.org")); m.Truncated || len(m.Answer) != 200 || overUDP.Load() != 1 {
		t.Errorf("over TCP: TC %t, %d records, %d queries over UDP", m.Truncated, len(m.Answer), overUDP.Load())
	}
}

func TestForgedAnswersAreIgnored(t *testing.T) {
	for _, network := range []string{"udp", "tcp"} {
		server := nameServer(t, func(w dns.ResponseWriter, q *dns.Msg) {
			forge := func(change func(*dns.Msg)) {
				m := new(dns.Msg).SetReply(q)
				m.Answer = []dns.RR{&dns.TXT{Hdr: header(q), Txt: []string{"forged"}}}
				change(m)
				w.WriteMsg(m)
			}
			if w.RemoteAddr().Network() == "tcp" {
				forge(func(m *dns.Msg) { m.Question[0].Name = "other.example.org." })
				return
			}
			forge(func(m *dns.Msg) { m.Id++ })
			forge(func(m *dns.Msg) { m.Response = false })
			forge(func(m *dns.Msg) { m.Question[0].Name = "other.example.org." })
			forge(func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeA })
			forge(func(m *dns.Msg) { m.Question = nil })
			w.Write([]byte("short"))
			says("true")(w, q)
		})
		want := "true"
		if network == "tcp" { // nobody else can write into the stream, so the server itself is wrong
			want = "SERVFAIL"
		}
		at := forwarder(t, particledns.Options{Timeout: patience}, server)
		if got := text(ask(t, network, at, query("example.org"))); got != want {
			t.Errorf("%s: %s, want %s", network, got, want)
		}
	}
}

func TestRefusalKeepsEDNS(t *testing.T) {
	at := forwarder(t, particledns.Options{})
	q := query("example.org")
	q.SetEdns0(1400, true)
	m := ask(t, "udp", at, q)
	if m.Rcode != dns.RcodeServerFailure || m.IsEdns0() == nil || !m.IsEdns0().Do() {
		t.Errorf("answer without name servers:\n%s", m)
	}
	if m := ask(t, "udp", at, query("example.org")); m.IsEdns0() != nil {
		t.Errorf("EDNS in the answer to a query without:\n%s", m)
	}
}

func TestWhatIsNotForwarded(t *testing.T) {
	server := nameServer(t, func(w dns.ResponseWriter, q *dns.Msg) {
		t.Errorf("the name server was asked:\n%s", q)
		rcode(dns.RcodeSuccess)(w, q)
	})
	at := forwarder(t, particledns.Options{}, server)
	transfer := new(dns.Msg).SetQuestion("example.org.", dns.TypeAXFR)
	if m := ask(t, "tcp", at, transfer); m.Rcode != dns.RcodeRefused {
		t.Errorf("zone transfer: %s", dns.RcodeToString[m.Rcode])
	}
	notify := new(dns.Msg).SetNotify("example.org.")
	if m := ask(t, "udp", at, notify); m.Rcode != dns.RcodeNotImplemented {
		t.Errorf("NOTIFY: %s", dns.RcodeToString[m.Rcode])
	}
}

func TestQueriesInFlightAreBounded(t *testing.T) {
	const bound = 3
	arrived, release := make(chan struct{}, bound), make(chan struct{})
	server := nameServer(t, func(w dns.ResponseWriter, q *dns.Msg) {
		arrived <- struct{}{}
		<-release
		says("late")(w, q)
	})
	at := forwarder(t, particledns.Options{Timeout: patience, MaxQueries: bound}, server)
	late := make(chan string, bound)
	for i := range bound {
		go func() { late <- text(ask(t, "udp", at, query(fmt.Sprintf("%d.example.org", i)))) }()
	}
	for range bound {
		<-arrived
	}
	if got := text(ask(t, "udp", at, query("example.org"))); got != "SERVFAIL" {
		t.Errorf("query beyond the bound: %s", got)
	}
	close(release)
	for range bound {
		if got := <-late; got != "late" {
			t.Errorf("query within the bound: %s", got)
		}
	}
	if got := text(ask(t, "udp", at, query("example.org"))); got != "late" {
		t.Errorf("query after the flood: %s", got)
	}
}

func TestConnectionsAreBounded(t *testing.T) {
	at := forwarder(t, particledns.Options{MaxQueries: 2}, nameServer(t, says("one")))
	dial := func() *dns.Conn {
		c, err := net.Dial("tcp", at.String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(patience))
		return &dns.Conn{Conn: c}
	}
	works := func(c *dns.Conn) error {
		if err := c.WriteMsg(query("example.org")); err != nil {
			return err
		}
		_, err := c.ReadMsg()
		return err
	}
	first, second := dial(), dial()
	for _, c := range []*dns.Conn{first, second, first} {
		if err := works(c); err != nil {
			t.Fatalf("connection within the bound: %v", err)
		}
	}
	third := dial()
	if _, err := third.Conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("connection beyond the bound: read gives %v, want EOF", err)
	}
	// Sooner or later the forwarder sees that a connection was closed.
	first.Close()
	for end := time.Now().Add(patience); works(dial()) != nil; {
		if time.Now().After(end) {
			t.Fatal("a closed connection still counts")
		}
	}
}

// A container that asks and never reads must not keep Serve from ending.
func TestClientThatDoesNotRead(t *testing.T) {
	var asked atomic.Int32
	server := nameServer(t, func(w dns.ResponseWriter, q *dns.Msg) {
		asked.Add(1)
		m := new(dns.Msg).SetReply(q)
		for range 220 {
			m.Answer = append(m.Answer, &dns.TXT{Hdr: header(q), Txt: []string{strings.Repeat("x", 250)}})
		}
		w.WriteMsg(m)
	})
	at := forwarder(t, particledns.Options{Timeout: time.Second / 5}, server)
	c, err := net.Dial("tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.(*net.TCPConn).SetReadBuffer(1)
	c.SetDeadline(time.Now().Add(patience))
	d := &dns.Conn{Conn: c}
	for err == nil { // until the forwarder cuts the connection
		err = d.WriteMsg(query("example.org"))
	}
	if errors.Is(err, os.ErrDeadlineExceeded) || asked.Load() == 0 {
		t.Errorf("after %d answers that were not read: %v", asked.Load(), err)
	}
}

func TestServeEndsWithQueriesInFlight(t *testing.T) {
	for _, network := range []string{"udp", "tcp"} {
		arrived, release := make(chan struct{}), make(chan struct{})
		server := nameServer(t, func(dns.ResponseWriter, *dns.Msg) { arrived <- struct{}{}; <-release })
		f := particledns.New(particledns.Options{Timeout: time.Hour, Upstreams: func() []netip.AddrPort { return []netip.AddrPort{server} }})
		pc, l, at := sockets(t)
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- f.Serve(ctx, pc, l) }()
		c, err := net.Dial(network, at.String())
		if err != nil {
			t.Fatal(err)
		}
		if err := (&dns.Conn{Conn: c}).WriteMsg(query("example.org")); err != nil {
			t.Fatal(err)
		}
		<-arrived
		cancel()
		if err := <-done; err != nil { // an hour too late if the query were waited for
			t.Errorf("%s: Serve = %v", network, err)
		}
		close(release)
		c.Close()
		if again, err := net.ListenPacket("udp", at.String()); err != nil {
			t.Errorf("the UDP socket is still open: %v", err)
		} else {
			again.Close()
		}
		if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("the TCP socket is still open: %v", err)
		}
	}
}

func TestServeEndsBeforeItStarts(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	pc, l, _ := sockets(t)
	if err := particledns.New(particledns.Options{}).Serve(ctx, pc, l); err != nil {
		t.Errorf("Serve = %v", err)
	}
}

func TestServeTellsOfABrokenSocket(t *testing.T) {
	for name, breaks := range map[string]func(net.PacketConn, net.Listener){
		"udp": func(pc net.PacketConn, _ net.Listener) { pc.Close() },
		"tcp": func(_ net.PacketConn, l net.Listener) { l.Close() },
	} {
		pc, l, _ := sockets(t)
		breaks(pc, l)
		err := particledns.New(particledns.Options{}).Serve(context.Background(), pc, l)
		var f *fault.Error
		if !errors.As(err, &f) || !errors.Is(err, net.ErrClosed) && !strings.Contains(err.Error(), "closed") {
			t.Errorf("%s: Serve = %v, want a fault that tells of the closed socket", name, err)
		}
	}
}

func TestDialIsUsed(t *testing.T) {
	server := nameServer(t, says("dialled"))
	var networks []string
	at := forwarder(t, particledns.Options{
		Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
			networks = append(networks, network+" "+addr)
			return (&net.Dialer{}).DialContext(ctx, network, server.String())
		},
	}, netip.MustParseAddrPort("127.0.0.53:53"))
	for _, network := range []string{"udp", "tcp"} {
		if got := text(ask(t, network, at, query("example.org"))); got != "dialled" {
			t.Errorf("%s: %s", network, got)
		}
	}
	if got := strings.Join(networks, ", "); got != "udp 127.0.0.53:53, tcp 127.0.0.53:53" {
		t.Errorf("dialled %s", got)
	}
}
