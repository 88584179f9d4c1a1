package integration

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/particle-net/particle/internal/lab"
)

// churn starts and stops containers on one host until told to end, and records
// when each address was held.
type churn struct {
	bed     *bed
	client  int
	history *addressHistory
	cycles  int
	refused []error // starts that failed
}

// addressHistory is what all hosts saw of all addresses.
type addressHistory struct {
	began time.Time
	mu    sync.Mutex
	ops   map[netip.Addr][]porcupine.Operation
}

// hold is an operation on one address: a container took it, or gave it back.
type hold struct {
	take bool
	by   string
}

func (h *addressHistory) record(a netip.Addr, client int, in hold, from, to time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ops[a] = append(h.ops[a], porcupine.Operation{
		ClientId: client, Input: in, Call: int64(from.Sub(h.began)), Return: int64(to.Sub(h.began)),
	})
}

// oneHolder is an address that at most one container holds at any time.
var oneHolder = porcupine.Model{
	Init: func() any { return "" },
	Step: func(state, input, _ any) (bool, any) {
		holder, in := state.(string), input.(hold)
		if in.take {
			return holder == "", in.by
		}
		return holder == in.by, ""
	},
	DescribeOperation: func(input, _ any) string { return fmt.Sprintf("%+v", input) },
}

// check fails unless the history of each address fits one holder at a time.
func (h *addressHistory) check(t *testing.T) {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	for a, ops := range h.ops {
		if !porcupine.CheckOperations(oneHolder, ops) {
			t.Errorf("%s was held by two containers at once: %+v", a, ops)
		}
	}
}

// run goes on until ctx ends. The commands themselves are let through.
func (c *churn) run(ctx context.Context, network string) {
	done := context.WithoutCancel(ctx)
	for ; ctx.Err() == nil; c.cycles++ {
		name := fmt.Sprintf("churn-%s-%d", c.bed.host.Name(), c.cycles)
		from := time.Now()
		_, err := c.bed.docker(done, "run", "-d", "--name", name, "--network", network, lab.TestImage, "probe", "sleep")
		taken := time.Now()
		if err != nil {
			c.refused = append(c.refused, err)
			_, _ = c.bed.docker(done, "rm", "-f", name) // it may not have come to be
			continue
		}
		v4, _, err := c.bed.addresses(done, name)
		if err != nil {
			c.refused = append(c.refused, err)
			continue
		}
		a, err := netip.ParseAddr(v4)
		if err != nil {
			c.refused = append(c.refused, fmt.Errorf("address of %s: %w", name, err))
			continue
		}
		c.history.record(a, c.client, hold{true, name}, from, taken)
		from = time.Now()
		if _, err := c.bed.docker(done, "rm", "-f", name); err != nil {
			c.refused = append(c.refused, err)
			continue
		}
		c.history.record(a, c.client, hold{false, name}, from, time.Now())
	}
}

// talker is a container that keeps a connection to one on another host.
type talker struct {
	bed  *bed
	name string
}

// ended says why the connection is no more; nil while it lives.
func (k talker) ended(ctx context.Context) error {
	out, err := k.bed.docker(ctx, "inspect", "-f", "{{.State.Running}}", k.name)
	if err == nil && out != "true" {
		logs, _ := k.bed.command(ctx, "sh", "-c", programs.cli.Path+" logs "+k.name+" 2>&1")
		err = fmt.Errorf("connection of %s on %s: %s", k.name, k.bed.host.Name(), logs)
	}
	return err
}

// TestClusterFaults breaks one part of a cluster after the other while
// connections live and containers come and go on all hosts.
func TestClusterFaults(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		ctx := t.Context()
		first := newTestBed(t, lab.Options{Engine: engine, Hosts: 3, LiveRestore: true})
		if err := first.cluster(ctx); err != nil {
			t.Fatal(err)
		}
		beds := first.all(t)
		first.must(t, "network", "create", "-d", "particle", "--ipam-driver", "particle", "--subnet", "10.77.0.0/16", "-o", "particle.block=28", "jobs")
		talkers := connect(t, beds)
		history := &addressHistory{began: time.Now(), ops: map[netip.Addr][]porcupine.Operation{}}
		churning, stop := context.WithCancel(ctx)
		defer stop()
		var group sync.WaitGroup
		churns := make([]*churn, len(beds))
		for i, b := range beds {
			churns[i] = &churn{bed: b, client: i, history: history}
			group.Go(func() { churns[i].run(churning, "jobs") })
		}
		for _, fault := range clusterFaults(beds) {
			t.Logf("%s: %s", time.Since(history.began).Round(time.Second), fault.name)
			if err := fault.strike(ctx); err != nil {
				t.Fatalf("%s: %v", fault.name, err)
			}
			for _, b := range beds {
				if err := b.settled(ctx, beds); err != nil {
					t.Fatalf("%s: %s: %v", fault.name, b.host.Name(), err)
				}
			}
			for _, k := range talkers {
				if err := k.ended(ctx); err != nil {
					t.Errorf("%s: %v", fault.name, err)
				}
			}
		}
		stop()
		group.Wait()
		history.check(t)
		for _, c := range churns {
			t.Logf("%s: %d containers, %d starts failed", c.bed.host.Name(), c.cycles, len(c.refused))
			if c.cycles-len(c.refused) < 5 {
				t.Errorf("%s started hardly any container: %v", c.bed.host.Name(), errors.Join(c.refused...))
			}
		}
		for _, k := range talkers {
			t.Log(k.bed.host.Name(), k.bed.must(t, "stop", "-t", "5", k.name), strings.TrimSpace(k.bed.must(t, "logs", k.name)))
		}
	})
}

// all is the lab seen from each host.
func (b *bed) all(t *testing.T) []*bed {
	t.Helper()
	var beds []*bed
	for _, host := range b.lab.Hosts() {
		on, err := b.on(host.Name())
		if err != nil {
			t.Fatal(err)
		}
		beds = append(beds, on)
	}
	return beds
}

// connect starts a server on each host and, on each other host, a container that
// keeps a connection to it.
func connect(t *testing.T, beds []*bed) []talker {
	t.Helper()
	var talkers []talker
	servers := map[string]string{}
	for _, b := range beds {
		b.mustCome(t, "network on "+b.host.Name(), func() error {
			_, err := b.docker(t.Context(), "network", "inspect", "jobs")
			return err
		})
		name := "echo-" + b.host.Name()
		b.must(t, "run", "-d", "--restart", "no", "--name", name, "--network", "jobs", lab.TestImage, "probe", "echo", "-listen", "0.0.0.0:7")
		v4, _, err := b.addresses(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		servers[b.host.Name()] = v4
	}
	for _, b := range beds {
		for at, server := range servers {
			if at == b.host.Name() {
				continue
			}
			k := talker{b, "talk-" + at}
			b.must(t, "run", "-d", "--name", k.name, "--network", "jobs", lab.TestImage, "probe", "talk", server+":7", "-timeout", "2m")
			talkers = append(talkers, k)
		}
	}
	return talkers
}

// clusterFault is one thing that goes wrong and is put right again.
type clusterFault struct {
	name   string
	strike func(context.Context) error
}

func clusterFaults(beds []*bed) []clusterFault {
	store, second, third := beds[0], beds[1], beds[2]
	return []clusterFault{
		{"a plugin is killed", second.restartPlugin},
		{"the store is killed with its plugin", store.restartPlugin},
		{"a dockerd is killed", func(ctx context.Context) error {
			return errors.Join(third.host.KillDockerd(ctx), third.host.StartDockerd(ctx))
		}},
		{"the store's host is cut off", func(ctx context.Context) error {
			return errors.Join(store.host.Cut(), second.startsOne(ctx), third.startsOne(ctx), store.startsOne(ctx), store.host.Heal())
		}},
		{"another host is cut off", func(ctx context.Context) error {
			return errors.Join(third.host.Cut(), third.startsOne(ctx), third.host.Heal())
		}},
		{"a plugin freezes until its lease is lost", func(ctx context.Context) error {
			if err := third.signalPlugin(ctx, syscall.SIGSTOP); err != nil {
				return err
			}
			lost := second.suspects(ctx, "h3")
			return errors.Join(lost, third.signalPlugin(ctx, syscall.SIGCONT))
		}},
		{"the store is wiped", func(ctx context.Context) error {
			_, err := store.host.Exec(ctx, "sh", "-c", "rm -rf /var/lib/particle/cluster/etcd")
			return errors.Join(err, store.restartPlugin(ctx))
		}},
	}
}

// startsOne says whether a container starts on the shared network.
func (b *bed) startsOne(ctx context.Context) error {
	_, err := b.docker(ctx, "run", "--rm", "--network", "jobs", lab.TestImage, "true")
	return err
}

// suspects waits until the host takes another for lost.
func (b *bed) suspects(ctx context.Context, host string) error {
	return until(ctx, func() error {
		return prints(&session{bed: b}, []string{host + " .*suspect", "particle", "cluster", "status"})
	})
}

// settled waits until the host sees all others and reaches a new container on
// each of them.
func (b *bed) settled(ctx context.Context, beds []*bed) error {
	if err := b.alive(ctx, len(beds)); err != nil {
		return err
	}
	for _, other := range beds {
		v4, _, err := other.addresses(ctx, "echo-"+other.host.Name())
		if err != nil {
			return err
		}
		err = until(ctx, func() error {
			_, err := b.docker(ctx, "run", "--rm", "--network", "jobs", lab.TestImage, "sh", "-c", "echo here | nc -w 5 "+v4+" 7 | grep here")
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}
