package member_test

import (
	"context"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/particle-net/particle/internal/engine"
	"github.com/particle-net/particle/internal/member"
)

// soon is longer than anything takes that is told, and shorter than the passes
// that find what was not.
const soon = 5 * time.Second

func TestNetworkAppearsEverywhere(t *testing.T) {
	inWorld(t, 3, func(w *world, hosts []*host) {
		a, b, c := hosts[0], hosts[1], hosts[2]
		spec := jobs("10.9.0.0/16")
		spec.Internal = true
		spec.Subnets = append(spec.Subnets, engine.Subnet{
			Prefix: netip.MustParsePrefix("2001:db8:9::/64"), Range: netip.MustParsePrefix("2001:db8:9::/80"),
			Aux: map[string]netip.Addr{"2001:db8:9::5": netip.MustParseAddr("2001:db8:9::5")},
		})
		if err := a.create(spec); err != nil {
			t.Fatal(err)
		}
		time.Sleep(soon)
		w.agree("jobs", "at last", a, b, c)
		first := a.find("jobs")
		for _, h := range hosts {
			n := h.find("jobs")
			if n.SharedNetwork.ID != first.SharedNetwork.ID || n.VNI != first.VNI || !reflect.DeepEqual(n.Options, first.Options) ||
				!reflect.DeepEqual(n.Labels, first.Labels) || n.Spec.Internal != first.Spec.Internal {
				t.Errorf("host %s made %+v", h.node.Name, n.Spec)
			}
			for i, subnet := range n.Spec.Subnets {
				was := first.Spec.Subnets[i]
				if subnet.Prefix != was.Prefix || subnet.Range != was.Range || subnet.Gateway != was.Gateway || !maps.Equal(subnet.Aux, was.Aux) {
					t.Errorf("host %s made subnet %+v, want %+v", h.node.Name, subnet, was)
				}
			}
			if want := []netip.Addr{a.node.VTEP, b.node.VTEP, c.node.VTEP}; !slices.Equal(h.members, want) {
				t.Errorf("host %s lets in %v, want %v", h.node.Name, h.members, want)
			}
			if s := h.member.Status(); len(s.Hosts) != 3 || !s.Store.Healthy || h.phase("jobs") != member.Ready {
				t.Errorf("host %s: status %+v", h.node.Name, s)
			}
		}
	})
}

// A host is sent VXLAN at the port that it says, also when it says another.
func TestPortsAreTold(t *testing.T) {
	inWorld(t, 2, func(_ *world, hosts []*host) {
		a, b := hosts[0], hosts[1]
		if err := a.create(jobs("10.9.0.0/16")); err != nil {
			t.Fatal(err)
		}
		for _, port := range []uint16{8472, 4790} {
			a.member.SetReach(netip.AddrPortFrom(a.node.VTEP, port), nil)
			time.Sleep(time.Minute) // a store that does not follow the record is told by the next pass
			peers := b.find("jobs").peers
			if len(peers) != 1 || peers[0].VTEP != a.node.VTEP || peers[0].Port != port {
				t.Errorf("b sends to %+v, want port %d", peers, port)
			}
			b.mu.Lock()
			if !b.ports[port] {
				t.Errorf("the firewall of b knows the ports %v, not %d", b.ports, port)
			}
			b.mu.Unlock()
			if s := b.member.Status(); s.Hosts[0].Port != port {
				t.Errorf("b shows %+v", s.Hosts)
			}
		}
	})
}

func TestRemovedOnOneRemovedOnAll(t *testing.T) {
	inWorld(t, 3, func(w *world, hosts []*host) {
		a, b, c := hosts[0], hosts[1], hosts[2]
		if err := a.create(jobs("10.9.0.0/16")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(soon)
		c.edit("jobs", func(n *docker) { n.containers = 1 })
		b.remove("jobs")
		time.Sleep(soon)
		w.absent("jobs", "after rm", a, b)
		if p := c.phase("jobs"); c.find("jobs") == nil || p != member.Leaving {
			t.Errorf("where a container lives the network is %s", p)
		}
		d := w.host(3) // it has never had it
		d.start()
		d.connect()
		time.Sleep(soon)
		w.gone(a, b, d)
		// Its name is free already, but not where the old one still is.
		if err := a.create(jobs("10.10.0.0/16")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(soon)
		w.agree("jobs", "made anew", a, b, d)
		if id := a.find("jobs").SharedNetwork.ID; c.find("jobs").SharedNetwork.ID == id {
			t.Error("a network with a container was replaced")
		}
		c.edit("jobs", func(n *docker) { n.containers = 0 })
		time.Sleep(2 * time.Minute)
		w.agree("jobs", "when the container has ended", a, b, c, d)
		if s := a.member.Status(); len(s.Networks) != 1 {
			t.Errorf("the cluster still has %+v", s.Networks)
		}
	})
}

// atOnce has two users create a network on two hosts before either host has
// heard of the other's.
func atOnce(t *testing.T, hosts []*host, specs ...engine.Spec) {
	t.Helper()
	for _, h := range hosts {
		h.setDown(true)
	}
	for i, s := range specs {
		if err := hosts[i].create(s); err != nil {
			t.Fatal(err)
		}
	}
	for _, h := range hosts {
		h.setDown(false)
	}
}

func TestTwoAtOnceAlike(t *testing.T) {
	inWorld(t, 3, func(w *world, hosts []*host) {
		atOnce(t, hosts, jobs("10.128.0.0/20"), jobs("10.128.16.0/20"))
		time.Sleep(time.Minute)
		w.agree("jobs", "a minute later", hosts...)
		for _, h := range hosts {
			if s := h.member.Status(); len(s.Networks) != 1 || h.phase("jobs") != member.Ready {
				t.Errorf("host %s: %+v", h.node.Name, s.Networks)
			}
		}
	})
}

func TestTwoAtOnceNotAlike(t *testing.T) {
	other, internal, gateway := jobs("10.9.0.0/16"), jobs("10.9.0.0/16"), jobs("10.9.0.0/16")
	other.Labels, internal.Internal = nil, true
	gateway.Subnets[0].Gateway = netip.MustParseAddr("10.9.0.9")
	for name, spec := range map[string]engine.Spec{
		"labels": other, "internal": internal, "gateway": gateway, "subnet": jobs("10.10.0.0/16"),
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, 2, func(w *world, hosts []*host) {
				atOnce(t, hosts, jobs("10.9.0.0/16"), spec)
				time.Sleep(time.Minute)
				winner, loser := hosts[0], hosts[1]
				if winner.phase("jobs") == member.Conflict {
					winner, loser = loser, winner
				}
				if winner.phase("jobs") != member.Ready || loser.phase("jobs") != member.Conflict {
					t.Fatalf("the conflict is shown as %+v and %+v", winner.member.Status().Networks, loser.member.Status().Networks)
				}
				// The cluster's, which is not here, and this host's own, which is not there.
				for _, n := range loser.member.Status().Networks {
					if n.Name != "jobs" || n.Phase != member.Conflict || !strings.Contains(n.Problem, "remove ") {
						t.Errorf("the loser shows %+v", n)
					}
				}
				loser.remove("jobs")
				time.Sleep(time.Minute)
				w.agree("jobs", "after the local one is gone", winner, loser)
			})
		})
	}
}

func TestUsedNetworkIsNotReplaced(t *testing.T) {
	inWorld(t, 2, func(_ *world, hosts []*host) {
		for _, h := range hosts {
			h.setDown(true)
		}
		for i, h := range hosts {
			if err := h.create(jobs([]string{"10.128.0.0/20", "10.128.16.0/20"}[i])); err != nil {
				t.Fatal(err)
			}
			h.edit("jobs", func(n *docker) { n.containers = 1 })
		}
		for _, h := range hosts {
			h.setDown(false)
		}
		time.Sleep(time.Minute)
		for i, h := range hosts {
			if n := h.find("jobs"); n == nil || n.containers != 1 || string(n.SharedNetwork.ID) != string(n.Spec.ID) {
				t.Errorf("host %d: a network with a container was replaced: %+v", i, h.member.Status().Networks)
			}
		}
	})
}

func TestHostThatWasAway(t *testing.T) {
	inWorld(t, 3, func(w *world, hosts []*host) {
		a, c := hosts[0], hosts[2]
		old, other := jobs("10.9.0.0/16"), jobs("10.11.0.0/16")
		old.Name, other.Name = "old", "stays"
		for _, s := range []engine.Spec{old, other} {
			if err := a.create(s); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(soon)
		c.kill()
		a.remove("old")
		if err := a.create(jobs("10.10.0.0/16")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		w.agree("stays", "while it is away", hosts...)
		c.start()
		c.connect()
		time.Sleep(time.Minute)
		w.absent("old", "when it is back", hosts...)
		w.agree("stays", "when it is back", hosts...)
		w.agree("jobs", "when it is back", hosts...)
		if n := len(a.member.Status().Networks); n != 2 {
			t.Errorf("the cluster has %d networks, want 2", n)
		}
	})
}

// A host that was away for so long that its part was given up finds no trace of a
// network that was removed. It is not for it to bring that back.
func TestHostThatWasGivenUp(t *testing.T) {
	inWorld(t, 3, func(w *world, hosts []*host) {
		a, c := hosts[0], hosts[2]
		old := jobs("10.11.0.0/16")
		old.Name = "old"
		for _, s := range []engine.Spec{old, jobs("10.9.0.0/16")} {
			if err := a.create(s); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(soon)
		c.kill()
		if err := a.member.RemoveNode(context.Background(), c.node.ID); err != nil {
			t.Fatal(err)
		}
		a.remove("old")
		time.Sleep(time.Minute)
		c.start()
		c.connect()
		time.Sleep(5 * time.Minute)
		w.absent("old", "when it is back", hosts...)
		w.agree("jobs", "when it is back", hosts...)
	})
}

// A removal that the store could not be told of outlives the plugin, and is not
// undone by the others' list.
func TestRemovedWhileCutOff(t *testing.T) {
	inWorld(t, 2, func(w *world, hosts []*host) {
		a, b := hosts[0], hosts[1]
		if err := a.create(jobs("10.9.0.0/16")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(soon)
		b.store.Cut(true)
		b.remove("jobs")
		time.Sleep(time.Minute)
		w.absent("jobs", "while cut off", b)
		if s := b.member.Status(); len(s.Networks) != 1 || !s.Networks[0].Unshared || s.Store.Healthy {
			t.Errorf("status %+v", s)
		}
		b.kill()
		b.start()
		b.connect()
		time.Sleep(time.Minute)
		w.absent("jobs", "when it is back", a, b)
	})
}

func TestDockerIsAway(t *testing.T) {
	inWorld(t, 2, func(w *world, hosts []*host) {
		a, b := hosts[0], hosts[1]
		b.setDown(true)
		if err := a.create(jobs("10.9.0.0/16")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		w.absent("jobs", "while dockerd is down", b)
		b.setDown(false)
		time.Sleep(soon)
		w.agree("jobs", "when dockerd is back", a, b)
	})
}

// A plugin that ends between Share and Docker's answer leaves a registration that
// nobody uses.
func TestUnusedRegistrationGoes(t *testing.T) {
	inWorld(t, 1, func(_ *world, hosts []*host) {
		a := hosts[0]
		a.setDown(true) // so that it cannot tell the name
		if err := a.create(jobs("10.9.0.0/16")); err != nil {
			t.Fatal(err)
		}
		a.kill()
		a.setDown(false)
		a.mu.Lock()
		clear(a.networks)
		a.mu.Unlock()
		a.start()
		a.connect()
		time.Sleep(10 * time.Minute)
		if s := a.member.Status(); len(s.Networks) != 0 {
			t.Errorf("the cluster still has %+v", s.Networks)
		}
	})
}

func TestConflictWithForeignNetwork(t *testing.T) {
	inWorld(t, 2, func(w *world, hosts []*host) {
		a, b := hosts[0], hosts[1]
		b.mu.Lock()
		b.networks["bridge"] = &docker{listed: true, Spec: engine.Spec{ID: "bridge", Name: "jobs", Driver: "bridge", Created: time.Now()}}
		b.mu.Unlock()
		if err := a.create(jobs("10.9.0.0/16")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if b.phase("jobs") != member.Conflict || b.find("jobs").Driver != "bridge" {
			t.Errorf("status %+v", b.member.Status().Networks)
		}
		b.mu.Lock()
		delete(b.networks, "bridge")
		b.mu.Unlock()
		time.Sleep(time.Minute)
		w.agree("jobs", "when it is gone", a, b)
	})
}

// Docker up to 20.10 lets a user and us make two networks of one name at the same
// moment.
func TestTwinOfTheClustersNetwork(t *testing.T) {
	inWorld(t, 2, func(w *world, hosts []*host) {
		a, b := hosts[0], hosts[1]
		if err := a.create(jobs("10.128.0.0/20")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		first := b.find("jobs")
		rename := func(to string) {
			b.mu.Lock()
			defer b.mu.Unlock()
			first.Spec.Name = to
		}
		rename("being made")
		twin, err := b.Create(context.Background(), "", jobs("10.128.16.0/20"))
		if err != nil {
			t.Fatal(err)
		}
		rename("jobs")
		b.member.Wake()
		time.Sleep(time.Minute)
		b.mu.Lock()
		if b.networks[twin] != nil || len(b.networks) != 1 {
			t.Errorf("b has %d networks named jobs", len(b.networks))
		}
		b.mu.Unlock()
		w.agree("jobs", "without its twin", a, b)
	})
}

// lines counts what a world says, by message.
type lines struct {
	mu    sync.Mutex
	count map[string]int
}

func (l *lines) Levels() []logrus.Level { return logrus.AllLevels }

func (l *lines) Fire(e *logrus.Entry) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.count[e.Message]++
	return nil
}

// The twin has a container, and so stays. That is said once.
func TestTwinThatStays(t *testing.T) {
	inWorld(t, 2, func(w *world, hosts []*host) {
		a, b := hosts[0], hosts[1]
		if err := a.create(jobs("10.128.0.0/20")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		said := &lines{count: map[string]int{}}
		w.log.Logger.AddHook(said)
		b.mu.Lock()
		b.networks["bridge"] = &docker{listed: true, Spec: engine.Spec{ID: "bridge", Name: "jobs", Driver: "bridge", Created: time.Now()}}
		asked := b.asked
		b.mu.Unlock()
		time.Sleep(time.Hour)
		if p := b.phase("jobs"); p != member.Conflict || a.phase("jobs") != member.Ready {
			t.Errorf("b shows its network as %s, and a as %s", p, a.phase("jobs"))
		}
		said.mu.Lock()
		if n := said.count["network is not as the cluster has it: conflict"]; n != 1 {
			t.Errorf("it was said %d times", n)
		}
		said.mu.Unlock()
		b.mu.Lock()
		if n := b.asked - asked; n > 1000 { // the passes alone are 360
			t.Errorf("Docker was asked %d times in an hour", n)
		}
		delete(b.networks, "bridge")
		b.mu.Unlock()
		time.Sleep(time.Minute)
		if p := b.phase("jobs"); p != member.Ready {
			t.Errorf("without its twin the network is %s", p)
		}
		w.agree("jobs", "without its twin", a, b)
	})
}
