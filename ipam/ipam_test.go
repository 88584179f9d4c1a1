package ipam_test

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/particle-net/particle/fabric"
	"github.com/particle-net/particle/internal/pluginhttp"
	"github.com/particle-net/particle/internal/pluginhttp/pluginhttptest"
	"github.com/particle-net/particle/ipam"
	"github.com/particle-net/particle/topology"
)

// recorder remembers what reached the domain.
type recorder struct {
	pool    fabric.PoolSpec
	address fabric.AddressSpec
	calls   []string
	err     error
}

func (r *recorder) RequestPool(_ context.Context, s fabric.PoolSpec) (fabric.Pool, error) {
	r.pool = s
	r.calls = append(r.calls, "request pool")
	return fabric.Pool{ID: "particle-1", Subnet: netip.MustParsePrefix("10.77.0.0/16")}, r.err
}
func (r *recorder) ReleasePool(_ context.Context, id topology.PoolID) error {
	r.calls = append(r.calls, "release pool "+string(id))
	return r.err
}
func (r *recorder) RequestAddress(_ context.Context, s fabric.AddressSpec) (netip.Prefix, error) {
	r.address = s
	r.calls = append(r.calls, "request address")
	return netip.MustParsePrefix("10.77.0.2/16"), r.err
}
func (r *recorder) ReleaseAddress(_ context.Context, id topology.PoolID, a netip.Addr) error {
	r.calls = append(r.calls, "release address "+a.String()+" of "+string(id))
	return r.err
}

func serve(t *testing.T) (*recorder, *pluginhttptest.Dockerd) {
	r := &recorder{}
	return r, pluginhttptest.New(t, func(s *pluginhttp.Server) { ipam.Register(s, r) })
}

func TestAnswers(t *testing.T) {
	for name, c := range map[string]struct{ method, body, want, call string }{
		"capabilities": {"IpamDriver.GetCapabilities", ``, `{"RequiresMACAddress":false}`, ""},
		"spaces":       {"IpamDriver.GetDefaultAddressSpaces", ``, `{"LocalDefaultAddressSpace":"particle","GlobalDefaultAddressSpace":"particle-global"}`, ""},
		"pool": {"IpamDriver.RequestPool", `{"AddressSpace":"particle","Pool":"10.77.0.0/16","SubPool":"","Options":null,"V6":false}`,
			`{"PoolID":"particle-1","Pool":"10.77.0.0/16","Data":null}`, "request pool"},
		"release pool": {"IpamDriver.ReleasePool", `{"PoolID":"particle-1"}`, `{}`, "release pool particle-1"},
		"address":      {"IpamDriver.RequestAddress", `{"PoolID":"particle-1","Address":"","Options":null}`, `{"Address":"10.77.0.2/16","Data":null}`, "request address"},
		"release":      {"IpamDriver.ReleaseAddress", `{"PoolID":"particle-1","Address":"10.77.0.9"}`, `{}`, "release address 10.77.0.9 of particle-1"},
	} {
		r, dockerd := serve(t)
		status, answer := dockerd.Call(c.method, c.body)
		if status != http.StatusOK || answer != c.want {
			t.Errorf("%s: %d %s, want %s", name, status, answer, c.want)
		}
		if got := strings.Join(r.calls, ";"); got != c.call {
			t.Errorf("%s: domain saw %q, want %q", name, got, c.call)
		}
	}
}

func TestRequestsAreParsed(t *testing.T) {
	r, dockerd := serve(t)
	dockerd.Call("IpamDriver.RequestPool", `{"AddressSpace":"particle","Pool":"10.77.5.0/16","SubPool":"10.77.1.7/24","Options":{},"V6":false}`)
	if want := (fabric.PoolSpec{Subnet: netip.MustParsePrefix("10.77.0.0/16"), Range: netip.MustParsePrefix("10.77.1.0/24")}); r.pool != want {
		t.Errorf("got %+v, want %+v", r.pool, want)
	}
	dockerd.Call("IpamDriver.RequestPool", `{"AddressSpace":"particle","Pool":"10.77.0.0/16","Options":{"particle.network":"aaaaaaaaaaaaaaaa"},"V6":false}`)
	if want := (fabric.PoolSpec{Subnet: netip.MustParsePrefix("10.77.0.0/16"), Shared: "aaaaaaaaaaaaaaaa"}); r.pool != want {
		t.Errorf("got %+v, want %+v", r.pool, want)
	}
	dockerd.Call("IpamDriver.RequestPool", `{"AddressSpace":"particle","Pool":"","SubPool":"","Options":{},"V6":true}`)
	if want := (fabric.PoolSpec{V6: true}); r.pool != want {
		t.Errorf("got %+v, want %+v", r.pool, want)
	}
	dockerd.Call("IpamDriver.RequestAddress", `{"PoolID":"particle-1","Address":"10.77.0.1","Options":{"RequestAddressType":"com.docker.network.gateway"}}`)
	if want := (fabric.AddressSpec{Pool: "particle-1", Addr: netip.MustParseAddr("10.77.0.1"), Gateway: true}); r.address != want {
		t.Errorf("got %+v, want %+v", r.address, want)
	}
	dockerd.Call("IpamDriver.RequestAddress", `{"PoolID":"particle-1","Address":"","Options":{"com.docker.network.endpoint.name":"great_lamport"}}`)
	if want := (fabric.AddressSpec{Pool: "particle-1", Name: "great_lamport"}); r.address != want {
		t.Errorf("got %+v, want %+v", r.address, want)
	}
}

func TestRefusals(t *testing.T) {
	for name, c := range map[string]struct{ method, body, want string }{
		"option":       {"IpamDriver.RequestPool", `{"Pool":"10.77.0.0/16","Options":{"color":"red"}}`, "--ipam-opt color: the particle IPAM driver has no options; omit it"},
		"network":      {"IpamDriver.RequestPool", `{"Pool":"10.77.0.0/16","Options":{"particle.network":"jobs"}}`, "--ipam-opt particle.network"},
		"subnet":       {"IpamDriver.RequestPool", `{"Pool":"10.77.0.0"}`, "--subnet 10.77.0.0"},
		"no subnet":    {"IpamDriver.RequestPool", `{"Pool":"0.0.0.0/0"}`, "a network needs a subnet of its own"},
		"range alone":  {"IpamDriver.RequestPool", `{"SubPool":"10.77.0.0/24"}`, "it needs a --subnet around it"},
		"wrong family": {"IpamDriver.RequestPool", `{"Pool":"10.77.0.0/16","V6":true}`, "other IP version"},
		"address":      {"IpamDriver.RequestAddress", `{"PoolID":"p","Address":"10.77.0.0/16"}`, "request address 10.77.0.0/16"},
		"release":      {"IpamDriver.ReleaseAddress", `{"PoolID":"p","Address":""}`, "release address"},
		"empty, again": {"IpamDriver.RequestAddress", ``, "the body is empty"},
	} {
		r, dockerd := serve(t)
		status, answer := dockerd.Call(c.method, c.body)
		if status != http.StatusInternalServerError || !strings.Contains(answer, c.want) || !strings.Contains(answer, `"Error":"`) {
			t.Errorf("%s: %d %s, want %s", name, status, answer, c.want)
		}
		if len(r.calls) != 0 {
			t.Errorf("%s: reached the domain: %v", name, r.calls)
		}
	}
	r, dockerd := serve(t)
	r.err = errors.New("no room; make some")
	if status, answer := dockerd.Call("IpamDriver.ReleasePool", `{"PoolID":"p"}`); status != http.StatusInternalServerError || !strings.Contains(answer, r.err.Error()) {
		t.Errorf("%d %s", status, answer)
	}
}

func FuzzRequestPool(f *testing.F) {
	f.Add(`{"Pool":"10.77.0.0/16","SubPool":"10.77.1.0/24","Options":{"a":"b"},"V6":true}`)
	f.Fuzz(func(t *testing.T, body string) {
		r, dockerd := serve(t)
		status, _ := dockerd.Call("IpamDriver.RequestPool", body)
		if (status == http.StatusOK) != (len(r.calls) == 1) {
			t.Errorf("status %d after %v", status, r.calls)
		}
	})
}
