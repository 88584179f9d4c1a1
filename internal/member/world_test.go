package member_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/control/memory"
	"github.com/particle-net/particle/fabric"
	"github.com/particle-net/particle/internal/engine"
	"github.com/particle-net/particle/internal/member"
	"github.com/particle-net/particle/topology"
)

// world is a cluster of hosts. It lives in a bubble of package synctest, so time
// passes only when all of them wait.
type world struct {
	t       *testing.T
	cluster *memory.Cluster
	log     *logrus.Entry
	stop    []func()
}

// newWorld is one without a cluster, which says what happens in it where it is asked to.
func newWorld(t *testing.T) *world {
	logger := logrus.New()
	logger.SetOutput(io.Discard)
	if testing.Verbose() {
		logger.SetOutput(t.Output())
	}
	return &world{t: t, log: logrus.NewEntry(logger)}
}

// inWorld runs a test with hosts a, b, ... that are members of one cluster.
func inWorld(t *testing.T, hosts int, test func(*world, []*host)) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.cluster = memory.New()
		defer func() {
			for _, stop := range w.stop {
				stop()
			}
		}()
		var all []*host
		for i := range hosts {
			h := w.host(i)
			h.start()
			h.connect()
			all = append(all, h)
		}
		time.Sleep(time.Second)
		test(w, all)
	})
}

// host is a Docker host, as far as a member can see: its engine, its fabric, its
// overlay and its disk. Docker calls the fabric, and that the member, as they do
// in earnest.
type host struct {
	w      *world
	node   control.Node
	disk   *disk[member.Known]
	hosts  *disk[control.Node]
	store  *memory.Store // nil with a real store
	member *member.Member
	begun  time.Time
	end    func()

	mu        sync.Mutex
	down      bool   // dockerd does not answer
	asked     int    // calls of Specs
	refuse    bool   // the fabric cannot make what it has shared
	busy      bool   // the kernel, with SetMembers
	broken    bool   // it cannot make the kernel match
	enough    bool   // its blocks are not used up
	served    func() // called at the end of SetClaims
	networks  map[topology.NetworkID]*docker
	made      int
	members   []netip.Addr
	ports     map[uint16]bool          // of members
	ends      []topology.WireGuardPeer // nil if none were ever told
	suspended map[topology.SharedID]error
	skew      time.Duration // of its wall clock
	slow      time.Duration // how long SetPeers takes
	slowly    time.Duration // how long SetClaims takes
	told      int           // calls of SetPeers
	kept      int           // of SavePeers that wrote
	listed    int           // of SetMembers
	surveyed  int           // of Shared
}

// docker is a network in Docker and in the fabric.
type docker struct {
	engine.Spec
	fabric.SharedNetwork
	containers int
	peers      []topology.Peer
	saved      []topology.Peer // by SavePeers
	unsaved    bool
	unapplied  bool // the kernel does not have its claims
	listed     bool // Docker has made it
	forgotten  bool // Docker has removed it
}

func (w *world) host(i int) *host {
	h := &host{
		w: w, begun: time.Now(), disk: newDisk[member.Known](), hosts: newDisk[control.Node](), networks: map[topology.NetworkID]*docker{}, suspended: map[topology.SharedID]error{},
		node: control.Node{
			ID: topology.NodeID(strings.Repeat(fmt.Sprint(i+1), 32)), Name: string(rune('a' + i)),
			VTEP: netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}), Boot: "boot",
		},
	}
	w.stop = append(w.stop, func() { h.kill() })
	return h
}

// wall is what the host takes for the time.
func (h *host) wall() time.Time { return time.Now().Add(h.skew) }

// start runs the plugin.
func (h *host) start() {
	h.w.t.Helper()
	m, err := member.New(member.Options{
		Node: h.node, Fabric: fabricOf{h}, Engine: h, Overlay: h, Driver: "particle", Known: h.disk, Hosts: h.hosts, Log: h.w.log.WithField("host", h.node.Name),
		Chosen: func(p netip.Prefix) bool { return netip.MustParsePrefix("10.128.0.0/9").Overlaps(p) },
		Clock:  func() time.Duration { return time.Since(h.begun) + time.Hour },
		Wall:   h.wall,
	})
	if err != nil {
		h.w.t.Fatal(err)
	}
	m.Restore()
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() { m.Run(ctx) })
	h.member = m
	h.end = func() { cancel(); done.Wait() }
}

// connect lets the host reach the store.
func (h *host) connect() {
	h.store = h.w.cluster.Host(h.node)
	h.member.Connect(h.store)
}

// kill ends the plugin: at once, so what it has not written by now it never does.
func (h *host) kill() {
	if h.end != nil {
		h.disk.lose(true)
		h.end()
		h.end = nil
		h.disk.lose(false)
	}
}

// Specs, Create, Remove and Endpoints implement member.Engine.
func (h *host) Specs(context.Context) ([]engine.Spec, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.asked++; h.down {
		return nil, errors.New("dockerd is down")
	}
	var all []engine.Spec
	for _, n := range h.networks {
		if n.listed && !n.forgotten {
			all = append(all, n.Spec)
		}
	}
	return all, nil
}

func (h *host) Create(ctx context.Context, _ string, s engine.Spec) (topology.NetworkID, error) {
	h.mu.Lock()
	for _, n := range h.networks {
		if n.Spec.Name == s.Name && !n.forgotten {
			h.mu.Unlock()
			return "", engine.ErrNameTaken
		}
	}
	h.made++
	s.ID = topology.NetworkID(string(h.node.ID) + fmt.Sprintf("%032d", h.made))
	s.Ours, s.Driver, s.Created = true, "particle", h.wall()
	n := &docker{Spec: s}
	n.SharedNetwork = fabric.SharedNetwork{ID: s.Shared, Network: s.ID, Internal: s.Internal}
	if s.Shared == "" {
		n.SharedNetwork.ID = topology.SharedID(s.ID)
	}
	ask := fabric.SharedSpec{ID: s.Shared, Network: s.ID, Internal: s.Internal, MTU: 1450}
	for _, subnet := range s.Subnets {
		f := fabric.Subnet{Subnet: subnet.Prefix, Managed: true, Gateway: subnet.Gateway}
		f.Aux = slices.SortedFunc(maps.Values(subnet.Aux), netip.Addr.Compare)
		ask.Subnets, ask.Ranges = append(ask.Subnets, f), append(ask.Ranges, subnet.Range)
	}
	n.SharedNetwork.Subnets, n.Ranges = ask.Subnets, ask.Ranges
	h.networks[s.ID] = n
	h.mu.Unlock()
	got, ok, err := h.member.Share(ctx, ask)
	h.mu.Lock()
	refuse := h.refuse
	h.mu.Unlock()
	if err == nil && refuse {
		err = errors.New("this host's underlay leaves too little")
		if s.Shared == "" { // the fabric's retract
			err = errors.Join(err, h.member.Unshare(topology.SharedID(s.ID)))
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if err != nil {
		delete(h.networks, s.ID)
		return "", err
	}
	if ok {
		n.VNI, n.Claims = got.VNI, got.Claims
	}
	n.listed = true
	return s.ID, nil
}

func (h *host) Remove(_ context.Context, id topology.NetworkID) error {
	h.mu.Lock()
	n := h.networks[id]
	h.mu.Unlock()
	switch {
	case n == nil:
		return nil
	case n.containers > 0:
		return engine.ErrInUse
	}
	err := h.member.Unshare(n.SharedNetwork.ID)
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.networks, id)
	return err
}

func (h *host) Endpoints(_ context.Context, id topology.NetworkID) (map[topology.EndpointID]fabric.EngineContainer, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := map[topology.EndpointID]fabric.EngineContainer{}
	for i := range h.networks[id].containers {
		all[topology.EndpointID(fmt.Sprint(i))] = fabric.EngineContainer{}
	}
	return all, nil
}

// errNoTunnel is of a list with an address that the overlay takes for no host's.
var errNoTunnel = errors.New("that is no tunnel address")

func noTunnel(at netip.AddrPort) bool { return at.Addr().Is4In6() }

// SetMembers implements member.Overlay.
func (h *host) SetMembers(ctx context.Context, all []netip.AddrPort) error {
	if slices.ContainsFunc(all, noTunnel) {
		return errNoTunnel
	}
	h.mu.Lock()
	h.members, h.ports = nil, map[uint16]bool{}
	h.listed++
	busy := h.busy
	h.mu.Unlock()
	if busy {
		<-ctx.Done()
		return ctx.Err()
	}
	return h.AddMembers(ctx, all)
}

// AddMembers implements member.Overlay.
func (h *host) AddMembers(_ context.Context, come []netip.AddrPort) error {
	if slices.ContainsFunc(come, noTunnel) {
		return errNoTunnel
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, at := range come {
		h.members = append(h.members, at.Addr())
		h.ports[at.Port()] = true
	}
	slices.SortFunc(h.members, netip.Addr.Compare)
	h.members = slices.Compact(h.members) // as the overlay has them
	return nil
}

// SetWireGuardPeers implements member.Overlay.
func (h *host) SetWireGuardPeers(_ context.Context, all []topology.WireGuardPeer) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ends = all
	return nil
}

// fabricOf implements member.Fabric.
type fabricOf struct{ *host }

func (f fabricOf) Shared() []fabric.SharedNetwork {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.surveyed++
	return f.shared()
}

func (f fabricOf) FindShared(id topology.SharedID) (fabric.SharedNetwork, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.shared() {
		if s.ID == id {
			s.Live, s.Peers = false, nil
			return s, true
		}
	}
	return fabric.SharedNetwork{}, false
}

// shared is what the fabric has. mu is held.
func (f fabricOf) shared() []fabric.SharedNetwork {
	var all []fabric.SharedNetwork
	for _, n := range f.networks {
		s := n.SharedNetwork
		if s.ID == "" {
			continue // another driver's
		}
		s.Name, s.Live, s.Claims, s.Peers = n.Spec.Name, n.containers > 0, slices.Clone(n.Claims), slices.Clone(n.peers)
		if s.Leaving = slices.Clone(n.Leaving); n.containers == 0 {
			s.Leaving = nil
		}
		all = append(all, s)
	}
	return all
}

func (f fabricOf) find(id topology.SharedID) *docker {
	for _, n := range f.networks {
		if n.SharedNetwork.ID == id {
			return n
		}
	}
	return nil
}

func (f fabricOf) SetClaims(ctx context.Context, id topology.SharedID, claims []netip.Prefix) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.find(id)
	switch {
	case n == nil:
		return fabric.ErrNoNetwork
	case slices.Equal(n.Claims, claims) && !n.unapplied:
		return nil
	}
	for _, c := range n.Claims {
		if !slices.Contains(claims, c) {
			n.Leaving = append(n.Leaving, c)
		}
	}
	n.Claims = claims
	slowly := f.slowly
	f.mu.Unlock()
	late := false
	select {
	case <-time.After(slowly):
	case <-ctx.Done():
		late = true
	}
	f.mu.Lock()
	if n.unapplied = late || f.broken; n.unapplied {
		return errors.New("the kernel says no")
	}
	if f.served != nil {
		f.served()
	}
	return nil
}

func (f fabricOf) NeedsBlock(topology.SharedID, netip.Prefix) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return !f.enough
}

func (f fabricOf) SuspendClaims(id topology.SharedID, why error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.suspended[id] = why
}

func (f fabricOf) SetPeers(_ context.Context, id topology.SharedID, peers []topology.Peer) error {
	f.mu.Lock()
	slow := f.slow
	f.told++
	f.mu.Unlock()
	time.Sleep(slow)
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.find(id)
	if n == nil {
		return fabric.ErrNoNetwork
	}
	n.peers, n.unsaved = peers, true
	return nil
}

func (f fabricOf) SavePeers(_ context.Context, id topology.SharedID) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n := f.find(id); n != nil && n.unsaved {
		n.saved, n.unsaved = n.peers, false
		f.kept++
	}
	return nil
}

// create is a user's `docker network create`, whose event the member hears of.
func (h *host) create(s engine.Spec) error {
	h.w.t.Helper()
	for i := range s.Subnets {
		if !s.Subnets[i].Gateway.IsValid() {
			s.Subnets[i].Gateway = s.Subnets[i].Prefix.Addr().Next()
		}
	}
	_, err := h.Create(context.Background(), "", s)
	h.member.Wake()
	return err
}

// setDown stops dockerd, or has it come to answer.
func (h *host) setDown(down bool) {
	h.mu.Lock()
	h.down = down
	h.mu.Unlock()
	h.member.Wake()
}

// jobs is what most tests create.
func jobs(subnet string) engine.Spec {
	return engine.Spec{
		Name: "jobs", Options: map[string]string{"mtu": "1450"}, Labels: map[string]string{"team": "blue"},
		Subnets: []engine.Subnet{{Prefix: netip.MustParsePrefix(subnet)}},
	}
}

// remove is a user's `docker network rm`.
func (h *host) remove(name string) {
	h.w.t.Helper()
	if err := h.Remove(context.Background(), h.find(name).Network); err != nil {
		h.w.t.Fatal(err)
	}
}

// find is the network of a name, nil if there is none.
func (h *host) find(name string) *docker {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, n := range h.networks {
		if n.Spec.Name == name {
			return n
		}
	}
	return nil
}

// edit changes a network under the host's lock.
func (h *host) edit(name string, f func(*docker)) {
	n := h.find(name)
	h.mu.Lock()
	defer h.mu.Unlock()
	f(n)
}

// number is the last byte of a host's tunnel address.
func number(vtep netip.Addr) byte { return vtep.AsSlice()[vtep.BitLen()/8-1] }

// view renders a network of a host: "10.9.0.0/24 | 2:10.9.1.0/24", its claims and
// then its peers by the last number of their VTEPs.
func (h *host) view(name string) string {
	n := h.find(name)
	if n == nil {
		return "none"
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	var parts []string
	for _, c := range n.Claims {
		parts = append(parts, c.String())
	}
	parts = append(parts, "|")
	for _, p := range n.peers {
		for _, prefix := range p.Prefixes {
			parts = append(parts, fmt.Sprintf("%d:%s", number(p.VTEP), prefix))
		}
	}
	return strings.Join(parts, " ")
}

// phase is where a network stands on a host, by its status.
func (h *host) phase(name string) member.Phase {
	for _, n := range h.member.Status().Networks {
		if n.Name == name {
			return n.Phase
		}
	}
	return "unknown"
}

// absent checks that hosts do not have a network.
func (w *world) absent(name, when string, hosts ...*host) {
	w.t.Helper()
	for _, h := range hosts {
		if got := h.view(name); got != "none" {
			w.t.Errorf("%s: host %s has %s as %q", when, h.node.Name, name, got)
		}
	}
}

// agree checks that hosts have one network together: each has something of it, no
// two have the same, and each knows what the others have and no more.
func (w *world) agree(name, when string, hosts ...*host) {
	w.t.Helper()
	claims := map[*host][]string{}
	owner := map[netip.Prefix]*host{}
	for _, h := range hosts {
		n := h.find(name)
		if n == nil {
			w.t.Errorf("%s: host %s has no network %s", when, h.node.Name, name)
			return
		}
		h.mu.Lock()
		for _, c := range n.Claims {
			if other := owner[c]; other != nil {
				w.t.Errorf("%s: hosts %s and %s both have %s of %s", when, other.node.Name, h.node.Name, c, name)
			}
			owner[c] = h
			claims[h] = append(claims[h], fmt.Sprintf("%d:%s", number(h.node.VTEP), c))
		}
		h.mu.Unlock()
		if len(claims[h]) == 0 {
			w.t.Errorf("%s: host %s has nothing of %s", when, h.node.Name, name)
		}
	}
	for _, h := range hosts {
		var want []string
		for _, other := range hosts {
			if other != h {
				want = append(want, claims[other]...)
			}
		}
		_, got, _ := strings.Cut(h.view(name), "|")
		if got = strings.TrimSpace(got); got != strings.Join(want, " ") {
			w.t.Errorf("%s: host %s knows %q of %s, want %q", when, h.node.Name, got, name, want)
		}
	}
}
