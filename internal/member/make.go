package member

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/fabric"
	"github.com/particle-net/particle/internal/engine"
	"github.com/particle-net/particle/topology"
)

// newFor is how long a network counts as new: two users, or one script on two
// hosts, made it at about the same time.
const newFor = 2 * time.Minute

// removeAll removes from this host's Docker what the cluster has no more.
func (m *Member) removeAll(ctx context.Context, here map[topology.SharedID]fabric.SharedNetwork) {
	for id, local := range here {
		m.mu.Lock()
		n := m.at(id)
		record, _, ok := m.cluster.Find(string(id))
		gone := (!ok || record.Removed) && (n.Seen || n.Network.Removed) && !n.Unshared && !local.Doomed
		switch {
		case gone:
			n.Network.Removed, n.dirty = true, true
		case n.phase == Leaving && ok && !record.Removed && !n.Unshared && !n.Left && !local.Doomed:
			n.done() // the store was set back to when it was not removed
		}
		due := m.o.Clock() >= n.retry
		m.mu.Unlock()
		if gone && due {
			m.remove(ctx, id, local)
		}
	}
}

// remove removes a network unless containers live on it. Docker then calls our
// driver, whose fabric calls Unshare, which has the network left.
func (m *Member) remove(ctx context.Context, id topology.SharedID, local fabric.SharedNetwork) {
	if local.Live {
		m.failed(id, Leaving, errors.New("removed in the cluster, but containers of this host still live on it; it goes when they end"))
		return
	}
	bounded, cancel := context.WithTimeout(ctx, engineLimit)
	defer cancel()
	if err := m.o.Engine.Remove(bounded, local.Network); err != nil {
		m.failed(id, Leaving, err)
		return
	}
	m.o.Log.WithField("net", local.Name).Info("network removed here, as in the cluster")
}

// makeAll makes in this host's Docker what the cluster has.
func (m *Member) makeAll(ctx context.Context, here map[topology.SharedID]fabric.SharedNetwork, specs []engine.Spec) {
	m.mu.Lock()
	now := m.o.Clock()
	var wanted []control.Network
	for _, record := range m.cluster.All(control.Current) {
		if _, ok := here[record.ID]; ok || record.Name == "" || record.Removed || now < m.settled {
			continue
		}
		if n := m.networks[record.ID]; n == nil || !n.Unshared && now >= n.retry {
			wanted = append(wanted, record)
		}
	}
	m.mu.Unlock()
	for _, record := range wanted {
		if err := m.make(ctx, record, here, specs); err != nil {
			phase := Pending
			if errors.As(err, new(*conflict)) || errors.Is(err, engine.ErrNameTaken) {
				phase = Conflict
			}
			m.failed(record.ID, phase, err)
		}
	}
}

func (m *Member) make(ctx context.Context, record control.Network, here map[topology.SharedID]fabric.SharedNetwork, specs []engine.Spec) error {
	ctx, cancel := context.WithTimeout(ctx, engineLimit)
	defer cancel()
	if err := m.makeWay(ctx, record, here, specs); err != nil {
		return err
	}
	m.mu.Lock()
	n := m.at(record.ID)
	n.Network, n.Seen, n.making = record, true, true
	m.mu.Unlock()
	id, err := m.o.Engine.Create(ctx, m.o.Driver, wish(record))
	m.mu.Lock()
	n.making = false
	if err == nil {
		n.done()
		n.spare = nil // the fabric has them
	}
	m.mu.Unlock()
	if err == nil {
		m.o.Log.WithFields(map[string]any{"net": record.Name, "id": id.Short(), "vni": record.VNI}).Info("network of the cluster made here")
		m.kick(record.ID)
		m.Wake() // its routes are to be followed
	}
	return err
}

// makeWay removes this host's networks of the name of one of the cluster's, or
// says why it cannot.
func (m *Member) makeWay(ctx context.Context, record control.Network, here map[topology.SharedID]fabric.SharedNetwork, specs []engine.Spec) error {
	own, made := here[record.ID]
	for _, spec := range specs {
		if spec.Name != record.Name || made && spec.ID == own.Network {
			continue
		}
		if why := m.standsInTheWay(ctx, record, spec, here); why != nil {
			return why
		}
		if err := m.o.Engine.Remove(ctx, spec.ID); err != nil {
			return err
		}
		m.o.Log.WithFields(map[string]any{"net": spec.Name, "id": spec.ID.Short()}).
			Warn("network of this host replaced by the cluster's of the same name, which was first")
	}
	return nil
}

// removeTwins removes what bears the name of a network of the cluster beside it:
// Docker lets two be made of one name at the same moment. What cannot go is shown
// as a conflict.
func (m *Member) removeTwins(ctx context.Context, here map[topology.SharedID]fabric.SharedNetwork, specs []engine.Spec) {
	m.mu.Lock()
	records := m.cluster.All(control.Current)
	m.mu.Unlock()
	for _, record := range records {
		if _, ok := here[record.ID]; !ok || record.Name == "" || record.Removed {
			continue
		}
		bounded, cancel := context.WithTimeout(ctx, engineLimit)
		err := m.makeWay(bounded, record, here, specs)
		cancel()
		if err != nil {
			m.failed(record.ID, Conflict, err)
			continue
		}
		m.mu.Lock()
		if n := m.at(record.ID); n.phase == Conflict {
			n.done()
		}
		m.mu.Unlock()
	}
}

// wish is what Docker is asked for.
func wish(n control.Network) engine.Spec {
	s := engine.Spec{Name: n.Name, Internal: n.Internal, Options: n.Options, Labels: n.Labels, Shared: n.ID}
	for _, subnet := range n.Subnets {
		s.Subnets = append(s.Subnets, engine.Subnet{Prefix: subnet.Prefix, Range: subnet.Range, Gateway: subnet.Gateway, Aux: subnet.Aux})
	}
	return s
}

// conflict is a network of this host that keeps the cluster's from being made.
type conflict struct{ why string }

func (c *conflict) Error() string {
	return "this host has another network of this name, " + c.why + "; remove it with `docker network rm`, and the cluster's is made"
}

// standsInTheWay says why a network of this host cannot be replaced by the
// cluster's of the same name. It can if nobody would miss it: it is new, unused,
// and its maker wished for the same.
func (m *Member) standsInTheWay(ctx context.Context, record control.Network, local engine.Spec, here map[topology.SharedID]fabric.SharedNetwork) error {
	for _, s := range here {
		if s.Network == local.ID && (s.Live || s.Doomed) {
			return &conflict{"with live containers"}
		}
	}
	switch age := m.o.Wall().Sub(local.Created); {
	case !local.Ours:
		return &conflict{"of the driver " + local.Driver}
	case local.Shared == record.ID: // made for this, and lost to the plugin
	case age > newFor:
		return &conflict{"made long before"}
	default:
		if differs := m.differs(record, local); differs != "" {
			return &conflict{"with other " + differs}
		}
	}
	used, err := m.o.Engine.Endpoints(ctx, local.ID)
	if err == nil && len(used) > 0 {
		return &conflict{fmt.Sprintf("with %d containers", len(used))}
	}
	return err
}

// differs names what two makers of a network have not wished for alike.
func (m *Member) differs(record control.Network, local engine.Spec) string {
	switch {
	case !maps.Equal(record.Options, local.Options):
		return "options"
	case !maps.Equal(record.Labels, local.Labels):
		return "labels"
	case record.Internal != local.Internal:
		return "--internal"
	}
	want, have := wish(record).Subnets, slices.Clone(local.Subnets)
	engine.Sort(want)
	engine.Sort(have)
	if !slices.EqualFunc(want, have, m.sameSubnet) {
		return "subnets"
	}
	return ""
}

// sameSubnet compares what a user can have asked for. One who named no subnet
// takes any.
func (m *Member) sameSubnet(want, have engine.Subnet) bool {
	if want.Prefix != have.Prefix {
		return want.Prefix.Addr().Is4() == have.Prefix.Addr().Is4() && m.o.Chosen != nil && m.o.Chosen(have.Prefix) && len(have.Aux) == 0
	}
	return whole(want) == whole(have) && maps.Equal(want.Aux, have.Aux) &&
		(!have.Gateway.IsValid() || !want.Gateway.IsValid() || have.Gateway == want.Gateway)
}

func whole(s engine.Subnet) netip.Prefix {
	if s.Range.IsValid() {
		return s.Range
	}
	return s.Prefix
}
