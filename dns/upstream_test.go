package dns_test

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"go.uber.org/goleak"

	particledns "github.com/particle-net/particle/dns"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds what should happen at once; no test waits for it to pass.
const patience = 20 * time.Second

// sockets opens UDP and TCP on one port of the loopback.
func sockets(t testing.TB) (net.PacketConn, net.Listener, netip.AddrPort) {
	t.Helper()
	for {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		at := l.Addr().(*net.TCPAddr).AddrPort()
		pc, err := net.ListenPacket("udp", at.String())
		if err == nil {
			return pc, l, at
		}
		l.Close() // another process has the UDP port of that number
	}
}

// nameServer runs a real DNS server for the length of the test.
func nameServer(t testing.TB, h dns.HandlerFunc) netip.AddrPort {
	t.Helper()
	pc, l, at := sockets(t)
	var wg sync.WaitGroup
	t.Cleanup(wg.Wait) // runs last, after the Shutdowns
	for _, s := range []*dns.Server{{PacketConn: pc, Handler: h, UDPSize: 4096}, {Listener: l, Handler: h}} {
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		wg.Go(func() {
			if err := s.ActivateAndServe(); err != nil {
				t.Errorf("name server: %v", err)
			}
		})
		<-started
		t.Cleanup(func() { s.Shutdown() })
	}
	return at
}

// silent is a name server that answers nothing.
func silent(t testing.TB) netip.AddrPort {
	t.Helper()
	pc, l, at := sockets(t)
	t.Cleanup(func() { pc.Close(); l.Close() })
	return at
}

// absent is an address where nobody listens.
func absent(t testing.TB) netip.AddrPort {
	t.Helper()
	pc, l, at := sockets(t)
	pc.Close()
	l.Close()
	return at
}

// says answers every query with one TXT record.
func says(text string) dns.HandlerFunc {
	return func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		m.Answer = []dns.RR{&dns.TXT{Hdr: header(q), Txt: []string{text}}}
		w.WriteMsg(m)
	}
}

func header(q *dns.Msg) dns.RR_Header {
	return dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: 60}
}

func rcode(code int) dns.HandlerFunc {
	return func(w dns.ResponseWriter, q *dns.Msg) { w.WriteMsg(new(dns.Msg).SetRcode(q, code)) }
}

// forwarder serves a Forwarder for the length of the test.
func forwarder(t testing.TB, opt particledns.Options, upstreams ...netip.AddrPort) netip.AddrPort {
	t.Helper()
	if opt.Upstreams == nil {
		opt.Upstreams = func() []netip.AddrPort { return upstreams }
	}
	pc, l, at := sockets(t)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- particledns.New(opt).Serve(ctx, pc, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return at
}

func query(name string) *dns.Msg { return new(dns.Msg).SetQuestion(dns.Fqdn(name), dns.TypeTXT) }

// ask sends one query as a container would.
func ask(t testing.TB, network string, at netip.AddrPort, q *dns.Msg) *dns.Msg {
	t.Helper()
	c := &dns.Client{Net: network, Timeout: patience}
	m, _, err := c.Exchange(q, at.String())
	if err != nil {
		t.Fatalf("%s query: %v", network, err)
	}
	return m
}

// text is the TXT record of an answer, or else its response code.
func text(m *dns.Msg) string {
	if len(m.Answer) == 1 {
		if txt, ok := m.Answer[0].(*dns.TXT); ok {
			return txt.Txt[0]
		}
	}
	return dns.RcodeToString[m.Rcode]
}
