package main

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	particle "github.com/particle-net/particle"
	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/control/enrol"
	"github.com/particle-net/particle/control/etcd"
	"github.com/particle-net/particle/control/server"
	"github.com/particle-net/particle/fabric"
	"github.com/particle-net/particle/internal/hostpath"
	"github.com/particle-net/particle/internal/member"
	"github.com/particle-net/particle/internal/membership"
	"github.com/particle-net/particle/internal/store"
	"github.com/particle-net/particle/internal/wireguard"
	"github.com/particle-net/particle/overlay"
	"github.com/particle-net/particle/topology"
)

// cluster is this host's part in one.
type cluster struct {
	membership *membership.Membership
	member     *member.Member
	link       *fabricLink
	under      *underlay
	log        *logrus.Entry

	// following lets one at a time find out how this host is reached.
	following sync.Mutex
	node      control.Node
	reach     reach
}

// fabricLink is the fabric as the member needs it, which needs the member itself
// and so is opened after it.
type fabricLink struct{ *fabric.Fabric }

func (p *plugin) openCluster(ctx context.Context, s settings, durable *store.DB) (*cluster, error) {
	networks, errK := store.NewTable[member.Known](durable, "cluster")
	hosts, errH := store.NewTable[control.Node](durable, "hosts")
	if err := errors.Join(errK, errH); err != nil {
		return nil, err
	}
	c := &cluster{link: &fabricLink{}, under: p.under, log: p.log}
	var err error
	o := membershipOptions(s, p.plane, p.log)
	o.Busy = func(ctx context.Context) ([]string, error) { return c.member.Busy(ctx) }
	o.Leaving = func(ctx context.Context) error { return c.member.Leave(ctx) }
	o.Removing = func(ctx context.Context, id topology.NodeID) error { return c.member.RemoveNode(ctx, id) }
	o.Known = func() []enrol.Host { return known(c.member.Status()) }
	if c.membership, err = membership.Open(o); err != nil {
		return nil, err
	}
	p.closers = append(p.closers, c.membership.Close)
	p.under.node = c.membership.Node()
	c.node = control.Node{ID: p.under.node, Name: o.Name, Version: particle.Version, Boot: bootID()}
	c.member, err = member.New(member.Options{
		Node: c.node, Fabric: c.link, Engine: p.engine, Overlay: p.plane, Driver: hostpath.DriverName,
		Known: networks, Hosts: hosts, Chosen: s.subnets.has, Clock: sinceBoot, Wall: time.Now, Log: p.log,
	})
	if err != nil {
		return nil, err
	}
	c.begin(ctx)
	return c, nil
}

// begin takes up what the disk tells, which is there by now; no call of Docker's is to
// come before it. Also where the host cannot take part in its cluster, its containers go
// on, and what the cluster encrypts stays encrypted.
func (c *cluster) begin(ctx context.Context) {
	select {
	case conn := <-c.membership.Connections():
		c.membership.Use(conn, func() { c.connect(ctx, conn) })
		return
	default:
	}
	switch encryption, secret, err := c.membership.Encryption(); {
	case encryption == topology.Plain:
	case err != nil:
		c.under.withhold(err)
	default:
		c.under.encrypt(secret)
	}
	c.follow(ctx)
}

// follow finds out how other hosts reach this one, and tells those who have to
// know. Before the fabric is open, it is told by its options.
func (c *cluster) follow(ctx context.Context) {
	c.following.Lock()
	defer c.following.Unlock()
	now, err := c.under.look(ctx)
	if err != nil {
		// Ending here would be for good: Docker starts no plugin twice that does
		// not get up. The address may come later.
		if c.reach.Port == 0 {
			c.log.WithError(err).Error("no tunnel address; networks are local to this host until there is one")
			c.reach.Underlay = topology.Underlay{MTU: defaultMTU, Port: c.under.port}
		}
		return
	}
	c.reach, c.node.VTEP, c.node.Port, c.node.WireGuard = now, now.VTEP, now.Port, now.end
	c.member.SetReach(netip.AddrPortFrom(now.VTEP, now.Port), now.end)
	if c.link.Fabric == nil {
		return
	}
	if now.repaired {
		c.link.NoteRepair()
		c.log.Warn("WireGuard had drifted and was repaired")
	}
	if c.link.SetUnderlay(now.Underlay) {
		c.log.WithFields(logrus.Fields{"vtep": now.VTEP.String(), "mtu": now.MTU, "encrypted": now.end != nil}).Warn("underlay changed")
	}
}

// run follows the membership, and keeps the host in step, until ctx ends.
func (c *cluster) run(ctx context.Context) {
	var connecting errgroup.Group
	connecting.Go(func() error {
		for {
			select {
			case conn, open := <-c.membership.Connections():
				if !open {
					return nil
				}
				c.membership.Use(conn, func() { c.connect(ctx, conn) })
			case <-ctx.Done():
				return nil
			}
		}
	})
	c.member.Run(ctx)
	_ = connecting.Wait() // it has nothing to report
}

func (c *cluster) connect(ctx context.Context, conn *membership.Connection) {
	if conn == nil {
		c.member.Disconnect()
		c.under.encrypt(wireguard.Secret{})
		c.follow(ctx)
		c.under.remove(ctx)
		return
	}
	c.under.encrypt(conn.Secret)
	c.follow(ctx)
	if conn.Encryption == topology.Plain {
		c.under.remove(ctx)
	}
	c.following.Lock()
	node := c.node
	c.following.Unlock()
	s, err := etcd.Open(ctx, etcd.Options{
		Endpoints: conn.Endpoints, TLS: conn.TLS, User: conn.User, Password: conn.Password, Node: node, Encryption: conn.Encryption,
		Origin: c.member.Origin(), Log: c.log,
	})
	if err != nil {
		c.log.WithError(err).Error("the cluster's store cannot be used")
		c.member.Enter()
		return
	}
	c.member.Connect(s)
}

// known lists the hosts of a cluster as the store tells.
func known(s member.Status) []enrol.Host {
	var all []enrol.Host
	for _, h := range s.Hosts {
		all = append(all, enrol.Host{ID: h.ID, Name: h.Name})
	}
	return all
}

// bootID is new with each boot of the host.
func bootID() string {
	raw, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(raw))
}

// sinceBoot goes on while the host sleeps and does not jump with the wall clock.
func sinceBoot() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		panic("CLOCK_BOOTTIME: " + err.Error()) // every kernel since 2.6.39 has it
	}
	return time.Duration(t.Nano())
}

// membershipOptions are this host's. What depends on its networks is the caller's
// to add.
func membershipOptions(s settings, plane *overlay.Host, log *logrus.Entry) membership.Options {
	o := membership.Options{
		StateDir: onHost(hostpath.StateDir), Name: hostName(), Port: s.clusterPort, Version: particle.Version,
		Address: func(ctx context.Context) (netip.Addr, error) {
			u, err := plane.Underlay(ctx, s.vtep)
			return u.VTEP, err
		},
		CanEncrypt: plane.CanEncrypt,
		Command:    []string{"/proc/self/exe", server.Argument},
		Log:        log,
	}
	if s.etcd != "" {
		endpoints, _ := membership.ParseEndpoints(s.etcd) // it was when it was read
		o.External = &membership.External{Endpoints: endpoints, User: s.etcdUser, Dir: onHost(hostpath.EtcdClientDir), Encryption: s.encryption}
	}
	return o
}

// hostName gives the host's name: Docker gives a plugin one of its own.
func hostName() string {
	names := make(chan string, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread is in another namespace, and ends
		name := ""
		if fd, err := unix.Open("/proc/1/ns/uts", unix.O_RDONLY|unix.O_CLOEXEC, 0); err == nil {
			if unix.Setns(fd, unix.CLONE_NEWUTS) == nil {
				name, _ = os.Hostname()
			}
			_ = unix.Close(fd)
		}
		names <- name
	}()
	if name := <-names; name != "" {
		return name
	}
	name, err := os.Hostname()
	if err != nil || name == "" {
		return "unnamed"
	}
	return name
}
