package main

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/docker/docker/api/types/network"

	"github.com/particle-net/particle/internal/fault"
)

// variant is a kind of network to start containers on.
type variant string

const (
	variantHost     variant = "host"
	variantNone     variant = "none"
	variantBridge   variant = "bridge"
	variantOverlay  variant = "overlay"
	variantParticle variant = "particle"
	variantOwn      variant = "own"
)

// parseVariants reads the list and puts host mode, which the ratios need, into it.
func parseVariants(list string) ([]variant, error) {
	known := []variant{variantHost, variantNone, variantBridge, variantOverlay, variantParticle, variantOwn}
	all := []variant{variantHost}
	for name := range strings.SplitSeq(list, ",") {
		v := variant(strings.TrimSpace(name))
		if !slices.Contains(known, v) {
			return nil, fault.New("choose variants", string(v), "no such variant", fmt.Sprintf("use some of %v", known))
		}
		if !slices.Contains(all, v) {
			all = append(all, v)
		}
	}
	return all, nil
}

// ready is the network's name for variants that Docker has one for from the start.
func (v variant) ready() bool { return v == variantHost || v == variantNone }

// reports tells whether containers of the variant can reach a collector.
func (v variant) reports() bool { return v != variantNone }

// ours tells whether the network is particle's.
func (v variant) ours() bool { return v == variantParticle || v == variantOwn }

// label is what the variant's containers bear, "" for nothing.
func (v variant) label() string {
	if v == variantOwn {
		return "particle.namespace=own"
	}
	return ""
}

// runtime is the OCI runtime for the variant's containers. Those of the others name
// runc: particle's, once installed, is the engine's default and stands in front of
// all containers, and what particle is compared with is Docker without it.
func (v variant) runtime() string {
	if v.ours() {
		return ""
	}
	return "runc"
}

// maxRounds is how many rounds have a pool of their own.
const maxRounds = 49

// options describe the network of a round (0 is the warm-up). Every round has its
// own pool, because a network may outlive its round (see removeNetwork), and a /16,
// because the default of Docker's overlay would hold only 253 containers.
func (v variant) options(round int) network.CreateOptions {
	second := map[variant]int{variantParticle: 50, variantBridge: 100, variantOverlay: 150, variantOwn: 200}[v] + round
	o := network.CreateOptions{
		Driver: string(v),
		IPAM:   &network.IPAM{Driver: "default", Config: []network.IPAMConfig{{Subnet: fmt.Sprintf("10.%d.0.0/16", second)}}},
	}
	switch {
	case v.ours():
		o.Driver, o.IPAM.Driver = "particle", "particle"
	case v == variantOverlay:
		o.Attachable = true
	}
	return o
}

// loopback is the address container i reports from in host mode.
func loopback(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{127, 1, byte(i >> 8), byte(i)})
}
