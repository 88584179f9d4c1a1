package membership_test

import (
	"bufio"
	"fmt"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/particle-net/particle/control/controltest/etcdtest"
	"github.com/particle-net/particle/control/enrol"
	"github.com/particle-net/particle/control/server"
	"github.com/particle-net/particle/internal/membership"
	"github.com/particle-net/particle/topology"
)

// said is how many bytes the store has sent in answers.
func said(t *testing.T, c *membership.Connection) (bytes float64) {
	t.Helper()
	caller := &http.Client{Transport: &http.Transport{TLSClientConfig: c.TLS.Clone(), DisableKeepAlives: true}}
	got, err := caller.Get(c.Endpoints[0] + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer got.Body.Close()
	for lines := bufio.NewScanner(got.Body); lines.Scan(); {
		if text, ok := strings.CutPrefix(lines.Text(), "etcd_network_client_grpc_sent_bytes_total "); ok {
			if bytes, err = strconv.ParseFloat(text, 64); err != nil {
				t.Fatal(err)
			}
			return bytes
		}
	}
	t.Fatal("the store does not tell how much it has sent")
	return 0
}

// Each of a thousand hosts asks once a minute who the servers are. What a server reads to
// tell it does not grow with the hosts that the register has.
func TestAskingForServersOfManyHosts(t *testing.T) {
	t.Parallel()
	h1 := newHost(t, "h1", "127.0.0.1", etcdtest.FreePorts(t))
	made := h1.init()
	c := h1.endpoints(1)
	client, err := server.Dial(server.Target{Endpoints: c.Endpoints, TLS: c.TLS})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	certificate := enrol.Certificate{Serial: strings.Repeat("f", 32), NotAfter: time.Now().Add(time.Hour)}
	for i := range 1000 {
		h := enrol.Host{
			ID: topology.NodeID(fmt.Sprintf("%032x", i)), Name: fmt.Sprintf("h%d", i), Address: netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), Port: 7790,
			Version: "1.0", Joined: time.Now(), Certificates: []enrol.Certificate{certificate},
		}
		if _, err := client.Register().Enter(t.Context(), h); err != nil {
			t.Fatal(err)
		}
	}
	asking := enrol.Caller{TLS: c.TLS, Hello: enrol.Hello{Name: "h1", Address: made.Address.Addr(), Port: made.Address.Port(), Version: "1.0"}}
	before := said(t, c)
	const times = 100
	for range times {
		state, err := asking.State(t.Context(), made.Address)
		if err != nil {
			t.Fatal(err)
		}
		if len(state.Servers) != 1 || state.Servers[0].ID != h1.Node() {
			t.Fatalf("the servers are %v", state.Servers)
		}
	}
	if each := (said(t, c) - before) / times; each > 10_000 {
		t.Errorf("for one answer the store has sent %.0f bytes", each)
	}
}
