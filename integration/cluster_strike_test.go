package integration

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/particle-net/particle/internal/lab"
)

// ownFaults are those of a cluster whose first host serves the store.
func (c *brokenCluster) ownFaults() []clusterFault {
	first, second, third := c.beds[0], c.beds[1], c.beds[2]
	return []clusterFault{
		{name: "the store is compacted and killed", strike: c.compact},
		{name: "a plugin is killed", on: []*bed{second}, strike: second.restartPlugin},
		{name: "the plugin that serves the store is killed", on: []*bed{first}, strike: first.restartPlugin},
		{name: "a dockerd is killed", on: []*bed{third}, strike: third.restartDockerd},
		{name: "a host is cut off", strike: third.cut},
		{name: "a host is cut off until it is suspect", strike: c.partSuspect},
		{name: "the store's host is cut off, and a plugin killed meanwhile", on: []*bed{second}, strike: func(ctx context.Context) error {
			return errors.Join(deserted(ctx, first.host.Cut, second, third), second.restartPlugin(ctx), c.startAll(ctx), first.host.Heal())
		}},
		{name: "one host cannot reach the store, which is compacted, and a plugin freezes", on: []*bed{first}, strike: c.missOut},
		{name: "the store's host is without power for long", on: []*bed{first}, strike: func(ctx context.Context) error {
			return c.reboot(ctx, first, func(ctx context.Context) error {
				return errors.Join(first.host.PowerOff(ctx), lasts(ctx, longOutage), second.startsOne(ctx), third.startsOne(ctx))
			})
		}},
		// From here on the store claims nothing new: some host may not have been there.
		{name: "the store is wiped", strike: c.store.wipe},
		{name: "a host reboots", on: []*bed{third}, strike: c.rebootThird},
	}
}

// otherFaults are those of a cluster whose store is an administrator's etcd.
func (c *brokenCluster) otherFaults() []clusterFault {
	first, second, third := c.beds[0], c.beds[1], c.beds[2]
	etcd := c.store.(*otherStore)
	return []clusterFault{
		{name: "the store is compacted and killed", strike: c.compact},
		{name: "the store is down, and a plugin and a dockerd are killed meanwhile", on: []*bed{second, third}, strike: func(ctx context.Context) error {
			err := deserted(ctx, func() error { return etcd.stop(ctx) }, c.beds...)
			var killing errgroup.Group
			killing.Go(func() error { return second.restartPlugin(ctx) })
			killing.Go(func() error { return third.restartDockerd(ctx) })
			return errors.Join(err, killing.Wait(), c.startAll(ctx), etcd.start(ctx))
		}},
		{name: "the store is down for long", long: true, strike: func(ctx context.Context) error {
			err := errors.Join(etcd.stop(ctx), lasts(ctx, longOutage), c.startAll(ctx))
			return errors.Join(err, etcd.start(ctx))
		}},
		{name: "one host cannot reach the store, which is compacted, and a plugin freezes", long: true, on: []*bed{first}, strike: c.missOut},
		{name: "the store is wiped", strike: etcd.wipe},
		{name: "a host reboots", on: []*bed{third}, strike: c.rebootThird},
	}
}

// threeFaults are those of a cluster whose hosts all serve the store.
func (c *brokenCluster) threeFaults() []clusterFault {
	ctx, stores := c.Context(), c.store.(threeStores)
	// leading does something to the host whose server leads, and waits until another's
	// does, and networks come and go again.
	leading := func(do, undo func(context.Context, *bed) error) func(context.Context) error {
		return func(ctx context.Context) error {
			leader, err := stores.leader(ctx, c.beds)
			if err != nil {
				return err
			}
			if err := do(ctx, leader); err != nil {
				return err
			}
			others := slices.DeleteFunc(slices.Clone(c.beds), func(b *bed) bool { return b == leader })
			_, err = stores.leader(ctx, others)
			err = errors.Join(err, c.startAll(ctx), comesAndGoes(ctx, others))
			return errors.Join(err, undo(ctx, leader))
		}
	}
	killed := func(kill func(*bed) error) func(context.Context) error {
		return func(ctx context.Context) error {
			leader, err := stores.leader(ctx, c.beds)
			if err != nil {
				return err
			}
			began := time.Now()
			err = kill(leader)
			c.windows = append(c.windows, window{began, time.Now(), []*bed{leader}})
			return errors.Join(err, comesAndGoes(ctx, c.beds))
		}
	}
	return []clusterFault{
		{name: "the server that leads is killed", strike: killed(func(b *bed) error { return ownStore{b}.kill(ctx) })},
		{name: "the plugin whose server leads is killed", long: true, strike: killed(func(b *bed) error { return b.restartPlugin(ctx) })},
		{name: "the server that leads is parted from the others", long: true, strike: leading(
			func(ctx context.Context, b *bed) error { return b.part(ctx, "-I") },
			func(ctx context.Context, b *bed) error { return b.part(ctx, "-D") })},
		{name: "the host whose server leads is cut off", strike: leading(
			func(_ context.Context, b *bed) error { return b.host.Cut() },
			func(_ context.Context, b *bed) error { return b.host.Heal() })},
	}
}

// part keeps a server from the other servers (-I), and from nobody else, or does so no
// more (-D).
func (b *bed) part(ctx context.Context, action string) error {
	const peers = "7792"
	_, errOut := b.host.Exec(ctx, "iptables", action, "OUTPUT", "-p", "tcp", "--dport", peers, "-j", "DROP")
	_, errIn := b.host.Exec(ctx, "iptables", action, "INPUT", "-p", "tcp", "--dport", peers, "-j", "DROP")
	return errors.Join(errOut, errIn)
}

// longOutage is longer than a host is silent before it is suspect and a withdrawn route
// is kept, of 30 s each.
const longOutage = 75 * time.Second

// lasts is how long a fault does.
func lasts(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// partSuspect takes the third host off the underlay until the others suspect it.
func (c *brokenCluster) partSuspect(ctx context.Context) error {
	third := c.beds[2]
	err := third.host.Cut()
	if err == nil {
		err = errors.Join(c.beds[0].suspects(ctx, third.host.Name()), c.startAll(ctx))
	}
	return errors.Join(err, third.host.Heal())
}

// compact has the store forget what its watchers have not asked for yet, and breaks
// their connections: the list that they begin anew with tells them what comes next.
func (c *brokenCluster) compact(ctx context.Context) error {
	second := c.beds[1]
	// Those who watch hosts and networks alone do not hear of an address.
	if _, err := second.docker(ctx, "run", "--rm", "--network", "jobs", "--ip", addressBefore.Addr().String(), lab.TestImage, "true"); err != nil {
		return err
	}
	c.expected = append(c.expected, addressBefore)
	if err := errors.Join(c.store.compact(ctx), c.store.kill(ctx)); err != nil {
		return err
	}
	return comesAndGoes(ctx, c.beds)
}

// comesAndGoes has a network made on the first of hosts, waits until it is on all, and
// removes it.
func comesAndGoes(ctx context.Context, hosts []*bed) error {
	err := until(ctx, func() error {
		_, err := hosts[0].docker(ctx, "network", "create", "-d", "particle", "--ipam-driver", "particle", "next")
		return err
	})
	if err == nil {
		var group errgroup.Group
		for _, b := range hosts {
			group.Go(func() error {
				return until(ctx, func() error {
					_, err := b.docker(ctx, "network", "inspect", "next")
					return err
				})
			})
		}
		err = group.Wait()
	}
	if err != nil {
		return err
	}
	_, err = hosts[0].docker(ctx, "network", "rm", "next")
	return err
}

// missOut keeps the third host from the store while that forgets what has changed
// meanwhile, and lets it come back while the first host's plugin is frozen for so
// long that its lease runs out.
func (c *brokenCluster) missOut(ctx context.Context) error {
	first, second := c.beds[0], c.beds[1]
	healed, err := c.keepAway(ctx, func() error { return c.store.compact(ctx) })
	if err != nil {
		return err
	}
	err = first.signalPlugin(ctx, syscall.SIGSTOP)
	if err == nil {
		err = errors.Join(c.forgotten(ctx, healed), second.suspects(ctx, first.host.Name()))
	}
	return errors.Join(err, first.signalPlugin(ctx, syscall.SIGCONT))
}

func (b *bed) restartDockerd(ctx context.Context) error {
	return errors.Join(b.host.KillDockerd(ctx), b.host.StartDockerd(ctx))
}

// cut takes the host off the underlay for as long as a container takes to start.
func (b *bed) cut(ctx context.Context) error {
	return errors.Join(b.host.Cut(), b.startsOne(ctx), b.host.Heal())
}

// startsOne says whether a container starts on the shared network.
func (b *bed) startsOne(ctx context.Context) error {
	_, err := b.docker(ctx, "run", "--rm", "--network", "jobs", lab.TestImage, "true")
	return err
}

func (c *brokenCluster) startAll(ctx context.Context) error {
	return c.beds[0].each(func(b *bed) error { return b.startsOne(ctx) })
}

// deserted waits until the plugins of hosts have noticed that the store does not
// answer, which do does to them.
func deserted(ctx context.Context, do func() error, on ...*bed) error {
	warnings := func(b *bed) (int, error) {
		log, err := os.ReadFile(b.host.ServiceLog("dockerd"))
		return strings.Count(string(log), "everything stays as it is"), err
	}
	before := map[*bed]int{}
	for _, b := range on {
		n, err := warnings(b)
		if err != nil {
			return err
		}
		before[b] = n
	}
	if err := do(); err != nil {
		return err
	}
	for _, b := range on {
		err := until(ctx, func() error {
			n, err := warnings(b)
			if err == nil && n == before[b] {
				err = fmt.Errorf("%s has not noticed that the store does not answer", b.host.Name())
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// suspects waits until the host takes another for lost.
func (b *bed) suspects(ctx context.Context, host string) error {
	return until(ctx, func() error {
		return prints(&session{bed: b}, []string{host + " .*suspect", "particle", "cluster", "status"})
	})
}

func (c *brokenCluster) rebootThird(ctx context.Context) error {
	third := c.beds[2]
	return c.reboot(ctx, third, third.host.PowerOff)
}

// reboot pulls the plug of a host, as off does, and boots it again. Its containers are
// gone, and with them their connections; new ones take their place.
func (c *brokenCluster) reboot(ctx context.Context, b *bed, off func(context.Context) error) error {
	from := time.Now()
	if err := errors.Join(off(ctx), b.host.Reboot(ctx)); err != nil {
		return err
	}
	gone, err := c.empty(b, from)
	if err = errors.Join(err, b.logRoutes(ctx, "jobs")); err == nil {
		err = c.serve(b, false)
	}
	for _, k := range gone {
		if err == nil {
			err = c.talk(k.bed, k.to, k.family, k.udp)
		}
	}
	return err
}

// What comes and goes while a host cannot hear of it.
var (
	addressBefore = netip.MustParsePrefix("10.77.200.100/32")
	addressAfter  = netip.MustParsePrefix("10.77.200.101/32")
)

// keepAway keeps the third host from the store, but from no other host, until it
// has noticed. The first host gives back an address meanwhile and takes another.
// It tells when all was well again.
func (c *brokenCluster) keepAway(ctx context.Context, meanwhile func() error) (healed time.Time, err error) {
	first, third := c.beds[0], c.beds[2]
	if _, err := first.holds(ctx, "before", "--network", "jobs", "--ip", addressBefore.Addr().String(), lab.TestImage, "probe", "sleep"); err != nil {
		return healed, err
	}
	if err := until(ctx, func() error { return third.reaches(ctx, addressBefore) }); err != nil {
		return healed, err
	}
	if err := deserted(ctx, func() error { return c.wall(ctx, third, "-I") }, third); err != nil {
		return healed, err
	}
	c.expected = append(c.expected, addressBefore)
	if err := first.gone(ctx, "before"); err != nil {
		return healed, err
	}
	if _, err := first.holds(ctx, "after", "--network", "jobs", "--ip", addressAfter.Addr().String(), lab.TestImage, "probe", "sleep"); err != nil {
		return healed, err
	}
	// It is in the store, then, and the host does not know.
	if err := until(ctx, func() error { return c.beds[1].reaches(ctx, addressAfter) }); err != nil {
		return healed, err
	}
	if err := errors.Join(meanwhile(), c.startAll(ctx)); err != nil {
		return healed, err
	}
	if third.reaches(ctx, addressAfter) == nil {
		return healed, errors.New("the host was not kept from the store")
	}
	err = c.wall(ctx, third, "-D")
	return time.Now(), err
}

// wall makes what keeps a host from the store and nothing else (-I), or takes it
// away (-D).
func (c *brokenCluster) wall(ctx context.Context, b *bed, action string) error {
	addr, ports := c.store.at()
	_, errOut := b.host.Exec(ctx, "iptables", action, "OUTPUT", "-p", "tcp", "-d", addr.String(), "--dport", ports, "-j", "DROP")
	_, errIn := b.host.Exec(ctx, "iptables", action, "INPUT", "-p", "tcp", "-s", addr.String(), "--sport", ports, "-j", "DROP")
	return errors.Join(errOut, errIn)
}

// reaches says whether the host has a route to a prefix.
func (b *bed) reaches(ctx context.Context, p netip.Prefix) error {
	routes, err := b.routes(ctx, "jobs")
	if _, ok := routes[p]; err == nil && !ok {
		err = fmt.Errorf("%s has no route to %s", b.host.Name(), p)
	}
	return err
}

// forgotten waits until the third host has heard of what keepAway has done. That
// a route stays for no longer than a minute is the point of it.
func (c *brokenCluster) forgotten(ctx context.Context, healed time.Time) error {
	ctx, cancel := context.WithDeadline(ctx, healed.Add(staleFor))
	defer cancel()
	third := c.beds[2]
	err := until(ctx, func() error {
		if third.reaches(ctx, addressBefore) == nil {
			return fmt.Errorf("%s still has a route to %s", third.host.Name(), addressBefore)
		}
		return third.reaches(ctx, addressAfter)
	})
	if err == nil {
		c.Logf("the routes are right %s after it was healed", time.Since(healed).Round(time.Millisecond))
	}
	return err
}
