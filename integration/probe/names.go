package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// lookup resolves a name with Go's own resolver and prints the addresses sorted.
func lookup(ctx context.Context, out io.Writer, args []string) error {
	o, rest, err := parse(args)
	if err != nil {
		return err
	}
	if len(rest) != 1 {
		return errors.New("one name, please")
	}
	resolver := &net.Resolver{PreferGo: true}
	if o.server != "" {
		resolver.Dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, network, o.server)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	found, err := resolver.LookupHost(ctx, rest[0])
	if err != nil {
		return err
	}
	slices.Sort(found)
	_, err = fmt.Fprintln(out, strings.Join(found, "\n"))
	return err
}

// zone is what the DNS server knows: names with the final dot, in lower case.
type zone map[string][]netip.Addr

func parseZone(entries []string) (zone, error) {
	z := zone{}
	for _, e := range entries {
		name, text, ok := strings.Cut(e, "=")
		a, err := netip.ParseAddr(text)
		if !ok || err != nil {
			return nil, fmt.Errorf("%q is not NAME=ADDR", e)
		}
		name = strings.ToLower(dns.Fqdn(name))
		z[name] = append(z[name], a)
	}
	return z, nil
}

// answer is the reply to one query: NXDOMAIN for unknown names, an empty answer for
// a known name without an address of the family asked for.
func (z zone) answer(query *dns.Msg) *dns.Msg {
	reply := new(dns.Msg)
	reply.SetReply(query)
	reply.Authoritative = true
	for _, q := range query.Question {
		addrs, known := z[strings.ToLower(q.Name)]
		if !known {
			reply.Rcode = dns.RcodeNameError
		}
		for _, a := range addrs {
			head := dns.RR_Header{Name: q.Name, Class: dns.ClassINET, Ttl: 1}
			switch {
			case a.Is4() && q.Qtype == dns.TypeA:
				head.Rrtype = dns.TypeA
				reply.Answer = append(reply.Answer, &dns.A{Hdr: head, A: a.AsSlice()})
			case a.Is6() && q.Qtype == dns.TypeAAAA:
				head.Rrtype = dns.TypeAAAA
				reply.Answer = append(reply.Answer, &dns.AAAA{Hdr: head, AAAA: a.AsSlice()})
			}
		}
	}
	return reply
}

// serveDNS answers over UDP and TCP and prints each query it gets.
func serveDNS(ctx context.Context, out io.Writer, args []string) error {
	o, rest, err := parse(args)
	if err != nil {
		return err
	}
	z, err := parseZone(rest)
	if err != nil {
		return err
	}
	at, err := expand(o.listen)
	if err != nil {
		return err
	}
	var lc net.ListenConfig
	packets, err := lc.ListenPacket(ctx, "udp", at)
	if err != nil {
		return err
	}
	streams, err := lc.Listen(ctx, "tcp", packets.LocalAddr().String())
	if err != nil {
		packets.Close()
		return err
	}
	fmt.Fprintf(out, "listening on %s\n", packets.LocalAddr())
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, query *dns.Msg) {
		for _, q := range query.Question {
			fmt.Fprintf(out, "query %s %s from %s\n", q.Name, dns.TypeToString[q.Qtype], w.RemoteAddr())
		}
		_ = w.WriteMsg(z.answer(query)) // the asker may have left
	})
	failed := make(chan error, 2)
	for _, s := range []*dns.Server{{PacketConn: packets, Handler: handler}, {Listener: streams, Handler: handler}} {
		go func() { failed <- s.ActivateAndServe() }()
	}
	select {
	case err = <-failed:
	case <-ctx.Done():
	}
	packets.Close()
	streams.Close()
	return err
}
