package main

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sync/errgroup"

	particle "github.com/particle-net/particle"
	"github.com/particle-net/particle/addrguard"
	"github.com/particle-net/particle/driver"
	"github.com/particle-net/particle/fabric"
	"github.com/particle-net/particle/internal/engine"
	"github.com/particle-net/particle/internal/hostapi"
	"github.com/particle-net/particle/internal/hostpath"
	"github.com/particle-net/particle/internal/pluginhttp"
	"github.com/particle-net/particle/internal/process"
	"github.com/particle-net/particle/internal/resolver"
	"github.com/particle-net/particle/internal/rundir"
	"github.com/particle-net/particle/internal/runtimeapi"
	"github.com/particle-net/particle/internal/sandboxkey"
	"github.com/particle-net/particle/internal/store"
	"github.com/particle-net/particle/ipam"
	"github.com/particle-net/particle/ipam/pool"
	"github.com/particle-net/particle/overlay"
	"github.com/particle-net/particle/seccomp/filter"
	"github.com/particle-net/particle/topology"
)

const (
	// callLimit bounds a call of Docker's, which gives up repeating one after 30 s.
	callLimit = 20 * time.Second
	// requestLimit bounds one of our own programs'. A store that is begun, joined or
	// recovered may take longer than a call of Docker's.
	requestLimit = 50 * time.Second
	// drainLimit stays under the 10 s after which Docker kills a plugin.
	drainLimit = 8 * time.Second
	// reconcileEvery is how long a difference from Docker's state may stay that nothing
	// has told of.
	reconcileEvery = 10 * time.Second
	// repairEvery is how long drift in the kernel may stay.
	repairEvery = 5 * time.Second
	// acceptEvery is shorter than what lies between two passes of repair, so that each
	// looks at all, but once at what networks share.
	acceptEvery = repairEvery / 2
	// passLimit bounds one pass of either.
	passLimit = 30 * time.Second
	// hostRoot is the host's root directory: the plugin shares its pid namespace.
	hostRoot = "/proc/1/root"
	// managedSocket is where Docker looks for a managed plugin's socket, inside it.
	managedSocket = "/run/docker/plugins/particle.sock"
)

// plugin is everything that is open.
type plugin struct {
	log       *logrus.Entry
	plane     *overlay.Host
	engine    *engine.Engine
	resolvers *resolver.Set
	guard     keeper
	fabric    *fabric.Fabric
	cluster   *cluster
	under     *underlay
	closers   []func() error // in order of opening
}

func onHost(path string) string { return filepath.Join(hostpath.PluginRoot, path) }

func open(ctx context.Context, s settings, log *logrus.Entry) (_ *plugin, err error) {
	p := &plugin{log: log}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	if err := overlay.WritableSysctls(); err != nil {
		return nil, err
	}
	p.plane, err = overlay.Open(ctx, overlay.Options{
		NamespaceDir: onHost(hostpath.NamespaceDir), HostRoot: hostRoot, AcceptEvery: acceptEvery, Ready: s.ready, Port: s.port,
	})
	if err != nil {
		return nil, err
	}
	p.closers = append(p.closers, p.plane.Close)
	p.under = &underlay{plane: p.plane, vtep: s.vtep, port: s.port, wire: s.wireGuard, log: log}
	p.engine, err = engine.New(onHost(s.docker), []string{hostpath.DriverName, hostpath.PluginName}, log)
	if err != nil {
		return nil, err
	}
	p.closers = append(p.closers, p.engine.Close)
	p.resolvers = resolver.New(resolver.Options{Sockets: p.plane, HostRoot: hostRoot, ResolvConf: "/etc/resolv.conf", Log: log})
	p.closers = append(p.closers, func() error { p.resolvers.Close(); return nil })
	defaults, err := pool.NewDefaults(s.subnets.v4, s.subnets.v6)
	if err != nil {
		return nil, err
	}
	o := fabric.Options{
		Segments:     p.plane,
		Branches:     p.plane,
		Sandboxes:    sandboxkey.Keys{Binder: p.plane, Root: hostpath.PluginRoot},
		Engine:       p.engine,
		Processes:    process.Table{Root: "/proc"},
		RunFiles:     rundir.New(onHost(hostpath.NetworkIndex), onHost(hostpath.ResolvDir)),
		Resolvers:    p.resolvers,
		Defaults:     defaults,
		Local:        append(addrguard.Prefixes(), netip.PrefixFrom(resolver.Address, resolver.Address.BitLen())),
		NoSeccomp:    filter.Probe(),
		NamespaceDir: hostpath.NamespaceDir,
		Version:      particle.Version,
		Log:          log,
	}
	durable, err := p.openStores(&o)
	if err != nil {
		return nil, err
	}
	if err := p.openGuard(ctx, s.guard, o); err != nil {
		return nil, err
	}
	o.Guard, o.GuardMode = p.guard, fabric.GuardMode(p.guard.Status().Mode)
	if p.cluster, err = p.openCluster(ctx, s, durable); err != nil {
		return nil, err
	}
	o.Cluster, o.Underlay = p.cluster.member, p.cluster.reach.Underlay
	if p.fabric, err = fabric.Open(ctx, o); err == nil {
		p.cluster.link.Fabric = p.fabric
		p.cluster.member.Restore()
	}
	return p, err
}

// openStores returns the durable one, which has tables of others, too.
func (p *plugin) openStores(o *fabric.Options) (*store.DB, error) {
	durable, err := store.Open(onHost(hostpath.Store), store.Durable)
	if err != nil {
		return nil, err
	}
	p.closers = append(p.closers, durable.Close)
	live, err := store.Open(onHost(hostpath.LiveStore), store.Volatile)
	if err != nil {
		return nil, err
	}
	p.closers = append(p.closers, live.Close)
	networks, errN := store.NewTable[fabric.Network](durable, "networks")
	pools, errP := store.NewTable[fabric.Pool](durable, "pools")
	leases, errL := store.NewTable[fabric.Lease](live, "leases")
	endpoints, errE := store.NewTable[fabric.Endpoint](live, "endpoints")
	peers, errH := store.NewTable[[]topology.Peer](durable, "peers")
	kept, errK := store.NewTable[[]netip.Prefix](live, "kept")
	o.Networks, o.Pools, o.Leases, o.Endpoints, o.Peers, o.Kept = networks, pools, leases, endpoints, peers, kept
	return durable, errors.Join(errN, errP, errL, errE, errH, errK)
}

// close ends what is open, last opened first. Errors have nowhere to go but the
// log: all that matters was written before.
func (p *plugin) close() {
	for i := len(p.closers) - 1; i >= 0; i-- {
		if err := p.closers[i](); err != nil {
			p.log.WithError(err).Warn("close")
		}
	}
	p.closers = nil
}

// serve answers until ctx ends, at the doors if they are open already.
func (p *plugin) serve(ctx context.Context, open doors) error {
	defer func() { open.close() }()
	calls, err := pluginhttp.NewServer([]string{driver.Interface, ipam.Interface}, callLimit, p.log)
	if err != nil {
		return err
	}
	driver.Register(calls, p.fabric)
	ipam.Register(calls, p.fabric)
	runtime, err := runtimeapi.Listen(onHost(hostpath.Socket))
	if err != nil {
		return err
	}
	defer runtime.Close()
	if open == nil {
		if open, err = openDoors(); err != nil {
			return err
		}
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, l := range open {
		group.Go(func() error { return calls.Serve(l) })
	}
	context.AfterFunc(ctx, open.close)
	group.Go(func() error {
		api := hostapi.API{Fabric: p.fabric, Guard: p.guard, Held: held, Cluster: &hostapi.Cluster{Membership: p.cluster.membership, Member: p.cluster.member, Encrypting: p.under.Problem}}
		return runtimeapi.Serve(ctx, runtime, api, requestLimit)
	})
	group.Go(func() error { p.cluster.run(ctx); return nil })
	group.Go(func() error { p.keep(ctx); return nil })
	p.log.WithField("version", particle.Version).Info("particle plugin ready")
	err = group.Wait()
	drain, cancel := context.WithTimeout(context.Background(), drainLimit)
	defer cancel()
	return errors.Join(err, calls.Drain(drain))
}

// doors are the sockets by which Docker calls.
type doors []net.Listener

// openDoors opens the socket that makes `-d particle` resolve before the managed
// plugin's own: Docker starts to restore networks as soon as it can dial the latter,
// and looks for the former then.
func openDoors() (open doors, err error) {
	for _, path := range []string{onHost(hostpath.DriverSocket), managedSocket} {
		l, err := listen(path)
		if err != nil {
			open.close()
			return nil, err
		}
		open = append(open, l)
	}
	return open, nil
}

func listen(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	return runtimeapi.Listen(path)
}

// close removes the files, too: a dead socket delays each look-up of Docker's by 15 s.
func (d doors) close() {
	for _, l := range d {
		_ = l.Close()
	}
}

// keep has the host as its records say, until ctx ends: what Docker tells of, which
// may be long in coming, beside what the kernel has.
func (p *plugin) keep(ctx context.Context) {
	var all errgroup.Group
	came, drifted := make(chan struct{}, 1), make(chan struct{}, 1)
	all.Go(func() error {
		p.engine.Watch(ctx, engine.Seen{
			Created: func(id topology.NetworkID, name string) {
				p.fabric.NetworkSeen(id, name)
				p.cluster.member.Wake() // the other hosts are to have it, too
			},
			Renamed: p.fabric.ContainerRenamed,
			Resync: func(context.Context) {
				p.cluster.member.Wake()
				poke(came)
				poke(drifted) // dockerd has rules of its own in the host's firewall
			},
		})
		return nil
	})
	all.Go(func() error {
		p.again(ctx, reconcileEvery, came, "reconcile with Docker", p.fabric.Reconcile)
		return nil
	})
	all.Go(func() error {
		p.again(ctx, repairEvery, drifted, "repair kernel state", func(ctx context.Context) error {
			p.cluster.follow(ctx)
			changed, err := p.plane.RepairMembers(ctx)
			if changed {
				p.fabric.NoteRepair()
				p.log.Warn("the filter of other hosts' packets had drifted and was repaired")
			}
			return errors.Join(err, p.fabric.Repair(ctx))
		})
		return nil
	})
	all.Go(func() error {
		if err := p.plane.WatchFilter(ctx, func() { poke(drifted) }); err != nil {
			p.log.WithError(err).Warnf("what the host's firewall loses is seen every %s alone", repairEvery)
		}
		return nil
	})
	_ = all.Wait() // they have nothing to report
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// again does something from time to time, and when it is asked to, until ctx ends.
func (p *plugin) again(ctx context.Context, every time.Duration, now <-chan struct{}, what string, do func(context.Context) error) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-now:
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		bounded, cancel := context.WithTimeout(ctx, passLimit)
		if err := do(bounded); err != nil && ctx.Err() == nil {
			p.log.WithError(err).Warn(what)
		}
		cancel()
	}
}
