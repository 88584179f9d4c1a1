package integration

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/particle-net/particle/internal/lab"
)

// TestClusterFaults breaks one part of a cluster after the other while
// connections live and containers come and go on all hosts. No connection ends,
// no route that somebody needs is taken away, no address is given out twice,
// containers start wherever Docker and the plugin run, and in the end all routes
// are what the hosts have claimed.
func TestClusterFaults(t *testing.T) {
	t.Parallel()
	for _, engine := range engines() {
		t.Run(engine+"/own", func(t *testing.T) {
			t.Parallel()
			c := newBrokenCluster(t, engine, func(b *bed) clusterStore { return ownStore{b} })
			c.suffer(c.ownFaults())
		})
		t.Run(engine+"/other", func(t *testing.T) {
			t.Parallel()
			c := newBrokenCluster(t, engine, func(b *bed) clusterStore { return newOtherStore(t, b.lab) })
			c.suffer(c.otherFaults())
		})
	}
}

// brokenCluster is a cluster of three hosts, which talk to each other on one
// network.
type brokenCluster struct {
	*testing.T
	beds    []*bed
	store   clusterStore
	history *addressHistory
	servers map[*bed]netip.Addr
	talkers []*talker
	churns  []*churn
	windows []window
	// expected are the prefixes to which nobody needs a route any more.
	expected []netip.Prefix
	reported map[*bed]int // of the lost routes of a host
}

// window is a time in which containers may fail to start on some hosts.
type window struct {
	from, to time.Time
	on       []*bed
}

// clusterFault is one thing that goes wrong and is put right again.
type clusterFault struct {
	name   string
	on     []*bed // where containers may fail to start meanwhile
	strike func(context.Context) error
}

func newBrokenCluster(t *testing.T, engine string, store func(*bed) clusterStore) *brokenCluster {
	t.Helper()
	first := newTestBed(t, lab.Options{Engine: engine, Hosts: 3, LiveRestore: true})
	c := &brokenCluster{T: t, store: store(first), history: newHistory(), servers: map[*bed]netip.Addr{}, reported: map[*bed]int{}}
	for _, host := range first.lab.Hosts() {
		c.beds = append(c.beds, &bed{lab: first.lab, host: host, held: first.held})
	}
	if err := c.store.join(t.Context(), c.beds); err != nil {
		t.Fatal(err)
	}
	first.must(t, "network", "create", "-d", "particle", "--ipam-driver", "particle", "--subnet", "10.77.0.0/16", "-o", "particle.block=28", "jobs")
	for i, b := range c.beds {
		b.mustCome(t, "network on "+b.host.Name(), func() error {
			_, err := b.network(t.Context(), "jobs")
			return err
		})
		// One address is not of its host's block, and so is claimed for itself.
		if err := errors.Join(c.serve(i, i == 1), b.logRoutes(t.Context(), "jobs")); err != nil {
			t.Fatal(err)
		}
	}
	for _, b := range c.beds {
		for _, to := range c.beds {
			if b != to {
				c.talk(b, to)
			}
		}
	}
	return c
}

// suffer has one fault after the other happen.
func (c *brokenCluster) suffer(faults []clusterFault) {
	ctx := c.Context()
	churning, stop := context.WithCancel(ctx)
	var group sync.WaitGroup
	defer group.Wait()
	defer stop()
	for i, b := range c.beds {
		ch := &churn{bed: b, client: i, history: c.history}
		c.churns = append(c.churns, ch)
		group.Go(func() { ch.run(churning, "jobs") })
	}
	for _, fault := range faults {
		began := time.Now()
		if err := fault.strike(ctx); err != nil {
			c.Fatalf("%s: %v", fault.name, err)
		}
		struck := time.Now()
		var settling errgroup.Group
		for _, b := range c.beds {
			settling.Go(func() error { return c.settled(ctx, b) })
		}
		if err := settling.Wait(); err != nil {
			c.Fatalf("%s: %v", fault.name, err)
		}
		c.windows = append(c.windows, window{began, time.Now(), fault.on})
		pause := c.alive(fault.name)
		c.keepRoutes(fault.name)
		c.Logf("%s: %s, and %s until all is well; longest silence %s", fault.name,
			struck.Sub(began).Round(time.Millisecond), time.Since(struck).Round(time.Millisecond), pause)
	}
	stop()
	group.Wait()
	c.history.check(c.T)
	c.starts()
	if err := until(ctx, func() error { return agree(ctx, "jobs", c.beds, c.beds) }); err != nil {
		c.Error(err)
	}
	err := c.beds[0].each(func(b *bed) error {
		if err := b.clear(ctx); err != nil {
			return err
		}
		return until(ctx, func() error { return b.clean(ctx) })
	})
	if err != nil {
		c.Error(err)
	}
}

// settled waits until a host sees all others and a new container of it reaches
// all.
func (c *brokenCluster) settled(ctx context.Context, b *bed) error {
	if err := b.alive(ctx, len(c.beds)); err != nil {
		return fmt.Errorf("%s: %w", b.host.Name(), err)
	}
	all := ""
	for _, a := range c.servers {
		all += " " + a.String()
	}
	err := until(ctx, func() error {
		_, err := b.docker(ctx, "run", "--rm", "--network", "jobs", lab.TestImage, "sh", "-c",
			"for a in"+all+"; do echo here | nc -w 5 $a 7 | grep here || exit 1; done")
		return err
	})
	if err != nil {
		return fmt.Errorf("from %s: %w", b.host.Name(), err)
	}
	return nil
}

// alive fails for each connection that is no more, and tells the longest silence
// on any since it was asked last.
func (c *brokenCluster) alive(fault string) (silence time.Duration) {
	longest := make([]time.Duration, len(c.talkers))
	var asking sync.WaitGroup
	for i, k := range c.talkers {
		asking.Go(func() {
			var err error
			if longest[i], err = k.goesOn(c.Context()); err != nil {
				c.Errorf("%s: %v", fault, err)
			}
		})
	}
	asking.Wait()
	return slices.Max(longest)
}

// keepRoutes fails for each route that was taken away and that somebody needs.
func (c *brokenCluster) keepRoutes(fault string) {
	for _, b := range c.beds {
		lost, err := b.lostRoutes()
		if err != nil {
			c.Error(err)
			continue
		}
		for _, p := range lost[min(c.reported[b], len(lost)):] {
			if !slices.Contains(c.expected, p) {
				c.Errorf("%s: %s lost its route to %s", fault, b.host.Name(), p)
			}
		}
		c.reported[b] = len(lost)
	}
}

// starts fails for each container that did not start, on a host that was well.
func (c *brokenCluster) starts() {
	for _, ch := range c.churns {
		excused := 0
		for _, r := range ch.refused {
			if slices.ContainsFunc(c.windows, func(w window) bool {
				return r.to.After(w.from) && r.from.Before(w.to) && slices.Contains(w.on, ch.bed)
			}) {
				excused++
				continue
			}
			c.Errorf("on %s, which was well: %v", ch.bed.host.Name(), r.err)
		}
		c.Logf("%s: %d containers, %d starts failed while it was not well", ch.bed.host.Name(), ch.cycles, excused)
		if ch.cycles-len(ch.refused) < 5 {
			c.Errorf("%s started hardly any container", ch.bed.host.Name())
		}
	}
}

// talker is a container that keeps a connection to one on another host.
type talker struct {
	bed, to *bed
	name    string
	asked   int // answers when it was asked last
}

// goesOn waits for an answer, and tells how long the longest took since the last
// time.
func (k *talker) goesOn(ctx context.Context) (longest time.Duration, err error) {
	before, _, err := k.heard(ctx)
	if err != nil {
		return 0, err
	}
	answers := before
	err = until(ctx, func() (err error) {
		answers, longest, err = k.heard(ctx)
		if err == nil && answers == before {
			err = fmt.Errorf("connection of %s on %s: silent after %d answers", k.name, k.bed.host.Name(), answers)
		}
		return err
	})
	k.asked = answers
	return longest, err
}

// heard says how many answers there were, and the longest that one took since
// the number asked. The connection lives.
func (k *talker) heard(ctx context.Context) (answers int, longest time.Duration, err error) {
	out, err := k.bed.docker(ctx, "inspect", "-f", "{{.State.Running}}", k.name)
	if err != nil {
		return 0, 0, err
	}
	logs, err := k.bed.command(ctx, "sh", "-c", programs.cli.Path+" logs "+k.name+" 2>&1")
	if err != nil || out != "true" {
		return 0, 0, fmt.Errorf("connection of %s on %s: %w: %s", k.name, k.bed.host.Name(), errors.Join(err, errors.New("ended")), logs)
	}
	for line := range strings.Lines(logs) {
		var n int
		var took string
		if _, err := fmt.Sscanf(line, "%d answers, the longest after %s", &n, &took); err != nil {
			continue
		}
		d, err := time.ParseDuration(took)
		if err != nil {
			return 0, 0, err
		}
		if answers = n; n > k.asked {
			longest = max(longest, d)
		}
	}
	return answers, longest, nil
}

// serve starts a server on a host.
func (c *brokenCluster) serve(i int, wished bool) error {
	b, from := c.beds[i], time.Now()
	args := []string{"--network", "jobs"}
	if wished {
		args = append(args, "--ip", fmt.Sprintf("10.77.200.%d", i+1))
	}
	name := "echo-" + b.host.Name()
	a, err := b.holds(c.Context(), name, append(args, lab.TestImage, "probe", "echo", "-listen", "0.0.0.0:7")...)
	if err != nil {
		return err
	}
	c.history.record(a, i, hold{true, name}, from, time.Now())
	c.servers[b] = a
	return nil
}

// talk starts a container that talks to the server of another host.
func (c *brokenCluster) talk(b, to *bed) {
	k := &talker{bed: b, to: to, name: "talk-" + to.host.Name()}
	b.must(c.T, "run", "-d", "--name", k.name, "--network", "jobs", lab.TestImage, "probe", "talk", c.servers[to].String()+":7", "-timeout", "2m")
	c.talkers = append(c.talkers, k)
}
