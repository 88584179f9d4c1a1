package integration

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"

	"github.com/particle-net/particle/internal/hostpath"
)

// clusterStore is where a cluster of lab hosts keeps its records.
type clusterStore interface {
	// join makes the hosts a cluster.
	join(context.Context, []*bed) error
	// kill ends the store as a crash does, and has it start again.
	kill(context.Context) error
	// wipe does the same, and the store has lost all it had.
	wipe(context.Context) error
	// compact has the store forget all changes up to now.
	compact(context.Context) error
	// at is where hosts reach it: an address and TCP ports, as iptables writes them.
	at() (addr netip.Addr, ports string)
}

// ownStore is served by the plugin of a host.
type ownStore struct{ *bed }

func (s ownStore) join(ctx context.Context, _ []*bed) error { return s.cluster(ctx) }

func (s ownStore) at() (netip.Addr, string) { return s.host.Addr4(), "7790:7792" }

// ctl is of a host, who has the rights of all hosts.
func (s ownStore) ctl() etcdctl {
	const files = hostpath.StateDir + "/cluster/"
	return etcdctl{
		node: s.host.Node, endpoint: "https://" + net.JoinHostPort(s.host.Addr4().String(), "7791"),
		authority: files + "ca.pem", cert: files + "node.pem", key: files + "node.key",
	}
}

func (s ownStore) compact(ctx context.Context) error { return s.ctl().compact(ctx) }

func (s ownStore) kill(ctx context.Context) error {
	before, err := s.pid(hasWord("cluster-store"))
	if err != nil {
		return err
	}
	if _, err := s.host.Exec(ctx, "kill", "-9", strconv.Itoa(before)); err != nil {
		return err
	}
	return until(ctx, func() error {
		now, err := s.pid(hasWord("cluster-store"))
		if err == nil && now == before {
			err = errors.New("the store is still being killed")
		}
		return err
	})
}

func (s ownStore) wipe(ctx context.Context) error {
	if _, err := s.host.Exec(ctx, "sh", "-c", "rm -rf "+hostpath.StateDir+"/cluster/etcd"); err != nil {
		return err
	}
	return s.kill(ctx)
}

// threeStores are served by the plugins of all hosts.
type threeStores struct{ ownStore }

func (s threeStores) join(ctx context.Context, hosts []*bed) error {
	if err := s.cluster(ctx); err != nil {
		return err
	}
	token, err := s.particle(ctx, "cluster", "token", "-q")
	if err != nil {
		return err
	}
	for _, b := range hosts[1:] { // one after the other, as the document has it
		if _, err := b.particle(ctx, "cluster", "join", s.host.Addr4().String(), "--token", token, "--server"); err != nil {
			return err
		}
	}
	_, err = s.leader(ctx, hosts)
	return err
}

// leader is the one of these hosts whose server all of them say leads.
func (s threeStores) leader(ctx context.Context, hosts []*bed) (leader *bed, err error) {
	err = until(ctx, func() error {
		leader = nil
		for _, asked := range hosts {
			out, err := asked.particle(ctx, "cluster", "status")
			if err != nil {
				return err
			}
			i := slices.IndexFunc(hosts, func(b *bed) bool {
				return regexp.MustCompile(regexp.QuoteMeta(b.host.Addr4().String()) + `:7791 +leader`).MatchString(out)
			})
			if i < 0 || leader != nil && leader != hosts[i] {
				return fmt.Errorf("%s: not one of %d servers leads:\n%s", asked.host.Name(), len(hosts), out)
			}
			leader = hosts[i]
		}
		return nil
	})
	return leader, err
}
