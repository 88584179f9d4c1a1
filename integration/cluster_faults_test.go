package integration

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
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
	// What a store is to the hosts is not the engine's; each engine has its dockerd and its
	// plugins killed, hosts cut off, and stores that are compacted, wiped and away.
	for _, store := range []struct {
		name   string
		engine string // on which it is shown, unless all are
		make   func(*testing.T, *bed) clusterStore
		faults func(*brokenCluster) []clusterFault
	}{
		{"own", lastEngine(), func(_ *testing.T, b *bed) clusterStore { return ownStore{b} }, (*brokenCluster).ownFaults},
		{"three", engines()[0], func(_ *testing.T, b *bed) clusterStore { return threeStores{ownStore{b}} }, (*brokenCluster).threeFaults},
		{"other", engines()[0], func(t *testing.T, b *bed) clusterStore { return newOtherStore(t, b.lab, lab.EtcdDebian) }, (*brokenCluster).otherFaults},
	} {
		for _, engine := range engines() {
			if engine != store.engine && !soak {
				continue
			}
			t.Run(engine+"/"+store.name, func(t *testing.T) {
				t.Parallel()
				c := newBrokenCluster(t, engine, func(b *bed) clusterStore { return store.make(t, b) })
				c.suffer(store.faults(c))
			})
		}
	}
}

// brokenCluster is a cluster of three hosts, which talk to each other on one
// network.
type brokenCluster struct {
	*testing.T
	beds    []*bed
	store   clusterStore
	history *addressHistory
	held    map[string][]netip.Addr // by containers that stay
	talkers []*talker
	churns  []*churn
	gate    sync.RWMutex // of the churns
	windows []window
	// expected are the prefixes to which nobody needs a route any more.
	expected               []netip.Prefix
	reported, reportedWays map[*bed]int // of the lost routes of a host
	lost                   []loss
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
	long   bool   // in a soak alone: another store has suffered it, or a like one
	strike func(context.Context) error
}

func newBrokenCluster(t *testing.T, engine string, store func(*bed) clusterStore) *brokenCluster {
	t.Helper()
	first := newTestBed(t, lab.Options{Engine: engine, Hosts: 3, LiveRestore: true})
	return brokenClusterOf(t, first, store(first))
}

// brokenClusterOf makes it of three hosts that have the plugin.
func brokenClusterOf(t *testing.T, first *bed, store clusterStore) *brokenCluster {
	t.Helper()
	c := &brokenCluster{T: t, beds: first.all(), store: store, history: newHistory(), held: map[string][]netip.Addr{}, reported: map[*bed]int{}, reportedWays: map[*bed]int{}}
	t.Cleanup(c.explain)
	if err := c.store.join(t.Context(), c.beds); err != nil {
		t.Fatal(err)
	}
	if err := first.shares(t.Context(), "jobs", "--ipv6", "--subnet", "10.77.0.0/16", "--subnet", "fd00:77::/64", "-o", "particle.block=30"); err != nil {
		t.Fatal(err)
	}
	for i, b := range c.beds {
		// One address is not of its host's block, and so is claimed for itself.
		if err := errors.Join(c.serve(b, i == 1), b.logRoutes(t.Context(), "jobs")); err != nil {
			t.Fatal(err)
		}
	}
	for i, b := range c.beds {
		next, last := c.beds[(i+1)%3], c.beds[(i+2)%3]
		// By now all have both families of all.
		err := errors.Join(c.talk(b, next, 4, false), c.talk(b, next, 6, true), c.talk(b, last, 6, false), c.talk(b, last, 4, true))
		if err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// explain says what the hosts think of themselves after a failure.
func (c *brokenCluster) explain() {
	if !c.Failed() {
		return
	}
	for _, b := range c.beds {
		out, err := b.particle(context.Background(), "status")
		c.Logf("%s: %v\n%s", b.host.Name(), err, out)
		if log, err := os.ReadFile(b.host.ServiceLog("dockerd")); err == nil {
			lines := slices.DeleteFunc(strings.Split(string(log), "\n"), func(l string) bool {
				return !strings.Contains(l, "net=jobs") && !strings.Contains(l, "store")
			})
			c.Logf("%s said:\n%s", b.host.Name(), strings.Join(lines[max(0, len(lines)-80):], "\n"))
		}
	}
}

// suffer has one fault after the other happen.
func (c *brokenCluster) suffer(faults []clusterFault) {
	ctx := c.Context()
	churning, stop := context.WithCancel(ctx)
	var group sync.WaitGroup
	defer group.Wait()
	defer stop()
	for i, b := range c.beds {
		ch := &churn{bed: b, client: i, history: c.history, gate: &c.gate}
		c.churns = append(c.churns, ch)
		group.Go(func() { ch.run(churning, "jobs") })
	}
	for _, fault := range faults {
		if !fault.long || soak {
			c.suffers(ctx, fault)
		}
	}
	stop()
	group.Wait()
	c.history.check(c.T)
	c.kept()
	c.starts()
	if err := c.agrees(ctx); err != nil { // what went last is forgotten, too
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

// suffers has one fault happen, and sees that all is well again after it.
func (c *brokenCluster) suffers(ctx context.Context, fault clusterFault) {
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
	well := time.Now()
	c.windows = append(c.windows, window{began, well, fault.on})
	pause, lost := c.alive(fault.name)
	for _, way := range c.keepRoutes(fault.name) { // no host leaves, and each has containers
		c.Errorf("%s: a way to a host was lost on %s", fault.name, way)
	}
	if err := c.agrees(ctx, contended...); err != nil {
		c.Errorf("%s: a minute after all was well: %v", fault.name, err)
	}
	c.Logf("%s: %s, and %s until all is well, %s more until all routes are right; longest silence %s, %d datagrams lost", fault.name,
		struck.Sub(began).Round(time.Millisecond), well.Sub(struck).Round(time.Millisecond), time.Since(well).Round(time.Millisecond), pause, lost)
}

// staleFor is how long a route to what nobody has any more may stay.
const staleFor = time.Minute

// agrees waits until all hosts have the routes to all that others have claimed, and no
// other, unless within late: the point of it is that this takes no longer than staleFor.
// No container comes or goes meanwhile.
func (c *brokenCluster) agrees(ctx context.Context, late ...netip.Prefix) error {
	c.gate.Lock()
	defer c.gate.Unlock()
	ctx, cancel := context.WithTimeout(ctx, staleFor)
	defer cancel()
	return until(ctx, func() error { return agree(context.WithoutCancel(ctx), "jobs", c.beds, c.beds, late...) })
}

// settled waits until a host sees all others and a new container of it reaches
// all.
func (c *brokenCluster) settled(ctx context.Context, b *bed) error {
	if err := b.alive(ctx, len(c.beds)); err != nil {
		return fmt.Errorf("%s: %w", b.host.Name(), err)
	}
	all := ""
	for _, to := range c.beds {
		for _, a := range c.held[c.server(to)] {
			all += " " + a.String()
		}
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
// on any since it was asked last, and how many datagrams were lost since then.
func (c *brokenCluster) alive(fault string) (longest time.Duration, lost int) {
	heard := make([]told, len(c.talkers))
	var asking sync.WaitGroup
	for i, k := range c.talkers {
		asking.Go(func() {
			before := k.asked
			var err error
			if heard[i], err = k.goesOn(c.Context()); err != nil {
				c.Errorf("%s: %v", fault, err)
			}
			heard[i].lost -= before.lost
		})
	}
	asking.Wait()
	for _, h := range heard {
		longest, lost = max(longest, h.longest), lost+h.lost
	}
	return longest, lost
}

// loss is a route that a host lost during a fault.
type loss struct {
	fault string
	host  *bed
	lostRoute
}

// keepRoutes notes the routes that were taken away, to which somebody may have been, and
// tells which ways to other hosts were: those go when hosts do, and only then.
func (c *brokenCluster) keepRoutes(fault string) (gone []string) {
	for _, b := range c.beds {
		lost, ways, err := b.lostRoutes()
		if err != nil {
			c.Error(err)
			continue
		}
		for _, r := range lost[min(c.reported[b], len(lost)):] {
			if !slices.Contains(c.expected, r.to) && !slices.ContainsFunc(contended, r.to.Overlaps) {
				c.lost = append(c.lost, loss{fault, b, r})
			}
		}
		c.reported[b] = len(lost)
		for _, way := range ways[min(c.reportedWays[b], len(ways)):] {
			gone = append(gone, b.host.Name()+": "+way)
		}
		c.reportedWays[b] = len(ways)
	}
	return gone
}

// kept fails for each route that was taken away though containers had addresses there. A
// block of which nobody had any is one that its host had been told it has not got, since
// the answer to its claim was lost, and that it has given back.
func (c *brokenCluster) kept() {
	for _, l := range c.lost {
		if c.history.used(l.to, l.at) {
			c.Errorf("%s: %s lost its route to %s", l.fault, l.host.host.Name(), l.to)
		}
	}
}

// starts fails for each container that did not start, on a host that was well.
func (c *brokenCluster) starts() {
	got, taken := 0, 0
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
		c.Logf("%s: %d containers, %d starts failed while it was not well; of wishes %d came true, %d did not", ch.bed.host.Name(), ch.cycles, excused, ch.got, ch.taken)
		if ch.cycles-len(ch.refused)-ch.taken < 5 {
			c.Errorf("%s started hardly any container", ch.bed.host.Name())
		}
		got, taken = got+ch.got, taken+ch.taken
	}
	if got == 0 || taken == 0 {
		c.Errorf("%d wishes came true, and %d did not for a rival", got, taken)
	}
}

// talker is a container that keeps a connection to one on another host.
type talker struct {
	bed, to *bed
	family  int
	udp     bool
	name    string
	asked   told // when it was asked last
}

// told is what a talker has said of its connection.
type told struct {
	answers, lost int           // since it began
	longest       time.Duration // silence since it was asked
}

// goesOn waits for an answer, and tells what there was since the last time.
func (k *talker) goesOn(ctx context.Context) (told, error) {
	before, err := k.heard(ctx)
	if err != nil {
		return told{}, err
	}
	now := before
	err = until(ctx, func() (err error) {
		// It says something each second, and Docker's commands cost more than it does.
		if out, err := k.bed.command(ctx, "sh", "-c", programs.cli.Path+" logs -f --tail 0 "+k.name+" 2>&1 | head -n 1"); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		now, err = k.heard(ctx)
		if err == nil && now.answers == before.answers {
			err = fmt.Errorf("connection of %s on %s: silent after %d answers", k.name, k.bed.host.Name(), now.answers)
		}
		return err
	})
	k.asked = now
	return now, err
}

// heard says what it has told. The connection lives.
func (k *talker) heard(ctx context.Context) (all told, err error) {
	out, err := k.bed.docker(ctx, "inspect", "-f", "{{.State.Running}}", k.name)
	if err != nil {
		return all, err
	}
	logs, err := k.bed.command(ctx, "sh", "-c", programs.cli.Path+" logs "+k.name+" 2>&1")
	if err != nil || out != "true" {
		return all, fmt.Errorf("connection of %s on %s: %w: %s", k.name, k.bed.host.Name(), errors.Join(err, errors.New("ended")), logs)
	}
	for line := range strings.Lines(logs) {
		var longest string
		if _, err := fmt.Sscanf(line, "%d answers, %d lost, the longest silence %s", &all.answers, &all.lost, &longest); err != nil {
			continue
		}
		d, err := time.ParseDuration(longest)
		if err != nil {
			return all, err
		}
		if all.answers > k.asked.answers {
			all.longest = max(all.longest, d)
		}
	}
	return all, nil
}

// stays starts a container that is there until drop.
func (c *brokenCluster) stays(b *bed, name string, args ...string) error {
	i, from := slices.Index(c.beds, b), time.Now()
	all, err := b.holds(c.Context(), name, append([]string{"--network", "jobs"}, args...)...)
	if err != nil {
		return err
	}
	by := b.host.Name() + "/" + name
	c.history.take(all, i, by, from)
	c.held[by] = all
	return nil
}

// drop removes it. It may have ended any time since from.
func (c *brokenCluster) drop(b *bed, name string, from time.Time) error {
	if err := until(c.Context(), func() error { return b.gone(c.Context(), name) }); err != nil {
		return err
	}
	by := b.host.Name() + "/" + name
	c.history.give(c.held[by], slices.Index(c.beds, b), by, from)
	delete(c.held, by)
	return nil
}

// server is a host's, by whom it is held.
func (c *brokenCluster) server(b *bed) string { return b.host.Name() + "/echo" }

// serve starts a server on a host.
func (c *brokenCluster) serve(b *bed, wished bool) error {
	var args []string
	if wished {
		args = []string{"--ip", "10.77.200.1"}
	}
	return c.stays(b, "echo", append(args, lab.TestImage, "probe", "echo", "-listen", "[::]:7")...)
}

// talk starts a container that talks to the server of another host.
func (c *brokenCluster) talk(b, to *bed, family int, udp bool) error {
	k := &talker{bed: b, to: to, family: family, udp: udp, name: fmt.Sprintf("talk-%s-%d-%t", to.host.Name(), family, udp)}
	at := c.held[c.server(to)][map[int]int{4: 0, 6: 1}[family]]
	args := []string{lab.TestImage, "probe", "talk", netip.AddrPortFrom(at, 7).String(), "-timeout", "2m"}
	if udp {
		args = append(args, "-udp")
	}
	c.talkers = append(c.talkers, k)
	return c.stays(b, k.name, args...)
}
