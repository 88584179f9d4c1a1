package engine

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/network"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/topology"
)

// SharedOption is the driver and IPAM option that tells our own driver which
// network of the cluster Docker is making.
const SharedOption = "particle.network"

// ErrNameTaken is the cause when Docker has another network of a name.
var ErrNameTaken = errors.New("another network of Docker has this name")

// ErrInUse is the cause when containers are connected to a network.
var ErrInUse = errors.New("containers are connected to it")

// Spec is a network in full: what `docker network create` was told, or is to be.
type Spec struct {
	ID       topology.NetworkID // Docker's; empty in Create
	Name     string
	Driver   string
	Ours     bool // driver and addresses are ours
	Created  time.Time
	Internal bool
	Options  map[string]string // without SharedOption
	Labels   map[string]string
	Shared   topology.SharedID // SharedOption's value, if any
	Subnets  []Subnet
}

// Subnet is one address range of a Spec.
type Subnet struct {
	Prefix  netip.Prefix
	Range   netip.Prefix // invalid: all of it
	Gateway netip.Addr   // invalid: Docker has named none
	Aux     map[string]netip.Addr
}

// Specs lists all of Docker's networks in full.
func (e *Engine) Specs(ctx context.Context) ([]Spec, error) {
	list, err := e.api.NetworkList(ctx, network.ListOptions{})
	if err != nil {
		return nil, explain("list Docker's networks", "", err)
	}
	all := make([]Spec, 0, len(list))
	for _, n := range list {
		all = append(all, e.spec(n))
	}
	return all, nil
}

func (e *Engine) spec(n network.Inspect) Spec {
	s := Spec{
		ID: topology.NetworkID(n.ID), Name: n.Name, Driver: n.Driver, Created: n.Created, Internal: n.Internal,
		Ours:    slices.Contains(e.drivers, n.Driver) && slices.Contains(e.drivers, n.IPAM.Driver),
		Options: maps.Clone(n.Options), Labels: n.Labels, Shared: topology.SharedID(n.Options[SharedOption]),
	}
	delete(s.Options, SharedOption)
	for _, c := range n.IPAM.Config {
		prefix, err := netip.ParsePrefix(c.Subnet)
		if err != nil {
			continue // another driver's business
		}
		subnet := Subnet{Prefix: prefix.Masked(), Aux: map[string]netip.Addr{}}
		if r, err := netip.ParsePrefix(c.IPRange); err == nil {
			subnet.Range = r.Masked()
		}
		subnet.Gateway = address(c.Gateway)
		for name, text := range c.AuxAddress {
			subnet.Aux[name] = address(text)
		}
		s.Subnets = append(s.Subnets, subnet)
	}
	return s
}

// address reads an address, which Docker writes with a prefix length at times.
func address(text string) netip.Addr {
	if p, err := netip.ParsePrefix(text); err == nil {
		return p.Addr()
	}
	a, _ := netip.ParseAddr(text) // invalid if there is none
	return a
}

// Create makes a network of our driver, whose addresses come from our IPAM. It
// waits for the driver's own answer. Causes: ErrNameTaken.
func (e *Engine) Create(ctx context.Context, driver string, s Spec) (topology.NetworkID, error) {
	ours := map[string]string{}
	if s.Shared != "" {
		ours[SharedOption] = string(s.Shared)
	}
	o := network.CreateOptions{
		Driver: driver, Internal: s.Internal, Labels: s.Labels,
		Options: maps.Clone(ours),
		IPAM:    &network.IPAM{Driver: driver, Options: ours},
	}
	maps.Copy(o.Options, s.Options)
	v4, v6 := false, false
	for _, subnet := range s.Subnets {
		v4, v6 = v4 || subnet.Prefix.Addr().Is4(), v6 || subnet.Prefix.Addr().Is6()
		o.IPAM.Config = append(o.IPAM.Config, subnet.config())
	}
	o.EnableIPv6 = &v6
	if !v4 {
		o.EnableIPv4 = &v4 // Docker before 28 knows no network without
	}
	resp, err := e.api.NetworkCreate(ctx, s.Name, o)
	switch {
	case errdefs.IsConflict(err):
		return "", &fault.Error{Op: "create network", On: s.Name, Err: ErrNameTaken,
			Fix: "remove that network, or rename it by making it anew"}
	case err != nil:
		return "", &fault.Error{Op: "create network", On: s.Name, Err: err}
	}
	return topology.NetworkID(resp.ID), nil
}

func (s Subnet) config() network.IPAMConfig {
	c := network.IPAMConfig{Subnet: s.Prefix.String(), AuxAddress: map[string]string{}}
	if s.Range.IsValid() && s.Range != s.Prefix {
		c.IPRange = s.Range.String()
	}
	if s.Gateway.IsValid() {
		c.Gateway = s.Gateway.String()
	}
	for name, a := range s.Aux {
		c.AuxAddress[name] = a.String()
	}
	return c
}

// Remove removes a network; one that is not there is success. Cause: ErrInUse.
func (e *Engine) Remove(ctx context.Context, id topology.NetworkID) error {
	err := e.api.NetworkRemove(ctx, string(id))
	switch {
	case err == nil, errdefs.IsNotFound(err):
		return nil
	case errdefs.IsPermissionDenied(err), errdefs.IsConflict(err): // 403 for active endpoints, in every version
		return &fault.Error{Op: "remove network", On: id.Short(), Err: ErrInUse}
	}
	return explain("remove network", id.Short(), err)
}

// Sort puts the subnets in the order that two lists of them are compared in.
func Sort(subnets []Subnet) {
	slices.SortFunc(subnets, func(a, b Subnet) int {
		return cmp.Or(cmp.Compare(a.Prefix.Addr().BitLen(), b.Prefix.Addr().BitLen()), a.Prefix.Compare(b.Prefix))
	})
}
