package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// ask puts a query to one name server after the other. Like the C library, it
// goes on to the next when a server is silent, and also when it answers
// SERVFAIL, REFUSED or NOTIMP, which tell of the server and not of the name;
// the first such answer stands if no server has a better one. It reports false
// if there is no answer at all.
func (f *Forwarder) ask(ctx context.Context, network string, q *dns.Msg) (reply []byte, ok bool) {
	query, err := q.Pack()
	if err != nil {
		return nil, false
	}
	var refused []byte
	for _, server := range f.opt.Upstreams() {
		// A new id for each try: an attacker who sees the container's query
		// does not know ours.
		binary.BigEndian.PutUint16(query, dns.Id())
		reply, err := f.exchange(ctx, network, server, query, q)
		if ctx.Err() != nil {
			return nil, false
		}
		if err != nil {
			continue
		}
		binary.BigEndian.PutUint16(reply, q.Id)
		switch reply[3] & 0xf { // RCODE, RFC 1035 section 4.1.1
		case dns.RcodeServerFailure, dns.RcodeRefused, dns.RcodeNotImplemented:
			if refused == nil {
				refused = reply
			}
		default:
			return reply, true
		}
	}
	return refused, refused != nil
}

// exchange sends the packed query q to one name server and returns its answer
// as it came.
func (f *Forwarder) exchange(ctx context.Context, network string, server netip.AddrPort, query []byte, q *dns.Msg) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, f.opt.Timeout)
	defer cancel()
	raw, err := f.opt.Dial(ctx, network, server.String())
	if err != nil {
		return nil, err
	}
	defer raw.Close()
	unblock := context.AfterFunc(ctx, func() { raw.SetDeadline(time.Unix(1, 0)) })
	defer unblock()

	conn := &dns.Conn{Conn: raw}
	if opt := q.IsEdns0(); opt != nil {
		conn.UDPSize = opt.UDPSize() // what the container takes is what the server may send
	}
	if _, err := conn.Write(query); err != nil {
		return nil, err
	}
	for {
		reply, err := conn.ReadMsgHeader(nil)
		switch {
		case err == nil && answers(reply, query, q):
			return reply, nil
		case errors.Is(err, dns.ErrShortRead) || err == nil && network == "udp":
			// Not our answer: late, or forged. Ours may still come.
		case err == nil:
			return nil, dns.ErrId
		default:
			return nil, err
		}
	}
}

// answers reports whether reply is one to the question of query, whose unpacked
// form is q.
func answers(reply, query []byte, q *dns.Msg) bool {
	if len(reply) < 12 || reply[0] != query[0] || reply[1] != query[1] {
		return false
	}
	var m dns.Msg
	// An error may lie in the records, which the container judges for itself:
	// header and question are unpacked before.
	err := m.Unpack(reply)
	if !m.Response || m.Opcode != q.Opcode {
		return false
	}
	if len(m.Question) == 0 {
		// Servers may refuse without repeating the question, but not assert
		// anything.
		return err == nil && m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError
	}
	got, want := m.Question[0], q.Question[0]
	return len(m.Question) == 1 && got.Qtype == want.Qtype && got.Qclass == want.Qclass &&
		strings.EqualFold(got.Name, want.Name)
}
