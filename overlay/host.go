package overlay

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/topology"
)

// Options say where things are on this host.
type Options struct {
	// NamespaceDir is where tenant namespaces are bound, as this process sees
	// it. Other processes find them there only if mounts made in it propagate.
	NamespaceDir string
	// HostRoot is the root directory in which the host's own iptables is run.
	// A plugin that shares the host's pid namespace uses /proc/1/root; empty
	// means the root of this process.
	HostRoot string
	// Ready is how many empty namespaces to keep at hand for new networks, from
	// Open on; 0 keeps none. One with an uplink takes two. Each takes about 0.2 MB
	// of the kernel's memory.
	Ready int
	// AcceptEvery is how long the rules in the host's own firewall, and where its
	// links lead, are taken for granted once they were seen; 0 looks at each
	// ApplyUplink. A look runs the host's iptables four times for each IP
	// version, and lists links and routes. ApplyBranch takes the tenant
	// namespace's rules for granted as long, and Apply those of SetMembers.
	AcceptEvery time.Duration
	// Port is the UDP destination port of VXLAN that Underlay reports; 0 means
	// topology.VXLANPort.
	Port uint16
}

// socketTimeout bounds one answer of the kernel. RTNL is held for 20 ms by each
// device that anyone on the host moves or deletes, so a burst elsewhere may
// make us wait for seconds.
const socketTimeout = 15 * time.Second

// Host is the data plane of one host.
type Host struct {
	opts Options
	root *namespace // the host's network namespace

	// rtnl admits one writer of network configuration at a time. It ranks
	// first: nothing else is held while waiting for it.
	rtnl chan struct{}

	// Guarded by rtnl:
	accepted map[string]time.Time         // when ensureAccepted last looked, by program
	surveyed survey                       // what ensureHostRules saw of the host
	trunks   map[topology.NetworkID]trunk // what ensureTrunk saw of networks
	watches  map[string]*watch            // by the file of the namespace
	filter   filter                       // what is known of filterTable
	tunnels  tunnels                      // what is known of WireGuard's peers

	stock *stock
	stop  context.CancelFunc
	done  sync.WaitGroup
}

// Open takes the network namespace of the calling thread for the host's and
// prepares NamespaceDir. It changes nothing that is there: namespaces bound
// earlier are found again by Networks.
func Open(ctx context.Context, opts Options) (*Host, error) {
	if opts.Port == 0 {
		opts.Port = topology.VXLANPort
	}
	if err := os.MkdirAll(opts.NamespaceDir, 0o755); err != nil {
		return nil, &fault.Error{Op: "open data plane", On: opts.NamespaceDir, Err: err,
			Fix: "give the plugin the host's /run as a writable mount"}
	}
	root, err := currentNamespace()
	if err != nil {
		return nil, &fault.Error{Op: "open data plane", Err: err, Fix: "run as root with CAP_NET_ADMIN and CAP_SYS_ADMIN"}
	}
	life, stop := context.WithCancel(context.WithoutCancel(ctx))
	h := &Host{opts: opts, root: root, rtnl: make(chan struct{}, 1), accepted: map[string]time.Time{}, stock: newStock(opts.Ready), stop: stop,
		trunks: map[topology.NetworkID]trunk{}, watches: map[string]*watch{}}
	if err := h.refill(ctx); err != nil {
		return nil, errors.Join(&fault.Error{Op: "open data plane", Err: err,
			Fix: "see /proc/sys/user/max_net_namespaces and the memory left"}, h.Close())
	}
	if opts.Ready > 0 {
		h.done.Go(func() { h.keepReady(life) })
	}
	return h, nil
}

// Close releases what this process holds. Everything in the kernel stays as it
// is, so that containers go on while the plugin is replaced.
func (h *Host) Close() error {
	h.stop()
	h.done.Wait()
	h.stock.close()
	for path := range h.watches {
		h.unwatch(path)
	}
	h.root.close()
	return nil
}

// write waits for the turn to change network configuration. The caller calls
// the returned function when it is done.
func (h *Host) write(ctx context.Context) (release func(), err error) {
	select {
	case h.rtnl <- struct{}{}:
		return func() { <-h.rtnl }, nil
	case <-ctx.Done():
		return nil, &fault.Error{Op: "change network configuration", Err: context.Cause(ctx), Fix: "try again"}
	}
}

// path is the file the network's namespace is bound on.
func (h *Host) path(id topology.NetworkID) (string, error) {
	if _, err := topology.ParseNetworkID(string(id)); err != nil {
		return "", &fault.Error{Op: "name namespace", Err: err, Fix: "report this as a bug"}
	}
	return filepath.Join(h.opts.NamespaceDir, string(id)), nil
}

// listed repeats a dump that a change elsewhere interrupted.
func listed[T any](dump func() ([]T, error)) ([]T, error) {
	const attempts = 5
	var list []T
	var err error
	for range attempts {
		if list, err = dump(); err != netlink.ErrDumpInterrupted { //nolint:errorlint // the sentinel is never wrapped
			break
		}
	}
	return list, err
}
