package install

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/internal/hostsetup"
	"github.com/particle-net/particle/internal/runtimeapi"
)

// standing is what the host is in a cluster. The zero value is none.
type standing struct {
	role    string   // as runtimeapi.ClusterStatus has it; empty: none, or unknown
	name    string   // of the host in the cluster
	servers []string // of the store, for people; none with an etcd of somebody else's
	last    bool     // it alone serves the store, for others too as far as is known
	silent  error    // why the plugin could not be asked; nil if it answers
	unknown error    // why it could not be found out at all
}

// in says whether the host is in a cluster, as far as could be found out.
func (s standing) in() bool { return s.role != "" || s.unknown != nil }

// findCluster asks the plugin and, if it does not answer or cannot take up what is
// on the disk, reads the disk.
func (r *removal) findCluster(ctx context.Context) standing {
	reply, err := Cluster(ctx, r.api, runtimeapi.Cluster{Status: &runtimeapi.Query{}})
	if err == nil && reply.Status == nil {
		err = errors.New("it answered something else")
	}
	if err != nil {
		return r.findSilent(ctx, err)
	}
	if reply.Status.Role == "none" && reply.Status.Problem != "" {
		return r.findSilent(ctx, errors.New(reply.Status.Problem))
	}
	return standingOf(*reply.Status)
}

func standingOf(c runtimeapi.ClusterStatus) standing {
	if c.Role == "none" {
		return standing{}
	}
	s := standing{role: c.Role, name: string(c.Node), last: c.Role == "server" && len(c.Store) == 1 && len(c.Hosts) > 1}
	for _, h := range c.Hosts {
		if h.ID == c.Node {
			s.name = cmp.Or(h.Name, s.name)
		}
		if h.Role == "server" {
			s.servers = append(s.servers, fmt.Sprintf("%s (%s)", h.Name, h.VTEP))
		}
	}
	return s
}

// findSilent is findCluster without the plugin.
func (r *removal) findSilent(ctx context.Context, why error) standing {
	var c hostsetup.ClusterRecord
	s := standing{silent: why}
	if s.unknown = (helper{command: "membership", network: "none", host: true, caps: hostCaps()}).run(ctx, r.api, r.image, &c); s.unknown != nil {
		return s
	}
	if c.Name != "" {
		s.role, s.name = "member", c.Name
		if s.last = c.Server && len(c.Servers) == 1; c.Server {
			s.role = "server"
		}
		for _, h := range c.Servers {
			s.servers = append(s.servers, fmt.Sprintf("%s (%s)", h.Name, h.Address))
		}
		return s
	}
	plugin, err := findPlugin(ctx, r.api)
	if s.unknown = err; err == nil && plugin != nil && settingsOf(plugin)["PARTICLE_ETCD"] != "" {
		s.role, s.name = "external", r.hostName
	}
	return s
}

// refuse says what is to be done before the host can lose what it has of a cluster;
// nil if it is in none.
func (s standing) refuse() error {
	const op = "uninstall"
	switch {
	case s.unknown != nil:
		return &fault.Error{Op: op, Err: fmt.Errorf("it is not known whether this host is in a cluster: %w", s.unknown),
			Fix: "run `particle cluster leave` first, or pass --force"}
	case !s.in():
		return nil
	}
	where := "this host is in a cluster"
	switch s.role {
	case "server":
		where += " and serves its store"
	case "external":
		where += ", by PARTICLE_ETCD"
	}
	if s.silent != nil {
		return &fault.Error{Op: op, Err: fmt.Errorf("%s, and the plugin cannot take its leave: %w", where, s.silent),
			Fix: "have it run (`docker plugin enable particle-net`, or `particle install`) and run `particle cluster leave` first; or pass --force: " + s.stays()}
	}
	return fault.New(op, "", where, "run `particle cluster leave` first, or pass --force, which leaves it in any case; do not remove its networks here, they would go from all its hosts")
}

// stays says what the cluster has of a host that went without taking its leave.
func (s standing) stays() string {
	switch {
	case s.last:
		return "it alone served the store, without which the other hosts keep what they have, and can share nothing new"
	case s.role == "external":
		return fmt.Sprintf("what it had is its own for a day there, unless you run `particle cluster remove %s` on another host", s.name)
	case s.role == "":
		return "if it was in a cluster, run `particle cluster remove` for it on a server"
	}
	return fmt.Sprintf("the cluster keeps what it had for it until you run `particle cluster remove %s` on a server: %s", s.name, strings.Join(s.servers, ", "))
}

// leave has the host leave its cluster, which only a forced removal comes across. Its
// networks are its own from then on. If it cannot, the removal goes on without.
func (r *removal) leave(ctx context.Context) (string, error) {
	if !r.cluster.in() {
		return "in none", nil
	}
	left, err := r.takeLeave(ctx)
	if err != nil {
		return fmt.Sprintf("this host could not leave it (%v); %s", err, r.cluster.stays()), nil
	}
	detail := "left"
	if left.Untold != "" || r.cluster.last {
		detail += "; " + r.cluster.stays()
	}
	r.cluster = standing{}
	return detail, nil
}

// leftLimit bounds the wait until the plugin is no member any more. It follows its
// leave within a moment.
const leftLimit = 20 * time.Second

// takeLeave returns when the plugin takes what is removed for this host's own.
func (r *removal) takeLeave(ctx context.Context) (runtimeapi.ClusterLeft, error) {
	if r.cluster.unknown != nil {
		return runtimeapi.ClusterLeft{}, r.cluster.unknown
	}
	reply, err := Cluster(ctx, r.api, runtimeapi.Cluster{Leave: &runtimeapi.ClusterLeave{Force: true}})
	if err == nil && reply.Left == nil {
		err = errors.New("the plugin answered something else")
	}
	if err != nil {
		return runtimeapi.ClusterLeft{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, leftLimit)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		s, err := Status(ctx, r.api)
		if err == nil && s.Cluster == nil {
			return *reply.Left, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return *reply.Left, cmp.Or(err, errors.New("the plugin has not followed yet"))
		}
	}
}
