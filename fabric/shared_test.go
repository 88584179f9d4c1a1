package fabric_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/particle-net/particle/fabric"
	"github.com/particle-net/particle/ipam/pool"
	"github.com/particle-net/particle/topology"
)

// cluster stands for the cluster's store and the plugin's part of it: it answers
// as it is told to, and remembers what it was asked.
type cluster struct {
	mu       sync.Mutex
	away     bool // the host has left
	err      error
	answer   fabric.Shared
	asked    []fabric.SharedSpec
	unshared []topology.SharedID
	claimed  []netip.Addr
	released []netip.Addr
	owned    map[netip.Addr]bool // claimed and not released
	low      []netip.Prefix
	refill   func() error // Refill, if the store answers
	refilled int
	dead     bool   // the store does not answer
	claiming func() // called by ClaimAddress
}

func (c *cluster) Joined() bool { return !c.away }

func (c *cluster) wait(ctx context.Context) error {
	if c.dead {
		<-ctx.Done()
		return ctx.Err()
	}
	return c.err
}

func (c *cluster) Share(ctx context.Context, s fabric.SharedSpec) (fabric.Shared, bool, error) {
	if err := c.wait(ctx); err != nil {
		return fabric.Shared{}, true, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked = append(c.asked, s)
	got := c.answer
	if got.ID = s.ID; got.ID == "" {
		got.ID = topology.SharedID(s.Network)
	}
	return got, true, nil
}

func (c *cluster) Unshare(id topology.SharedID) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.unshared = append(c.unshared, id)
	return nil
}

func (c *cluster) ClaimAddress(ctx context.Context, _ topology.SharedID, a netip.Addr, _ string) error {
	if c.claiming != nil {
		c.claiming()
	}
	if err := c.wait(ctx); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.claimed = append(c.claimed, a)
	if c.owned == nil {
		c.owned = map[netip.Addr]bool{}
	}
	c.owned[a] = true
	return nil
}

func (c *cluster) ReleaseAddress(_ topology.SharedID, a netip.Addr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.released = append(c.released, a)
	delete(c.owned, a)
}

func (c *cluster) Low(_ topology.SharedID, subnet netip.Prefix) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.low = append(c.low, subnet)
}

func (c *cluster) Refill(ctx context.Context, _ topology.SharedID, _ netip.Prefix) error {
	if err := c.wait(ctx); err != nil {
		return err
	}
	c.mu.Lock()
	c.refilled++
	c.mu.Unlock()
	if c.refill == nil {
		return errors.New("no block is left")
	}
	return c.refill()
}

func prefixes(texts ...string) []netip.Prefix {
	var all []netip.Prefix
	for _, s := range texts {
		all = append(all, netip.MustParsePrefix(s))
	}
	return all
}

var sharedID = topology.SharedID(netID("a"))

// shared is a world in a cluster, with a network that has the blocks given.
func shared(t testing.TB, blocks ...string) (*world, *cluster, *fabric.Fabric, fabric.Pool) {
	t.Helper()
	w := newWorld(t)
	c := &cluster{answer: fabric.Shared{VNI: 77, MTU: 1400, Claims: prefixes(blocks...)}}
	w.cluster = c
	f := w.open()
	return w, c, f, w.create(f, netID("a"), "jobs", "10.77.0.0/24")
}

// pools is what is local to the network in the kernel, without the resolver.
func (w *world) pools(id topology.NetworkID) string {
	var all []string
	for _, p := range w.segments[id].Pools {
		if p.Addr() != netip.MustParseAddr("169.254.0.53") {
			all = append(all, p.String())
		}
	}
	return strings.Join(all, " ")
}

func TestSharedNetworkServesItsBlocks(t *testing.T) {
	w, c, f, p := shared(t, "10.77.0.32/28", "10.77.0.64/28")
	want := []fabric.SharedSpec{{Network: netID("a"), MTU: 1450, Ranges: make([]netip.Prefix, 1),
		Subnets: []fabric.Subnet{{Subnet: netip.MustParsePrefix("10.77.0.0/24"), Managed: true, Gateway: netip.MustParseAddr("10.77.0.1")}}}}
	byAddr := []cmp.Option{cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })}
	if diff := cmp.Diff(want, c.asked, byAddr...); diff != "" {
		t.Errorf("asked (-want +got):\n%s", diff)
	}
	s := w.segments[netID("a")]
	if s.VNI != 77 || s.MTU != 1400 || w.pools(netID("a")) != "10.77.0.32/28 10.77.0.64/28" || !slices.Equal(s.Subnets, prefixes("10.77.0.0/24")) {
		t.Errorf("segment %+v", s)
	}
	if a := w.start(f, netID("a"), p, "1", 101); a != netip.MustParseAddr("10.77.0.33") {
		t.Errorf("first address %s", a)
	}
	f = w.reopen()
	if a := w.start(f, netID("a"), p, "2", 102); a != netip.MustParseAddr("10.77.0.34") {
		t.Errorf("next address after a restart %s", a)
	}
	list := f.Shared()
	if len(list) != 1 || !slices.Equal(list[0].Claims, prefixes("10.77.0.32/28", "10.77.0.64/28")) || !list[0].Live || list[0].ID != sharedID || list[0].Name != "jobs" {
		t.Errorf("Shared() = %+v", list)
	}
	if len(c.low) != 0 || len(c.claimed) != 0 {
		t.Errorf("the store was needed: %v, %v", c.low, c.claimed)
	}
}

// A look at one network is one at no other, nor at what its containers' processes do.
func TestFindShared(t *testing.T) {
	w, _, f, p := shared(t, "10.77.0.16/28")
	w.startAs(f, netID("a"), fabric.AddressSpec{Pool: p.ID, Addr: netip.MustParseAddr("10.77.0.200")}, "1", "1", 101)
	if err := f.SetPeers(ctx, sharedID, []topology.Peer{peer(2, "10.77.0.32/28")}); err != nil {
		t.Fatal(err)
	}
	want := f.Shared()[0]
	if !want.Live || len(want.Peers) != 1 {
		t.Errorf("Shared() = %+v", want)
	}
	want.Live, want.Peers = false, nil
	asks := w.asks
	got, ok := f.FindShared(sharedID)
	byAddr := []cmp.Option{cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })}
	if diff := cmp.Diff(want, got, byAddr...); !ok || diff != "" {
		t.Errorf("found: %t (-want +got):\n%s", ok, diff)
	}
	if w.asks != asks {
		t.Errorf("it was asked %d times whether processes live", w.asks-asks)
	}
	for _, id := range []topology.SharedID{"0123456789abcdef", ""} {
		if got, ok := f.FindShared(id); ok {
			t.Errorf("%q was found: %+v", id, got)
		}
	}
}

func TestLowIsToldOnceForEachBlock(t *testing.T) {
	_, c, f, p := shared(t, "10.77.0.16/28")
	for i := range 12 {
		if _, err := f.RequestAddress(ctx, fabric.AddressSpec{Pool: p.ID}); err != nil {
			t.Fatal(err)
		}
		if low := i >= 7; (len(c.low) == 1) != low { // 7 of 15, the smaller half, are left after the eighth
			t.Errorf("after %d addresses Low was called %d times", i+1, len(c.low))
		}
	}
	if err := f.SetClaims(ctx, sharedID, prefixes("10.77.0.16/28", "10.77.0.128/28")); err != nil {
		t.Fatal(err)
	}
	for range 12 {
		if _, err := f.RequestAddress(ctx, fabric.AddressSpec{Pool: p.ID}); err != nil {
			t.Fatal(err)
		}
	}
	if len(c.low) != 2 || c.refilled != 0 {
		t.Errorf("Low was called %d times, want once for each block; Refill %d times", len(c.low), c.refilled)
	}
}

// A burst that is wider than what is left waits for the next block, and for the
// one after that.
func TestBurstWaitsForBlocks(t *testing.T) {
	_, c, f, p := shared(t, "10.77.0.16/28")
	claims := []string{"10.77.0.16/28"}
	c.refill = func() error {
		claims = append(claims, fmt.Sprintf("10.77.0.%d/28", 16*(len(claims)+1)))
		return f.SetClaims(ctx, sharedID, prefixes(claims...))
	}
	const burst = 8 * 15
	got := make(chan netip.Prefix, burst)
	var all sync.WaitGroup
	for range burst {
		all.Go(func() {
			a, err := f.RequestAddress(ctx, fabric.AddressSpec{Pool: p.ID})
			if err != nil {
				t.Error(err)
			}
			got <- a
		})
	}
	all.Wait()
	close(got)
	seen := map[netip.Prefix]bool{}
	for a := range got {
		seen[a] = true
	}
	if len(seen) != burst || c.refilled != 7 {
		t.Errorf("%d addresses of %d blocks, want %d of 7 more", len(seen), c.refilled, burst)
	}
}

// A start waits for a block that is long in coming, but not for ever.
func TestBlockThatIsLate(t *testing.T) {
	for _, comes := range []bool{true, false} {
		t.Run(fmt.Sprint(comes), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				_, c, f, p := shared(t, "10.77.0.16/30")
				c.dead = !comes
				wait := 10 * time.Second
				if comes {
					wait -= time.Second
				}
				c.refill = func() error {
					time.Sleep(wait)
					return f.SetClaims(ctx, sharedID, prefixes("10.77.0.16/30", "10.77.0.128/28"))
				}
				for range 3 {
					if _, err := f.RequestAddress(ctx, fabric.AddressSpec{Pool: p.ID}); err != nil {
						t.Fatal(err)
					}
				}
				began := time.Now()
				_, err := f.RequestAddress(ctx, fabric.AddressSpec{Pool: p.ID})
				if took := time.Since(began); took != wait || (err == nil) != comes {
					t.Errorf("after %s: %v", took, err)
				}
			})
		})
	}
}

func TestNoFurtherBlock(t *testing.T) {
	_, c, f, p := shared(t, "10.77.0.16/30")
	used := func() {
		t.Helper()
		for range 3 {
			if _, err := f.RequestAddress(ctx, fabric.AddressSpec{Pool: p.ID}); err != nil {
				t.Fatal(err)
			}
		}
	}
	used()
	full := errors.New("no free block")
	c.refill = func() error { return full }
	if _, err := f.RequestAddress(ctx, fabric.AddressSpec{Pool: p.ID}); !errors.Is(err, pool.ErrNoBlock) || !errors.Is(err, full) {
		t.Errorf("got %v", err)
	}
	// Docker gives one up; the attempt goes on for the next one.
	waits, goOn := make(chan bool), make(chan bool)
	c.refill = func() error {
		close(waits)
		<-goOn
		return f.SetClaims(ctx, sharedID, prefixes("10.77.0.16/30", "10.77.0.128/30"))
	}
	given, giveUp := context.WithCancel(ctx)
	result := make(chan error)
	go func() { _, err := f.RequestAddress(given, fabric.AddressSpec{Pool: p.ID}); result <- err }()
	<-waits
	giveUp()
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v", err)
	}
	close(goOn)
	used()
}

func TestClaimsComeAndGo(t *testing.T) {
	w, _, f, p := shared(t, "10.77.0.16/28")
	kept := w.start(f, netID("a"), p, "1", 101)
	if err := f.SetClaims(ctx, sharedID, prefixes("10.77.0.128/28")); err != nil {
		t.Fatal(err)
	}
	if got := w.pools(netID("a")); got != "10.77.0.16/28 10.77.0.128/28" {
		t.Errorf("local: %s; the block that went has a container still", got)
	}
	f = w.reopen()
	var shown []string
	for _, b := range f.View().Networks[0].Pools[0].Blocks {
		shown = append(shown, fmt.Sprintf("%s %d %s %t", b.Prefix, b.Used, b.Free, b.Leaving))
	}
	if want := []string{"10.77.0.16/28 1 0 true", "10.77.0.128/28 0 15 false"}; !slices.Equal(shown, want) {
		t.Errorf("blocks %q, want %q", shown, want)
	}
	if a := w.start(f, netID("a"), p, "2", 102); a != netip.MustParseAddr("10.77.0.129") {
		t.Errorf("got %s, not of the block that came", a)
	}
	if got := f.Shared()[0].Claims; !slices.Equal(got, prefixes("10.77.0.128/28")) {
		t.Errorf("claims %v", got)
	}
	w.stop(f, p, "1", 101, kept)
	if err := pass(ctx, f); err != nil {
		t.Fatal(err)
	}
	if got := w.pools(netID("a")); got != "10.77.0.128/28" {
		t.Errorf("local: %s, after the last container of the other block has ended", got)
	}
}

func TestSuspendedBlocks(t *testing.T) {
	_, _, f, p := shared(t, "10.77.0.16/28")
	for why, fix := range map[error]string{fabric.ErrUnverified: "cannot be reached", fabric.ErrLeaving: "is in no cluster", fabric.ErrLeft: "join that cluster again"} {
		f.SuspendClaims(sharedID, why)
		if _, err := f.RequestAddress(ctx, fabric.AddressSpec{Pool: p.ID}); !errors.Is(err, why) || !strings.Contains(err.Error(), fix) {
			t.Errorf("got %v", err)
		}
	}
	f.SuspendClaims(sharedID, nil)
	if _, err := f.RequestAddress(ctx, fabric.AddressSpec{Pool: p.ID}); err != nil {
		t.Error(err)
	}
}

func peer(last byte, blocks ...string) topology.Peer {
	return topology.Peer{VTEP: netip.AddrFrom4([4]byte{192, 0, 2, last}), MAC: net.HardwareAddr{2, 0, 0, 0, 0, last}, Prefixes: prefixes(blocks...)}
}

func TestPeersAreProgrammedAndKept(t *testing.T) {
	w, _, f, _ := shared(t, "10.77.0.16/28")
	one, two := []topology.Peer{peer(2, "10.77.0.32/28")}, []topology.Peer{peer(2, "10.77.0.32/28"), peer(3, "10.77.0.48/28", "10.77.0.9/32")}
	byAddr := []cmp.Option{cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }), cmp.AllowUnexported(peerChange{})}
	for _, peers := range [][]topology.Peer{one, two} {
		if err := f.SetPeers(ctx, sharedID, peers); err != nil {
			t.Fatal(err)
		}
	}
	moved := []topology.Peer{peer(2, "10.77.0.32/28"), peer(3, "10.77.0.48/28")}
	for _, peers := range [][]topology.Peer{two, moved, nil, two} {
		if err := f.SetPeers(ctx, sharedID, peers); err != nil {
			t.Fatal(err)
		}
	}
	want := []peerChange{{nil, one}, {nil, two[1:]}, {two[1:], moved[1:]}, {moved, nil}, {nil, two}}
	if diff := cmp.Diff(want, w.changes, byAddr...); diff != "" {
		t.Errorf("changes (-want +got):\n%s", diff)
	}
	for range 2 { // what is known is not written again
		if err := errors.Join(f.SetPeers(ctx, sharedID, slices.Clone(two)), f.SavePeers(ctx, sharedID)); err != nil {
			t.Fatal(err)
		}
	}
	if w.kept != 1 {
		t.Errorf("the peers were written %d times", w.kept)
	}
	w.segments = map[topology.NetworkID]topology.Segment{} // a boot, and nobody to ask
	f = w.reopen()
	for _, got := range [][]topology.Peer{w.segments[netID("a")].Peers, f.Shared()[0].Peers} {
		if diff := cmp.Diff(two, got, byAddr...); diff != "" {
			t.Errorf("after a boot (-want +got):\n%s", diff)
		}
	}
	if err := f.SetPeers(ctx, "0123456789abcdef", nil); !errors.Is(err, fabric.ErrNoNetwork) {
		t.Errorf("got %v", err)
	}
}

// A host of another IP version, say, has no way to this one. Containers start and reach
// the others all the same, whatever else the network needs, and a user is told.
func TestPeersThatCannotBeReachedStopNothing(t *testing.T) {
	w, _, f, p := shared(t, "10.77.0.16/28")
	problem := func() string { return f.View().Networks[0].Problem }
	place := func() {
		t.Helper()
		if _, _, err := f.Place(ctx, []fabric.Ref{{Name: "jobs"}}, false); err != nil {
			t.Error(err)
		}
		if _, err := f.RequestAddress(ctx, fabric.AddressSpec{Pool: p.ID}); err != nil {
			t.Error(err)
		}
	}
	for range 2 { // told first by a change, then by a start of the plugin
		w.unreached = fmt.Errorf("host 2001:db8::2 %w", topology.ErrUnreached)
		if err := f.SetPeers(ctx, sharedID, []topology.Peer{peer(2, "10.77.0.32/28"), peer(3, "10.77.0.48/28")}); err != nil {
			t.Fatal(err)
		}
		place()
		if !strings.Contains(problem(), "2001:db8::2 cannot be reached") {
			t.Errorf("the user is told %q", problem())
		}
		if got := w.segments[netID("a")].Peers; len(got) != 2 {
			t.Errorf("the kernel has %v", got)
		}
		if err := f.SetClaims(ctx, sharedID, []netip.Prefix{netip.MustParsePrefix("10.77.0.16/28"), netip.MustParsePrefix("10.77.0.64/28")}); err != nil {
			t.Errorf("another block: %v", err)
		}
		if err := pass(ctx, f); err != nil {
			t.Error(err)
		}
		w.unreached = nil
		if err := f.SetPeers(ctx, sharedID, []topology.Peer{peer(2, "10.77.0.32/28")}); err != nil {
			t.Fatal(err)
		}
		if problem() != "" {
			t.Errorf("all can be reached, and the user is told %q", problem())
		}
		w.unreached = fmt.Errorf("host 2001:db8::2 %w", topology.ErrUnreached)
		f = w.reopen()
		place()
	}
}

func TestPeersThatWereNotProgrammedAreMadeUpFor(t *testing.T) {
	w, _, f, _ := shared(t, "10.77.0.16/28")
	w.applyErr = errKernel
	if err := f.SetPeers(ctx, sharedID, []topology.Peer{peer(2, "10.77.0.32/28")}); !errors.Is(err, errKernel) {
		t.Fatalf("got %v", err)
	}
	w.applyErr = nil
	if _, _, err := f.Place(ctx, []fabric.Ref{{Name: "jobs"}}, false); err != nil {
		t.Fatal(err)
	}
	if got := w.segments[netID("a")].Peers; len(got) != 1 {
		t.Errorf("the next container finds %v", got)
	}
}

func TestAddressByWishOutsideTheBlocks(t *testing.T) {
	w, c, f, p := shared(t, "10.77.0.16/28")
	wish := netip.MustParseAddr("10.77.0.200")
	w.startAs(f, netID("a"), fabric.AddressSpec{Pool: p.ID, Addr: netip.MustParseAddr("10.77.0.20")}, "1", "1", 101)
	if len(c.claimed) != 0 {
		t.Errorf("claimed for an address of the own block: %v", c.claimed)
	}
	w.startAs(f, netID("a"), fabric.AddressSpec{Pool: p.ID, Addr: wish}, "2", "2", 102)
	if !slices.Equal(c.claimed, []netip.Addr{wish}) || w.pools(netID("a")) != "10.77.0.16/28 10.77.0.200/32" {
		t.Errorf("claimed %v, local %s", c.claimed, w.pools(netID("a")))
	}
	mustBeTaken(t, f, p, wish)
	if err := pass(ctx, f); err != nil || len(c.released) != 0 {
		t.Errorf("%v; released in use: %v", err, c.released)
	}
	f = w.reopen()
	if got := f.Shared()[0].Claims; !slices.Equal(got, prefixes("10.77.0.16/28", "10.77.0.200/32")) {
		t.Errorf("claims after a restart %v", got)
	}
	// The list of before its claim, and then of after: neither changes a thing.
	for _, claims := range [][]netip.Prefix{prefixes("10.77.0.16/28"), prefixes("10.77.0.16/28", "10.77.0.200/32")} {
		if err := errors.Join(f.SetClaims(ctx, sharedID, claims), pass(ctx, f)); err != nil || len(c.released) != 0 {
			t.Fatalf("%v, released %v", err, c.released)
		}
	}
	w.stop(f, p, "2", 102, wish)
	if !slices.Equal(c.released, []netip.Addr{wish}) || w.pools(netID("a")) != "10.77.0.16/28" {
		t.Errorf("after its end: released %v, local %s", c.released, w.pools(netID("a")))
	}
}

// A boot ends the leases, but not the claims.
func TestClaimWithoutLeaseIsGivenBack(t *testing.T) {
	w, c, f, _ := shared(t, "10.77.0.16/28")
	if err := errors.Join(f.SetClaims(ctx, sharedID, prefixes("10.77.0.16/28", "10.77.0.200/32")), pass(ctx, f)); err != nil {
		t.Fatal(err)
	}
	if want := netip.MustParseAddr("10.77.0.200"); !slices.Equal(c.released, []netip.Addr{want}) || strings.Contains(w.pools(netID("a")), "200") {
		t.Errorf("released %v, local %s", c.released, w.pools(netID("a")))
	}
}

// The store is asked without a lock that others need.
func TestDeadStoreHoldsUpNobodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, c, f, p := shared(t, "10.77.0.16/28")
		c.dead = true
		c.claiming = func() {
			if _, err := f.RequestAddress(ctx, fabric.AddressSpec{Pool: p.ID}); err != nil {
				t.Error(err)
			}
		}
		began := time.Now()
		_, err := f.RequestAddress(ctx, fabric.AddressSpec{Pool: p.ID, Addr: netip.MustParseAddr("10.77.0.200")})
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != 3*time.Second || !strings.Contains(err.Error(), "omit --ip") {
			t.Errorf("after %s: %v", time.Since(began), err)
		}
		if len(c.released) != 1 {
			t.Errorf("the claim may have been made, and is not given back: %v", c.released)
		}
		c.dead, c.claiming = false, nil
		if _, err := f.RequestAddress(ctx, fabric.AddressSpec{Pool: p.ID, Addr: netip.MustParseAddr("10.77.0.200")}); err != nil {
			t.Errorf("again: %v", err)
		}
	})
}

// An address that cannot be made local is not handed out, and not kept.
func TestClaimedAddressThatTheKernelRefuses(t *testing.T) {
	w, c, f, p := shared(t, "10.77.0.16/28")
	w.applyErr = errKernel
	wish := netip.MustParseAddr("10.77.0.200")
	if _, err := f.RequestAddress(ctx, fabric.AddressSpec{Pool: p.ID, Addr: wish}); !errors.Is(err, errKernel) {
		t.Fatalf("got %v", err)
	}
	w.applyErr = nil
	if err := pass(ctx, f); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(c.released, []netip.Addr{wish}) {
		t.Errorf("released %v", c.released)
	}
	mustBeFree(t, f, p, wish)
}
