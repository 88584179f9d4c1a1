package integration

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/particle-net/particle/overlay"
)

// cmdForge sends a host's station on a network, which mesh has started, a VXLAN packet
// that is made by hand, from a node's own address: forge internet|HOST HOST NETWORK. It
// succeeds if the packet arrives.
func cmdForge(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 3 {
		ts.Fatalf("usage: [!] forge internet|HOST HOST NETWORK")
	}
	b, err := sessionOf(ts).bed.on(args[1])
	ts.Check(err)
	arrives, err := b.hears(context.Background(), args[0], args[2])
	ts.Check(err)
	if arrives == neg {
		ts.Fatalf("a packet from %s to %s arrives: %v", args[0], args[1], arrives)
	}
}

// hears says whether such a packet arrives. What a member sends later must arrive, so
// that nobody waits in vain, and the packet is known to be a good one. The first of two
// may wait for the host's link address, the second does not.
func (b *bed) hears(ctx context.Context, from, network string) (bool, error) {
	var heard string
	for i := range 2 {
		text := fmt.Sprintf("%s-%d", from, i)
		if err := b.forge(ctx, from, network, text); err != nil {
			return false, err
		}
		control := "control-" + text
		err := until(ctx, func() error {
			err := b.forge(ctx, b.another(from), network, control)
			if err == nil {
				heard, err = b.docker(ctx, "logs", stationName(network))
			}
			if err == nil && !strings.Contains(heard, control) {
				err = fmt.Errorf("%s does not hear %s either", b.host.Name(), b.another(from))
			}
			return err
		})
		if err != nil {
			return false, err
		}
	}
	return strings.Contains(heard, `"`+from+"-"), nil
}

// another host than this one and the named.
func (b *bed) another(named string) string {
	for _, host := range b.lab.Hosts() {
		if host.Name() != b.host.Name() && host.Name() != named {
			return host.Name()
		}
	}
	return ""
}

// forge has a node send the host a packet.
func (b *bed) forge(ctx context.Context, from, network, text string) error {
	n, err := b.network(ctx, network)
	if err != nil {
		return err
	}
	v4, _, err := b.addresses(ctx, stationName(network))
	if err != nil {
		return err
	}
	node, probe := b.lab.Internet(), program("probe") // it has the machine's files
	if from != node.Name() {
		host, err := b.lab.Host(from)
		if err != nil {
			return err
		}
		node, probe = host.Node, "/usr/local/bin/probe"
		if err := host.CopyIn(program("probe"), probe); err != nil {
			return err
		}
	}
	vtep := b.host.Addr4()
	_, err = node.Exec(ctx, probe, "forge", netip.AddrPortFrom(vtep, 4789).String(), "-vni", fmt.Sprint(n.VNI), "-mac", overlay.HardwareAddr(vtep).String(),
		"-source", "10.77.66.66:66", "-to", v4+":80", text)
	return err
}
