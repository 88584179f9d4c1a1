//go:build soak

package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/particle-net/particle/internal/lab"
)

// TestClusterUpgrade upgrades an etcd as docs/operations.md says, while containers come
// and go: one of three servers after the other gets the next release, and when all are
// well, the release after that. Hosts go from server to server on their own. No
// connection ends, no container fails to start, no address is given out twice, and no
// host thinks that anything was lost.
func TestClusterUpgrade(t *testing.T) {
	firstEngine(t, func(t *testing.T, engine string) {
		for _, release := range upgradePath { // built before anything waits for it
			if _, err := lab.FindEtcd(t.Context(), release, os.Stderr); err != nil {
				t.Fatal(err)
			}
		}
		c := newBrokenCluster(t, engine, func(b *bed) clusterStore {
			return newOtherStore(t, b.lab, lab.EtcdDebian, lab.EtcdDebian, lab.EtcdDebian)
		})
		c.suffer(c.upgrades())
		c.current()
		c.believes()
	})
}

// upgradePath is what follows the distribution's release.
var upgradePath = []string{lab.Etcd35, lab.Etcd36, lab.EtcdCurrent}

// upgrades are those of each server to each release.
func (c *brokenCluster) upgrades() (all []clusterFault) {
	etcd := c.store.(*otherStore)
	for _, release := range upgradePath {
		for server := range etcd.releases {
			name := fmt.Sprintf("server %d becomes etcd %s", server, release)
			all = append(all, clusterFault{name: name, strike: func(ctx context.Context) error {
				if server == 0 {
					if err := etcd.fills(ctx, 2*snapshots); err != nil {
						return err
					}
				}
				return etcd.upgrade(ctx, server, release, func() error { return comesAndGoes(ctx, c.beds) })
			}})
		}
	}
	return all
}

// upgrade stops a server, and has another release take over its data after meanwhile. All
// have to be well then.
func (s *otherStore) upgrade(ctx context.Context, server int, release string, meanwhile func() error) error {
	if err := s.fetch(ctx, release); err != nil { // which may take minutes
		return err
	}
	if _, err := s.lab.Internet().StopService(ctx, serverName(server), syscall.SIGTERM); err != nil {
		return err
	}
	s.releases[server] = release
	return errors.Join(meanwhile(), s.launch(ctx, server), s.well(ctx))
}

// fills writes so much that each server makes a snapshot, which the next release reads,
// and nothing older.
func (s *otherStore) fills(ctx context.Context, writes int) error {
	for i := range writes {
		if _, err := s.ctl(0).run(ctx, "put", mark, fmt.Sprint(i)); err != nil {
			return err
		}
	}
	return nil
}

// current fails if a server is not of the last release.
func (c *brokenCluster) current() {
	etcd := c.store.(*otherStore)
	for i, release := range etcd.releases {
		out, err := etcd.ctl(i).run(c.Context(), "endpoint", "status", "--write-out", "json")
		if err != nil || release != lab.EtcdCurrent || !strings.Contains(out, `"version":"`+release+`.`) {
			c.Errorf("server %d is not etcd %s: %v\n%s", i, lab.EtcdCurrent, err, out)
		}
	}
}
