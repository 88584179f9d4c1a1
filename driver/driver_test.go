package driver_test

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/particle-net/particle/driver"
	"github.com/particle-net/particle/fabric"
	"github.com/particle-net/particle/internal/pluginhttp"
	"github.com/particle-net/particle/internal/pluginhttp/pluginhttptest"
	"github.com/particle-net/particle/topology"
)

// recorder remembers what reached the domain.
type recorder struct {
	network  fabric.NetworkSpec
	endpoint fabric.EndpointSpec
	calls    []string
	err      error
}

func (r *recorder) CreateNetwork(_ context.Context, s fabric.NetworkSpec) error {
	r.network = s
	return r.note("create network")
}
func (r *recorder) DeleteNetwork(_ context.Context, id topology.NetworkID) error {
	return r.note("delete network " + id.Short())
}
func (r *recorder) CreateEndpoint(_ context.Context, s fabric.EndpointSpec) error {
	r.endpoint = s
	return r.note("create endpoint")
}
func (r *recorder) Join(_ context.Context, n topology.NetworkID, e topology.EndpointID, key string) error {
	return r.note("join " + n.Short() + " " + e.Short() + " " + key)
}
func (r *recorder) Leave(_ context.Context, e topology.EndpointID) error {
	return r.note("leave " + e.Short())
}
func (r *recorder) DeleteEndpoint(_ context.Context, e topology.EndpointID) error {
	return r.note("delete endpoint " + e.Short())
}
func (r *recorder) note(call string) error {
	r.calls = append(r.calls, call)
	return r.err
}

const (
	nid = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	eid = "eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee"
)

func serve(t *testing.T) (*recorder, *pluginhttptest.Dockerd) {
	r := &recorder{}
	return r, pluginhttptest.New(t, func(s *pluginhttp.Server) { driver.Register(s, r) })
}

// The bodies are what Docker 20.10 and 28 send.
func TestAnswers(t *testing.T) {
	for name, c := range map[string]struct{ method, body, want, call string }{
		"activate":          {"Plugin.Activate", ``, `{"Implements":["NetworkDriver","IpamDriver"]}`, ""},
		"capabilities":      {"NetworkDriver.GetCapabilities", ``, `{"Scope":"local","ConnectivityScope":"local"}`, ""},
		"endpoint info":     {"NetworkDriver.EndpointOperInfo", `{"NetworkID":"` + nid + `","EndpointID":"` + eid + `"}`, `{"Value":{}}`, ""},
		"discovery":         {"NetworkDriver.DiscoverNew", `{"DiscoveryType":1,"DiscoveryData":{"Address":"192.0.2.1","BindAddress":"","Self":true}}`, `{}`, ""},
		"delete network":    {"NetworkDriver.DeleteNetwork", `{"NetworkID":"` + nid + `"}`, `{}`, "delete network aaaaaaaaaaaa"},
		"leave":             {"NetworkDriver.Leave", `{"NetworkID":"` + nid + `","EndpointID":"` + eid + `"}`, `{}`, "leave eeeeeeeeeeee"},
		"delete endpoint":   {"NetworkDriver.DeleteEndpoint", `{"NetworkID":"` + nid + `","EndpointID":"` + eid + `"}`, `{}`, "delete endpoint eeeeeeeeeeee"},
		"revoke, 28 and on": {"NetworkDriver.RevokeExternalConnectivity", `{"NetworkID":"` + nid + `","EndpointID":"` + eid + `"}`, `{}`, ""},
		"join moves nothing": {"NetworkDriver.Join",
			`{"NetworkID":"` + nid + `","EndpointID":"` + eid + `","SandboxKey":"/var/run/docker/netns/0123456789ab","Options":{"com.docker.network.endpoint.exposedports":[{"Proto":6,"Port":80}],"com.docker.network.portmap":[]}}`,
			`{"InterfaceName":{"SrcName":"","DstPrefix":""},"Gateway":"","GatewayIPv6":"","StaticRoutes":null,"DisableGatewayService":true}`,
			"join aaaaaaaaaaaa eeeeeeeeeeee /var/run/docker/netns/0123456789ab"},
		"create endpoint": {"NetworkDriver.CreateEndpoint",
			`{"NetworkID":"` + nid + `","EndpointID":"` + eid + `","Interface":{"Address":"10.77.0.9/16","AddressIPv6":"","MacAddress":""},"Options":{"com.docker.network.endpoint.exposedports":[{"Proto":6,"Port":80}],"com.docker.network.portmap":[],"com.docker.network.endpoint.dnsservers":["192.0.2.53"]}}`,
			`{"Interface":{"Address":"","AddressIPv6":"","MacAddress":""}}`, "create endpoint"},
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

func TestCreateNetworkIsParsed(t *testing.T) {
	r, dockerd := serve(t)
	status, answer := dockerd.Call("NetworkDriver.CreateNetwork", `{"NetworkID":"`+nid+`","Options":{
		"com.docker.network.enable_ipv4":true,"com.docker.network.enable_ipv6":true,"com.docker.network.internal":true,
		"com.docker.network.generic":{"particle.vni":"42","mtu":"1400","particle.scope":"cluster","particle.block":"26","particle.block6":"100","particle.guard":"seccomp","particle.network":"`+eid+`"}},
		"IPv4Data":[{"AddressSpace":"particle","Pool":"10.77.0.0/16","Gateway":"10.77.0.1/16","AuxAddresses":{"b":"10.77.0.6/16","a":"10.77.0.5/16"}}],
		"IPv6Data":[{"AddressSpace":"LocalDefault","Pool":"fd00:77::/64"}]}`)
	if status != http.StatusOK {
		t.Fatal(status, answer)
	}
	want := fabric.NetworkSpec{ID: nid, VNI: 42, MTU: 1400, Internal: true, Scope: fabric.ScopeCluster, Blocks: fabric.BlockSizes{IPv4: 26, IPv6: 100}, Guard: fabric.GuardSeccomp, Shared: eid, Subnets: []fabric.Subnet{
		{Subnet: netip.MustParsePrefix("10.77.0.0/16"), Managed: true, Gateway: netip.MustParseAddr("10.77.0.1"),
			Aux: []netip.Addr{netip.MustParseAddr("10.77.0.5"), netip.MustParseAddr("10.77.0.6")}},
		{Subnet: netip.MustParsePrefix("fd00:77::/64")},
	}}
	if diff := cmp.Diff(want, r.network, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
}

func TestEndpointAddressesAreParsed(t *testing.T) {
	r, dockerd := serve(t)
	status, answer := dockerd.Call("NetworkDriver.CreateEndpoint", `{"NetworkID":"`+nid+`","EndpointID":"`+eid+`",
		"Interface":{"Address":"10.77.0.9/16","AddressIPv6":"fd00:77::9/64","MacAddress":""},"Options":{}}`)
	if status != http.StatusOK {
		t.Fatal(status, answer)
	}
	want := fabric.EndpointSpec{ID: eid, Network: nid, IPv4: netip.MustParseAddr("10.77.0.9"), IPv6: netip.MustParseAddr("fd00:77::9")}
	if !reflect.DeepEqual(r.endpoint, want) {
		t.Errorf("got %+v, want %+v", r.endpoint, want)
	}
}

func TestMACAddress(t *testing.T) {
	for name, body := range map[string]string{
		"option": `{"NetworkID":"` + nid + `","EndpointID":"` + eid + `","Interface":{"Address":"10.77.0.9/16"},"Options":{"com.docker.network.endpoint.macaddress":"AkKsEQAC"}}`,
		"field":  `{"NetworkID":"` + nid + `","EndpointID":"` + eid + `","Interface":{"Address":"10.77.0.9/16","MacAddress":"02:42:ac:11:00:02"}}`,
	} {
		r, dockerd := serve(t)
		if status, answer := dockerd.Call("NetworkDriver.CreateEndpoint", body); status != http.StatusOK {
			t.Errorf("%s: %d %s", name, status, answer)
		}
		if got := r.endpoint.MAC.String(); got != "02:42:ac:11:00:02" {
			t.Errorf("%s: MAC %s", name, got)
		}
	}
}

// What is refused must reach the user with its reason, and the domain not at all.
func TestRefusals(t *testing.T) {
	network := func(options string) string {
		return `{"NetworkID":"` + nid + `","Options":{"com.docker.network.generic":` + options + `},"IPv4Data":[{"Pool":"10.77.0.0/16"}]}`
	}
	endpoint := func(options string) string {
		return `{"NetworkID":"` + nid + `","EndpointID":"` + eid + `","Interface":{"Address":"10.77.0.9/16"},"Options":` + options + `}`
	}
	for name, c := range map[string]struct{ method, body, want string }{
		"unknown option":      {"NetworkDriver.CreateNetwork", network(`{"color":"red"}`), "-o color=red: the particle driver has no such option; known options are mtu, com.docker.network.driver.mtu, particle.vni"},
		"VNI":                 {"NetworkDriver.CreateNetwork", network(`{"particle.vni":"16777216"}`), "not a number from 1 to 16777215"},
		"MTU":                 {"NetworkDriver.CreateNetwork", network(`{"mtu":"big"}`), "not a number of bytes"},
		"scope":               {"NetworkDriver.CreateNetwork", network(`{"particle.scope":"global"}`), "it is neither local nor cluster"},
		"guard":               {"NetworkDriver.CreateNetwork", network(`{"particle.guard":"off"}`), "it is neither bpf nor seccomp"},
		"block":               {"NetworkDriver.CreateNetwork", network(`{"particle.block":"33"}`), "not the length of a prefix, from 1 to 32"},
		"block6":              {"NetworkDriver.CreateNetwork", network(`{"particle.block6":"129"}`), "not the length of a prefix, from 1 to 128"},
		"id in the cluster":   {"NetworkDriver.CreateNetwork", network(`{"particle.network":"jobs"}`), "lower-case hex digits"},
		"two MTUs":            {"NetworkDriver.CreateNetwork", network(`{"mtu":"1400","com.docker.network.driver.mtu":"1300"}`), "differ"},
		"subnet":              {"NetworkDriver.CreateNetwork", `{"NetworkID":"` + nid + `","IPv4Data":[{"Pool":"10.77.0.0"}]}`, "read subnet"},
		"null subnet":         {"NetworkDriver.CreateNetwork", `{"NetworkID":"` + nid + `","IPv4Data":[null]}`, "Docker sent none"},
		"path as id":          {"NetworkDriver.DeleteNetwork", `{"NetworkID":"../../etc"}`, "lower-case hex digits"},
		"ports":               {"NetworkDriver.CreateEndpoint", endpoint(`{"com.docker.network.portmap":[{"Proto":6,"Port":80,"HostPort":8080}]}`), "published ports"},
		"MAC":                 {"NetworkDriver.CreateEndpoint", endpoint(`{"com.docker.network.endpoint.macaddress":"AkKsEQ"}`), "omit --mac-address"},
		"short MAC":           {"NetworkDriver.CreateEndpoint", endpoint(`{"com.docker.network.endpoint.macaddress":"AkKs"}`), "is not 6 bytes long; omit --mac-address"},
		"driver option":       {"NetworkDriver.CreateEndpoint", endpoint(`{"color":"red"}`), `no endpoint option \"color\"`},
		"link's settings":     {"NetworkDriver.CreateEndpoint", endpoint(`{"com.docker.network.endpoint.sysctls":"net.ipv4.conf.IFNAME.log_martians=1"}`), "by --sysctl"},
		"link's name":         {"NetworkDriver.CreateEndpoint", endpoint(`{"com.docker.network.endpoint.ifname":"job0"}`), "endpoint.ifname; omit it"},
		"empty body repeated": {"NetworkDriver.Join", ``, "the body is empty: Docker repeated a call"},
		"no JSON":             {"NetworkDriver.Join", `{`, "unexpected end of JSON input"},
	} {
		r, dockerd := serve(t)
		status, answer := dockerd.Call(c.method, c.body)
		if status != http.StatusInternalServerError || !strings.Contains(answer, c.want) || !strings.HasPrefix(answer, `{"Err":"`) {
			t.Errorf("%s: %d %s, want %s", name, status, answer, c.want)
		}
		if len(r.calls) != 0 {
			t.Errorf("%s: reached the domain: %v", name, r.calls)
		}
	}
}

func TestErrorsOfTheDomainReachDocker(t *testing.T) {
	r, dockerd := serve(t)
	r.err = errors.New("no room; make some")
	status, answer := dockerd.Call("NetworkDriver.Leave", `{"NetworkID":"`+nid+`","EndpointID":"`+eid+`"}`)
	if want := `{"Err":"no room; make some","Error":"no room; make some"}`; status != http.StatusInternalServerError || answer != want {
		t.Errorf("%d %s, want %s", status, answer, want)
	}
}

// No bytes that somebody sends to the socket may end the plugin.
func FuzzCreateEndpoint(f *testing.F) {
	f.Add(`{"NetworkID":"` + nid + `","EndpointID":"` + eid + `","Interface":{"Address":"10.77.0.9/16"},"Options":{"com.docker.network.portmap":[1]}}`)
	f.Add(`{"Interface":null,"Options":null}`)
	f.Fuzz(func(t *testing.T, body string) {
		r, dockerd := serve(t)
		status, _ := dockerd.Call("NetworkDriver.CreateEndpoint", body)
		if (status == http.StatusOK) != (len(r.calls) == 1) {
			t.Errorf("status %d after %v", status, r.calls)
		}
	})
}

func FuzzCreateNetwork(f *testing.F) {
	f.Add(`{"NetworkID":"` + nid + `","Options":{"com.docker.network.generic":{"mtu":7}},"IPv4Data":[{"Pool":"10.77.0.0/16","Gateway":"x","AuxAddresses":{"a":1}}],"IPv6Data":[null]}`)
	f.Fuzz(func(t *testing.T, body string) {
		r, dockerd := serve(t)
		status, _ := dockerd.Call("NetworkDriver.CreateNetwork", body)
		if (status == http.StatusOK) != (len(r.calls) == 1) {
			t.Errorf("status %d after %v", status, r.calls)
		}
	})
}
