package fabric_test

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/particle-net/particle/fabric"
)

// dual is a host with a network of both families, and what Docker asks of it.
type dual struct {
	t         *testing.T
	w         *world
	f         *fabric.Fabric
	four, six fabric.Pool
}

func newDual(t *testing.T, c fabric.Cluster) *dual {
	t.Helper()
	d := &dual{t: t, w: newWorld(t)}
	d.w.cluster = c
	d.f = d.w.open()
	d.four, d.six = d.pool("10.77.0.0/24"), d.pool("fd00:77::/64")
	err := d.f.CreateNetwork(ctx, fabric.NetworkSpec{ID: netID("a"), Subnets: []fabric.Subnet{
		{Subnet: d.four.Subnet, Managed: true}, {Subnet: d.six.Subnet, Managed: true}}})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func (d *dual) pool(subnet string) fabric.Pool {
	d.t.Helper()
	prefix := netip.MustParsePrefix(subnet)
	p, err := d.f.RequestPool(ctx, fabric.PoolSpec{Subnet: prefix, V6: prefix.Addr().Is6()})
	if err != nil {
		d.t.Fatal(err)
	}
	return p
}

// ask asks for an address; wish is empty if it may be any.
func (d *dual) ask(p fabric.Pool, wish string) netip.Addr {
	d.t.Helper()
	a, err := d.f.RequestAddress(ctx, spec(p, wish))
	if err != nil {
		d.t.Fatal(err)
	}
	return a.Addr()
}

// refuse asks for an address that another endpoint has.
func (d *dual) refuse(p fabric.Pool, wish string) {
	d.t.Helper()
	if a, err := d.f.RequestAddress(ctx, spec(p, wish)); err == nil {
		d.t.Errorf("%s was given twice", a)
	}
}

func spec(p fabric.Pool, wish string) fabric.AddressSpec {
	s := fabric.AddressSpec{Pool: p.ID}
	if wish != "" {
		s.Addr = netip.MustParseAddr(wish)
	}
	return s
}

// endpoint makes one that has what was asked for.
func (d *dual) endpoint(id string, four, six netip.Addr) {
	d.t.Helper()
	if err := d.f.CreateEndpoint(ctx, fabric.EndpointSpec{ID: epID(id), Network: netID("a"), IPv4: four, IPv6: six}); err != nil {
		d.t.Fatal(err)
	}
}

// used checks how many addresses of each family are handed out.
func (d *dual) used(when string, four, six int) {
	d.t.Helper()
	pools := d.f.View().Networks[0].Pools
	if got, want := fmt.Sprint(pools[0].Used, pools[1].Used), fmt.Sprint(four, six); got != want {
		d.t.Errorf("%s: %s addresses are used, want %s", when, got, want)
	}
}

// Docker does not give back the IPv4 address of an endpoint that got no IPv6 address.
func TestFirstAddressWithoutASecond(t *testing.T) {
	d := newDual(t, nil)
	d.endpoint("1", d.ask(d.four, ""), d.ask(d.six, "fd00:77::9"))
	d.used("at first", 1, 1)
	d.ask(d.four, "10.77.0.9")
	d.used("before the second was asked for", 2, 1)
	d.refuse(d.six, "fd00:77::9")
	d.used("when the second was refused", 1, 1)
	// Docker may refuse the second by itself, and goes on with another endpoint.
	d.ask(d.four, "10.77.0.9")
	again := d.ask(d.four, "10.77.0.9")
	d.used("when the next asks for it", 2, 1)
	d.endpoint("2", again, d.ask(d.six, ""))
	d.used("in the end", 2, 2)
}

// What an endpoint has, or Docker is about to give back, is no half.
func TestFirstAddressOfAnEndpoint(t *testing.T) {
	d := newDual(t, nil)
	alone := d.ask(d.four, "") // its container has IPv6 switched off
	d.endpoint("1", alone, netip.Addr{})
	d.refuse(d.six, "fd00:77::") // of nobody that Docker would ask for now
	d.used("with an endpoint", 1, 0)
	if err := d.f.DeleteEndpoint(ctx, epID("1")); err != nil {
		t.Fatal(err)
	}
	next := d.ask(d.four, "")
	d.used("before Docker gives the first one's back", 2, 0)
	d.endpoint("2", next, d.ask(d.six, ""))
	d.ask(d.four, "")
	d.ask(d.six, "fd00:77::9")
	d.refuse(d.six, "fd00:77::9")
	d.used("with a second", 3, 2)
}

// An address that was claimed from the cluster for itself is given back to it.
func TestFirstAddressIsGivenBackToTheCluster(t *testing.T) {
	c := &cluster{answer: fabric.Shared{VNI: 77, MTU: 1400, Claims: prefixes("10.77.0.16/28", "fd00:77::/112")}}
	d := newDual(t, c)
	d.endpoint("1", d.ask(d.four, ""), d.ask(d.six, "fd00:77::9"))
	d.ask(d.four, "10.77.0.200")
	if len(c.owned) != 1 {
		t.Fatalf("the cluster was asked for %v", c.owned)
	}
	d.refuse(d.six, "fd00:77::9")
	if len(c.owned) != 0 {
		t.Errorf("the cluster is given back all but %v", c.owned)
	}
}
