// Package resolver gives tenant namespaces a name server where the host's own
// cannot be reached from them: on a host whose resolv.conf names only servers
// on its loopback (systemd-resolved, dnsmasq, unbound), containers would be
// left with none. On every other host it does nothing, and containers ask the
// host's servers themselves.
package resolver

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/dns"
	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/topology"
)

// Address is where the resolver answers in each tenant namespace. It is
// link-local (RFC 3927), outside every pool and outside the uplinks' range, and
// not on 127.0.0.0/8, which programs take for their own.
var Address = netip.MustParseAddr("169.254.0.53")

// Sockets opens sockets inside a tenant namespace; package overlay has it.
type Sockets interface {
	Listen(ctx context.Context, id topology.NetworkID, network, address string) (net.Listener, error)
	ListenPacket(ctx context.Context, id topology.NetworkID, network, address string) (net.PacketConn, error)
}

// Options say where things are.
type Options struct {
	Sockets    Sockets
	HostRoot   string // where this process sees the host's files
	ResolvConf string // path on the host
	Log        *logrus.Entry
}

// Set is the resolvers of this host. It is safe for concurrent use.
type Set struct {
	o Options

	mu      sync.Mutex // guards running
	running map[topology.NetworkID]context.CancelFunc
	done    sync.WaitGroup
}

// New makes a Set that serves nothing yet.
func New(o Options) *Set {
	return &Set{o: o, running: map[topology.NetworkID]context.CancelFunc{}}
}

// Serve makes sure that a resolver answers for the network if the host needs
// one, and returns its address, which is invalid if not.
//
// It listens in any case: the host's servers may change while containers that
// were given the address run.
func (s *Set) Serve(ctx context.Context, id topology.NetworkID) (netip.Addr, error) {
	needed := s.needed()
	err := s.listen(ctx, id)
	switch {
	case !needed:
		return netip.Addr{}, nil
	case err != nil:
		return netip.Addr{}, err
	}
	return Address, nil
}

func (s *Set) listen(ctx context.Context, id topology.NetworkID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running[id] != nil {
		return nil
	}
	at := netip.AddrPortFrom(Address, 53).String()
	packets, err := s.o.Sockets.ListenPacket(ctx, id, "udp4", at)
	if err != nil {
		return err
	}
	listener, err := s.o.Sockets.Listen(ctx, id, "tcp4", at)
	if err != nil {
		return errors.Join(err, packets.Close())
	}
	forwarder := dns.New(dns.Options{Upstreams: s.upstreams, Timeout: 2 * time.Second})
	life, stop := context.WithCancel(context.Background())
	s.running[id] = stop
	s.done.Go(func() {
		if err := forwarder.Serve(life, packets, listener); err != nil && life.Err() == nil {
			s.o.Log.WithError(err).WithField("net", id.Short()).Error("resolver ended; it starts again with the next container")
			s.Stop(id)
		}
	})
	return nil
}

// Stop ends the network's resolver, if there is one.
func (s *Set) Stop(id topology.NetworkID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if stop := s.running[id]; stop != nil {
		stop()
		delete(s.running, id)
	}
}

// Close ends all resolvers and waits for them.
func (s *Set) Close() {
	s.mu.Lock()
	for id, stop := range s.running {
		stop()
		delete(s.running, id)
	}
	s.mu.Unlock()
	s.done.Wait()
}

// needed says whether containers could reach none of the host's name servers
// themselves. The file is read anew each time: DHCP clients rewrite it.
func (s *Set) needed() bool {
	conf, err := s.readConf()
	if err != nil {
		s.o.Log.WithError(err).Debug("host's name servers not read")
		return false
	}
	return len(conf.Reachable()) == 0 && len(conf.Loopback()) > 0
}

// upstreams are all of the host's name servers: it is the host that asks them.
func (s *Set) upstreams() []netip.AddrPort {
	conf, err := s.readConf()
	if err != nil {
		s.o.Log.WithError(err).Debug("host's name servers not read")
		return nil
	}
	var all []netip.AddrPort
	for _, a := range conf.Servers {
		all = append(all, netip.AddrPortFrom(a, 53))
	}
	return all
}

// readConf resolves symbolic links inside the host's root: resolv.conf is one
// on most hosts, and its target is absolute.
func (s *Set) readConf() (dns.Config, error) {
	root, err := unix.Open(s.o.HostRoot, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return dns.Config{}, &fault.Error{Op: "open", On: s.o.HostRoot, Err: err}
	}
	defer unix.Close(root)
	fd, err := unix.Openat2(root, s.o.ResolvConf, &unix.OpenHow{Flags: unix.O_RDONLY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT})
	if err != nil {
		return dns.Config{}, &fault.Error{Op: "open", On: s.o.ResolvConf, Err: err}
	}
	file := os.NewFile(uintptr(fd), s.o.ResolvConf)
	defer file.Close()
	return dns.ParseResolvConf(file)
}
