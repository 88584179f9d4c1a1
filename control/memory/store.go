package memory

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/control/blocks"
	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/topology"
)

// Store is one host's view of a Cluster.
type Store struct {
	c      *Cluster
	id     topology.NodeID
	once   sync.Once
	closed chan struct{}

	// Guarded by c.mu.
	node control.Node // as it was told last
	cut  bool
	deaf bool
	hush bool
}

var (
	_ control.Allocator   = (*Store)(nil)
	_ control.Directory   = (*Store)(nil)
	_ control.Distributor = (*Store)(nil)
)

// Cut parts the host from the store: operations fail with control.ErrUnreachable
// and change nothing, and watches are down.
func (s *Store) Cut(cut bool) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.cut = cut
	if _, known := s.c.now.nodes[s.id]; !known && !cut {
		s.c.now.nodes[s.id] = control.NodeState{Node: s.node, Alive: true}
	}
	s.c.touch()
}

// LoseReplies has every write happen and then fail with control.ErrUnreachable,
// as when the connection breaks before the answer.
func (s *Store) LoseReplies(lose bool) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.deaf = lose
}

// Hush has operations wait for an answer that does not come until their context
// ends. Watches deliver nothing, and do not know it either unless the host is cut
// off, too.
func (s *Store) Hush(hush bool) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.hush = hush
	s.c.touch()
}

// Close ends all watches and lets the host be shown as suspect. Its claims stay.
func (s *Store) Close() error {
	s.once.Do(func() {
		close(s.closed)
		s.c.SetAlive(s.id, false)
	})
	return nil
}

// Instance is the name of the store; a wiped one has another.
func (s *Store) Instance() string {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	return s.c.now.instance
}

// write is one transaction: what f changes is kept if it returns nil.
func (s *Store) write(ctx context.Context, op, on string, f func(*state) error) error {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if s.hush {
		s.c.mu.Unlock()
		<-ctx.Done()
		s.c.mu.Lock()
	}
	if err := ctx.Err(); err != nil || s.cut {
		return s.lost(op, on, err)
	}
	before := s.c.now
	s.c.now = before.clone()
	s.c.now.revision++
	if err := f(&s.c.now); err != nil {
		s.c.now = before
		var shaped *fault.Error
		if errors.As(err, &shaped) {
			return err
		}
		return &fault.Error{Op: op, On: on, Err: err, Fix: "choose other values or create the network anew"}
	}
	s.c.touch()
	if s.deaf {
		return s.lost(op, on, nil)
	}
	return nil
}

func (s *Store) lost(op, on string, err error) error {
	return &fault.Error{Op: op, On: on, Err: errors.Join(control.ErrUnreachable, err), Fix: "check that this host reaches the store"}
}

// SetNode tells the cluster what has changed about this host.
func (s *Store) SetNode(ctx context.Context, n control.Node) error {
	return s.write(ctx, "update host", n.Name, func(now *state) error {
		now.nodes[n.ID], s.node = control.NodeState{Node: n, Alive: true}, n
		return nil
	})
}

// RemoveNode gives up all claims of a host and takes its record away. Another
// host must be suspect.
func (s *Store) RemoveNode(ctx context.Context, id topology.NodeID) error {
	return s.write(ctx, "remove host", id.Short(), func(now *state) error {
		if id != s.id && now.nodes[id].Alive {
			return &fault.Error{Op: "remove host", On: id.Short(), Err: control.ErrAlive, Fix: "run `particle cluster leave` on it, or stop it and wait until it is suspect"}
		}
		s.c.drop(func(c control.Claim) bool { return c.Node == id })
		maps.DeleteFunc(now.announced, func(a announcement, _ control.Route) bool { return a.node == id })
		maps.DeleteFunc(now.vouched, func(a announcement, _ control.Route) bool { return a.node == id })
		for network := range now.networks {
			s.c.collect(network)
		}
		delete(now.nodes, id)
		return nil
	})
}

// ClaimNetwork implements control.Allocator.
func (s *Store) ClaimNetwork(ctx context.Context, n control.Network) (topology.VNI, error) {
	if err := blocks.Check(n); err != nil {
		return 0, &fault.Error{Op: "register network", On: n.ID.Short(), Err: err, Fix: "pass other subnets or options"}
	}
	n.Name, n.Removed = "", false
	err := s.write(ctx, "register network", n.ID.Short(), func(now *state) error {
		if old, ok := now.networks[n.ID]; ok {
			if old.Removed || !blocks.SameShape(n, old) || n.VNI != 0 && n.VNI != old.VNI {
				return fmt.Errorf("%w: the network is registered with other settings", control.ErrTaken)
			}
			n.VNI = old.VNI
			return nil
		}
		used := map[topology.VNI]topology.SharedID{}
		for _, other := range now.networks {
			used[other.VNI] = other.ID
		}
		if by, ok := used[n.VNI]; ok && n.VNI != 0 {
			return fmt.Errorf("VNI %d is %w by network %s", n.VNI, control.ErrTaken, by.Short())
		}
		for v := blocks.FirstVNI(n.ID); n.VNI == 0; v = blocks.NextVNI(v) {
			if _, ok := used[v]; !ok {
				n.VNI = v
			}
		}
		now.networks[n.ID] = n
		return nil
	})
	if err != nil {
		return 0, err
	}
	return n.VNI, nil
}

// NameNetwork implements control.Allocator.
func (s *Store) NameNetwork(ctx context.Context, n control.Network) error {
	return s.write(ctx, "name network", n.Name, func(now *state) error {
		old, ok := now.networks[n.ID]
		by, named := now.names[n.Name]
		switch {
		case n.Name == "":
			return errors.New("the name is empty")
		case !ok || old.Removed:
			return control.ErrNoNetwork
		case old.Name != "" && old.Name != n.Name:
			return fmt.Errorf("%w: the network has the name %s already", control.ErrTaken, old.Name)
		case named && by != n.ID:
			return fmt.Errorf("the name is %w by network %s", control.ErrTaken, by.Short())
		}
		now.networks[n.ID], now.names[n.Name] = old.Named(n), n.ID
		return nil
	})
}

// RemoveNetwork implements control.Allocator.
func (s *Store) RemoveNetwork(ctx context.Context, id topology.SharedID) error {
	return s.write(ctx, "remove network", id.Short(), func(now *state) error {
		n, ok := now.networks[id]
		if !ok {
			return nil
		}
		if now.names[n.Name] == id {
			delete(now.names, n.Name)
		}
		n.Removed = true
		now.networks[id] = n
		s.c.collect(id)
		return nil
	})
}

// LeaveNetwork implements control.Allocator.
func (s *Store) LeaveNetwork(ctx context.Context, id topology.SharedID) error {
	return s.write(ctx, "leave network", id.Short(), func(now *state) error {
		s.c.drop(func(c control.Claim) bool { return c.Network == id && c.Node == s.id })
		maps.DeleteFunc(now.vouched, func(a announcement, _ control.Route) bool { return a.network == id && a.node == s.id })
		s.c.collect(id)
		return nil
	})
}

// ClaimBlock implements control.Allocator.
func (s *Store) ClaimBlock(ctx context.Context, id topology.SharedID, subnet netip.Prefix) (control.Claim, error) {
	c := control.Claim{Network: id, Node: s.id}
	err := s.write(ctx, "claim block of", subnet.String(), func(now *state) error {
		n, ok := now.networks[id]
		i := slices.IndexFunc(n.Subnets, func(sub control.Subnet) bool { return sub.Prefix == subnet })
		if !ok || n.Removed || i < 0 {
			return control.ErrNoNetwork
		}
		if now.settling[id] {
			return control.ErrSettling
		}
		free := blocks.Unused(n.Subnets[i], 1, func(p netip.Prefix) bool {
			_, taken := s.c.taken(id, p)
			_, vouched := now.vouchedFor(id, p, true)
			return taken || vouched || now.freed[place{id, p}] != 0
		})
		if len(free) > 0 {
			c.Prefix = free[0]
		} else if c.Prefix, ok = s.c.oldest(func(p place) bool {
			_, taken := s.c.taken(id, p.prefix)
			if _, vouched := now.vouchedFor(id, p.prefix, true); vouched {
				return false
			}
			return p.network == id && subnet.Contains(p.prefix.Addr()) && !taken
		}); !ok {
			return control.ErrExhausted
		}
		delete(now.freed, place{id, c.Prefix})
		now.claims[place{id, c.Prefix}] = c
		return nil
	})
	if err != nil {
		return control.Claim{}, err
	}
	return c, nil
}

// ClaimAddress implements control.Allocator.
func (s *Store) ClaimAddress(ctx context.Context, id topology.SharedID, addr netip.Addr, holder string) (control.Claim, error) {
	c := control.Claim{Network: id, Prefix: netip.PrefixFrom(addr, addr.BitLen()), Node: s.id, Holder: holder}
	err := s.write(ctx, "claim address", addr.String(), func(now *state) error {
		n, ok := now.networks[id]
		if !ok || n.Removed {
			return control.ErrNoNetwork
		}
		if err := blocks.Fits(n, c.Prefix); err != nil {
			return err
		}
		sub, _ := blocks.Of(n, addr)
		if why := blocks.Reserved(sub, addr); why != "" {
			return fmt.Errorf("%w: %s", control.ErrReserved, why)
		}
		if now.settling[id] {
			return control.ErrSettling
		}
		if by, vouched := now.vouchedFor(id, c.Prefix, false); vouched {
			return s.c.refuse(c.Prefix, control.Claim{Prefix: by.Prefix, Node: by.Node})
		}
		return s.take(now, c)
	})
	if err != nil {
		return control.Claim{}, err
	}
	return c, nil
}

// take claims what nobody else has. Single addresses of this host become a part of a
// block around them.
func (s *Store) take(now *state, c control.Claim) error {
	maps.DeleteFunc(now.claims, func(at place, has control.Claim) bool {
		return !c.Single() && has.Single() && at.network == c.Network && has.Node == s.id && c.Prefix.Overlaps(at.prefix)
	})
	if by, taken := s.c.taken(c.Network, c.Prefix); taken && (by.Node != s.id || by.Prefix != c.Prefix) {
		return s.c.refuse(c.Prefix, by)
	}
	at := place{c.Network, c.Prefix}
	delete(now.freed, at)
	delete(now.vouched, announcement{at, s.id})
	now.claims[at] = c
	return nil
}

// vouchedFor is what others vouch for of a prefix, or of a block that it lies in.
func (s *state) vouchedFor(id topology.SharedID, p netip.Prefix, within bool) (control.Route, bool) {
	for a, r := range s.vouched {
		if a.network == id && a.prefix.Overlaps(p) && (within || a.prefix.Bits() <= p.Bits()) {
			return r, true
		}
	}
	return control.Route{}, false
}

// Vouch implements control.Allocator.
func (s *Store) Vouch(ctx context.Context, n control.Network, r control.Route, owner control.Node) error {
	return s.write(ctx, "vouch for", r.Prefix.String(), func(now *state) error {
		has, ok := now.networks[n.ID]
		at := place{n.ID, r.Prefix}
		if !ok {
			return control.ErrNoNetwork
		}
		if err := has.Recognise(n); err != nil {
			return err
		}
		switch err := blocks.Fits(has, r.Prefix); {
		case err != nil:
			return fmt.Errorf("%w: %w", control.ErrTaken, err)
		case !now.settling[n.ID] && r.Node != s.id:
			return control.ErrSettled
		case now.claims[at].Node == r.Node:
			return nil
		}
		if _, known := now.nodes[r.Node]; !known {
			owner.ID = r.Node
			now.nodes[r.Node] = control.NodeState{Node: owner}
		}
		r.Network, r.Vouched = n.ID, true
		now.vouched[announcement{at, r.Node}] = r
		return nil
	})
}

// Restore implements control.Allocator.
func (s *Store) Restore(ctx context.Context, n control.Network, c control.Claim) error {
	c.Network, c.Node = n.ID, s.id
	return s.write(ctx, "claim again", c.Prefix.String(), func(now *state) error {
		if _, ok := now.networks[n.ID]; !ok {
			for _, other := range now.networks {
				if other.VNI == n.VNI {
					return fmt.Errorf("VNI %d is %w by network %s", n.VNI, control.ErrTaken, other.ID.Short())
				}
			}
			now.networks[n.ID], now.settling[n.ID] = n, true
			if _, named := now.names[n.Name]; !named && !n.Removed && n.Name != "" {
				now.names[n.Name] = n.ID
			}
		}
		old := now.networks[n.ID]
		if err := old.Recognise(n); err != nil {
			return err
		}
		if err := blocks.Fits(old, c.Prefix); err != nil {
			return fmt.Errorf("%w: %w", control.ErrTaken, err)
		}
		if by, taken := s.c.taken(n.ID, c.Prefix); taken && by.Node == s.id && c.Single() && !by.Single() {
			return nil // it is a part of the block
		}
		return s.take(now, c)
	})
}

// Release implements control.Allocator.
func (s *Store) Release(ctx context.Context, c control.Claim) error {
	return s.write(ctx, "release", c.Prefix.String(), func(now *state) error {
		s.c.drop(func(has control.Claim) bool {
			return has.Network == c.Network && has.Prefix == c.Prefix && has.Node == s.id
		})
		delete(now.vouched, announcement{place{c.Network, c.Prefix}, s.id})
		return nil
	})
}

// Announce implements control.Distributor.
func (s *Store) Announce(ctx context.Context, r control.Route) error {
	return s.write(ctx, "announce", r.Prefix.String(), func(now *state) error {
		r.Node = s.id
		now.announced[announcement{place{r.Network, r.Prefix}, s.id}] = r
		return nil
	})
}

// Withdraw implements control.Distributor.
func (s *Store) Withdraw(ctx context.Context, r control.Route) error {
	return s.write(ctx, "withdraw", r.Prefix.String(), func(now *state) error {
		delete(now.announced, announcement{place{r.Network, r.Prefix}, s.id})
		return nil
	})
}
