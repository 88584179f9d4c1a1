package dns

import (
	"testing"

	"github.com/miekg/dns"
)

// Whatever a name server sends must not stop the program, and only what
// carries the query's id may pass.
func FuzzAnswers(f *testing.F) {
	q := new(dns.Msg).SetQuestion("example.org.", dns.TypeA)
	q.Id = 0x1234
	query, err := q.Pack()
	if err != nil {
		f.Fatal(err)
	}
	reply, err := new(dns.Msg).SetRcode(q, dns.RcodeNameError).Pack()
	if err != nil {
		f.Fatal(err)
	}
	if !answers(reply, query, q) || answers(query, query, q) {
		f.Fatal("an answer is not told from a query")
	}
	f.Add(reply)
	f.Add(query)
	f.Fuzz(func(t *testing.T, reply []byte) {
		if answers(reply, query, q) && (len(reply) < 12 || reply[0] != 0x12 || reply[1] != 0x34 || reply[2]&0x80 == 0) {
			t.Errorf("%x passes", reply)
		}
	})
}
