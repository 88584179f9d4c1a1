package dns

import (
	"context"
	"net"
	"net/netip"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/errgroup"

	"github.com/particle-net/particle/internal/fault"
)

// Options of a Forwarder. Only Upstreams is required.
type Options struct {
	// Upstreams gives the name servers in the order in which they are asked.
	// It is called for each query, so that a changed resolv.conf takes effect,
	// and from several goroutines at once.
	Upstreams func() []netip.AddrPort

	// Dial opens the socket to a name server; network is "udp" or "tcp". What it
	// returns for "udp" must be a net.PacketConn too, as net.Dialer's result is.
	// Default: a net.Dialer, which dials from the namespace of the process.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)

	// Timeout bounds one try with one name server, and one write to a
	// container. Default 2 s: with two silent servers a third is still asked
	// within the 5 s after which a C library gives up (resolv.conf(5)).
	Timeout time.Duration

	// MaxQueries bounds, for each Serve, the queries in flight and the TCP
	// connections of containers. Default 1024.
	MaxQueries int
}

// Forwarder answers queries by asking the host's name servers. It is safe for
// concurrent use: one Forwarder can serve every tenant.
type Forwarder struct {
	opt Options
}

// New returns a Forwarder; it opens nothing.
func New(opt Options) *Forwarder {
	if opt.Dial == nil {
		opt.Dial = (&net.Dialer{}).DialContext
	}
	if opt.Timeout <= 0 {
		opt.Timeout = 2 * time.Second
	}
	if opt.MaxQueries <= 0 {
		opt.MaxQueries = 1024
	}
	return &Forwarder{opt: opt}
}

// Serve answers the queries that arrive on pc (UDP) and l (TCP) until ctx ends,
// and then returns nil. It returns an error only if a socket fails. In either
// case both sockets are closed and no goroutine is left when it returns.
// Queries in flight get no answer when ctx ends: a client asks again by itself,
// whereas SERVFAIL would make it give up while the plugin restarts.
func (f *Forwarder) Serve(ctx context.Context, pc net.PacketConn, l net.Listener) error {
	group, serving := errgroup.WithContext(ctx)
	t := &tenant{forwarder: f, ctx: serving, slots: make(chan struct{}, f.opt.MaxQueries)}
	for _, s := range []*dns.Server{
		{PacketConn: pc, Handler: t, UDPSize: dns.DefaultMsgSize},
		{Listener: newListener(l, f.opt.MaxQueries, f.opt.Timeout), Handler: t},
	} {
		run(serving, group, s)
	}
	err := group.Wait()
	pc.Close() // the library closes both, unless it fails early
	l.Close()
	if err == nil || ctx.Err() != nil {
		return nil
	}
	return &fault.Error{Op: "serve DNS on", On: pc.LocalAddr().String(), Err: err}
}

// run starts a server and its end. A server can be shut down only after it has
// started, which it tells by a callback.
func run(ctx context.Context, group *errgroup.Group, s *dns.Server) {
	started, ended := make(chan struct{}), make(chan struct{})
	s.NotifyStartedFunc = func() { close(started) }
	group.Go(func() error {
		defer close(ended)
		return s.ActivateAndServe()
	})
	group.Go(func() error {
		select {
		case <-started:
		case <-ended:
			return nil
		}
		select {
		case <-ctx.Done():
			// Without a deadline: ctx has ended, and every handler waits for
			// it, for Timeout at most.
			return s.Shutdown()
		case <-ended:
			return nil
		}
	})
}

// tenant handles the queries of one Serve.
type tenant struct {
	forwarder *Forwarder
	ctx       context.Context // of Serve; the library's handlers have none
	slots     chan struct{}   // one element for each query in flight
}

// ServeDNS answers one query.
func (t *tenant) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	select {
	case t.slots <- struct{}{}:
		defer func() { <-t.slots }()
	default:
		refuse(w, q, dns.RcodeServerFailure)
		return
	}
	switch {
	case q.Opcode != dns.OpcodeQuery || len(q.Question) != 1:
		refuse(w, q, dns.RcodeNotImplemented)
		return
	case q.Question[0].Qtype == dns.TypeAXFR || q.Question[0].Qtype == dns.TypeIXFR:
		refuse(w, q, dns.RcodeRefused) // a zone comes in many messages, and is not for resolvers
		return
	}
	reply, ok := t.forwarder.ask(t.ctx, w.RemoteAddr().Network(), q)
	switch {
	case ok:
		// A write that fails means that the container has gone: nobody to tell.
		_, _ = w.Write(reply)
	case t.ctx.Err() == nil:
		refuse(w, q, dns.RcodeServerFailure)
	}
}

// refuse answers without having asked anyone. RFC 6891 section 6.1.1 wants an
// OPT record in the answer to a query that has one.
func refuse(w dns.ResponseWriter, q *dns.Msg, rcode int) {
	m := new(dns.Msg).SetRcode(q, rcode)
	m.RecursionAvailable = true
	if opt := q.IsEdns0(); opt != nil {
		m.SetEdns0(dns.DefaultMsgSize, opt.Do())
	}
	_ = w.WriteMsg(m) // as above
}
