package addrguard

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/topology"
)

// Protect makes the guard strict in a network's namespace: whoever was not
// admitted gets EPERM for a socket. It may be called again, and must be when the
// namespace got another device: sources are checked there from then on, and answers
// to echo requests by the uplink come in. For one branch more ProtectBranch is
// enough. ipv6 tells whether the network has IPv6: without, its devices need one
// program less for each packet that comes in.
func (g *Guard) Protect(ctx context.Context, id topology.NetworkID, ipv6 bool) error {
	unlock, err := g.lock(ctx)
	if err == nil {
		defer unlock()
		err = g.opts.Spaces.Within(id, func() error { return g.protect(id, ipv6) })
	}
	if err != nil {
		return networkError("protect network", id, err)
	}
	return nil
}

// protect runs inside the namespace.
func (g *Guard) protect(id topology.NetworkID, ipv6 bool) error {
	netns, err := netnsCookie()
	if err != nil {
		return err
	}
	record := guardNetwork{}
	copy(record.Id[:], id)
	g.mu.RLock()
	old, known := g.cookies[id]
	g.mu.RUnlock()
	if known && old != netns { // the namespace was made anew
		if err := g.forget(old); err != nil {
			return err
		}
	}
	g.only4[netns] = !ipv6
	if err := g.equip(netns, &record); err != nil {
		return err
	}
	if err := g.networks.Put(netns, record); err != nil {
		return fmt.Errorf("enter namespace: %w", err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.cookies[id] = netns
	return nil
}

// Unprotect ends what Protect began. Sockets that are open stay guarded, but for
// what they send to addresses of the network. Gone already is success, and the
// namespace need not exist any more.
func (g *Guard) Unprotect(ctx context.Context, id topology.NetworkID) error {
	unlock, err := g.lock(ctx)
	if err != nil {
		return networkError("unprotect network", id, err)
	}
	defer unlock()
	g.mu.RLock()
	netns, known := g.cookies[id]
	g.mu.RUnlock()
	if !known {
		return nil
	}
	if err := g.forget(netns); err != nil {
		return networkError("unprotect network", id, err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.cookies, id)
	return nil
}

// forget takes a namespace out of the kernel's records.
func (g *Guard) forget(netns uint64) error {
	if err := g.networks.Delete(netns); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("forget namespace: %w", err)
	}
	return g.unequip(netns)
}

func networkError(op string, id topology.NetworkID, err error) error {
	var known *fault.Error
	if errors.As(err, &known) {
		return err
	}
	return &fault.Error{Op: op, On: id.Short(), Err: err, Fix: "run `particle doctor` on this host"}
}

// Protected lists the networks whose namespaces are protected.
func (g *Guard) Protected() []topology.NetworkID {
	g.mu.RLock()
	defer g.mu.RUnlock()
	ids := make([]topology.NetworkID, 0, len(g.cookies))
	for id := range g.cookies {
		ids = append(ids, id)
	}
	return ids
}

// cookieOf is 0, which stands for all, for the empty network.
func (g *Guard) cookieOf(id topology.NetworkID) (uint64, error) {
	if id == "" {
		return 0, nil
	}
	g.mu.RLock()
	netns, known := g.cookies[id]
	g.mu.RUnlock()
	if !known { // by this process
		if err := g.readNetworks(); err != nil {
			return 0, networkError("admit container", id, err)
		}
		g.mu.RLock()
		netns, known = g.cookies[id]
		g.mu.RUnlock()
	}
	if !known {
		return 0, fault.New("admit container", id.Short(), "its network is not protected",
			"restart the plugin, which protects every network it finds")
	}
	return netns, nil
}

// readNetworks learns which namespaces an earlier process protected.
func (g *Guard) readNetworks() error {
	var netns uint64
	var record guardNetwork
	g.mu.Lock()
	defer g.mu.Unlock()
	list := g.networks.Iterate()
	for list.Next(&netns, &record) {
		g.cookies[topology.NetworkID(strings.TrimRight(string(record.Id[:]), "\x00"))] = netns
	}
	if err := list.Err(); err != nil {
		return fmt.Errorf("list namespaces: %w", err)
	}
	return nil
}

// netnsCookie is what the kernel calls the namespace of the calling thread
// (SO_NETNS_COOKIE, Linux 5.14).
func netnsCookie() (uint64, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open socket: %w", err)
	}
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0, fmt.Errorf("read cookie of namespace: %w", err)
	}
	return cookie, nil
}
