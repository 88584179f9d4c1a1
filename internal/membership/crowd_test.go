package membership_test

import (
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/particle-net/particle/control/controltest/etcdtest"
)

// held counts the connections that the other end keeps.
func held(t *testing.T, conns []net.Conn) (n int) {
	t.Helper()
	for _, c := range conns {
		if err := c.SetReadDeadline(time.Now().Add(time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
			n++
		}
	}
	return n
}

// Who holds connections open at the enrolment port has few of them, and keeps no other
// host from joining.
func TestCrowdAtTheEnrolmentPort(t *testing.T) {
	port := etcdtest.FreePorts(t)
	h1 := newHost(t, "h1", "127.0.0.1", port)
	made := h1.init()
	crowd := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.66:0"))}
	var conns []net.Conn
	for range 200 {
		c, err := crowd.DialContext(t.Context(), "tcp", made.Address.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		conns = append(conns, c)
	}
	eventually(t, "an end of most of the connections", func() bool { return held(t, conns) <= 32 })
	if n := held(t, conns); n == 0 {
		t.Error("no connection is left: an address may have some")
	}
	h2 := newHost(t, "h2", "127.0.0.2", port)
	h2.join(made, false)
	for _, c := range conns {
		_ = c.Close()
	}
	eventually(t, "room for the crowd again", func() bool {
		c, err := crowd.DialContext(t.Context(), "tcp", made.Address.String())
		if err != nil {
			return false
		}
		defer c.Close()
		return held(t, []net.Conn{c}) == 1
	})
}

// A request that is longer than any is not kept in memory.
func TestEndlessRequest(t *testing.T) {
	made := newHost(t, "h1", "127.0.0.1", etcdtest.FreePorts(t)).init()
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	defer client.CloseIdleConnections()
	body := `{"secret":"` + strings.Repeat("a", 1<<19) + `"}`
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+made.Address.String()+"/particle/v1/join", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusRequestEntityTooLarge {
		t.Errorf("a request of %d bytes: %s", len(body), resp.Status)
	}
}

// A connection carries one request at a time: of HTTP/2 one would be as good as hundreds,
// and no host of the cluster speaks it here.
func TestOneRequestAConnection(t *testing.T) {
	made := newHost(t, "h1", "127.0.0.1", etcdtest.FreePorts(t)).init()
	c, err := tls.Dial("tcp", made.Address.String(), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2", "http/1.1"}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got := c.ConnectionState().NegotiatedProtocol; got == "h2" {
		t.Errorf("the enrolment port speaks %s", got)
	}
}
