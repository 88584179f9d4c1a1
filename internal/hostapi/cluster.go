package hostapi

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/particle-net/particle/control/enrol"
	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/internal/hostview"
	"github.com/particle-net/particle/internal/member"
	"github.com/particle-net/particle/internal/membership"
	"github.com/particle-net/particle/internal/runtimeapi"
	"github.com/particle-net/particle/topology"
)

// Cluster answers `particle cluster`.
type Cluster struct {
	Membership *membership.Membership
	Member     *member.Member
	// Encrypting says why this host cannot encrypt what it is to; nil if it does, or
	// need not.
	Encrypting func() error
}

func (a API) cluster(ctx context.Context, req runtimeapi.Cluster) (*runtimeapi.ClusterReply, error) {
	if a.Cluster == nil {
		return nil, fault.New("ask about the cluster", "", "this plugin keeps to its host", "")
	}
	m := a.Cluster.Membership
	if req.Init != nil || req.Join != nil || req.Leave != nil {
		defer m.Followed(ctx) // the next command may be `docker network create`
	}
	switch {
	case req.Init != nil:
		made, err := m.Init(ctx, membership.InitOptions{Address: req.Init.Address, TokenLife: req.Init.Life, Encrypt: req.Init.Encrypt})
		return &runtimeapi.ClusterReply{Made: clusterMade(made)}, err
	case req.Token != nil:
		made, err := m.Token(ctx, membership.TokenOptions{Rotate: req.Token.Rotate, Life: req.Token.Life})
		return &runtimeapi.ClusterReply{Made: clusterMade(made)}, err
	case req.Join != nil:
		joined, err := m.Join(ctx, membership.JoinOptions{Server: req.Join.Server, Token: req.Join.Token, Address: req.Join.Address, Serve: req.Join.Serve})
		reply := &runtimeapi.ClusterJoined{Name: joined.Name, Already: joined.Already, Two: joined.Two}
		for _, s := range joined.Servers {
			reply.Servers = append(reply.Servers, s.Name)
		}
		return &runtimeapi.ClusterReply{Joined: reply}, err
	case req.Leave != nil:
		left, err := m.Leave(ctx, membership.LeaveOptions{Force: req.Leave.Force})
		return &runtimeapi.ClusterReply{Left: &runtimeapi.ClusterLeft{Already: left.Already, Untold: text(left.Untold), External: left.External}}, err
	case req.Remove != nil:
		h, err := m.Remove(ctx, req.Remove.Host)
		return &runtimeapi.ClusterReply{Removed: h.Name, Pending: h.Pending, Readmits: h.Readmits, Authority: h.Authority}, err
	case req.Recover != nil:
		done, err := m.Recover(ctx)
		return &runtimeapi.ClusterReply{Recovered: &runtimeapi.ClusterRecovered{Former: done.Former}}, err
	case req.Status != nil:
		return &runtimeapi.ClusterReply{Status: a.clusterStatus(ctx)}, nil
	}
	return nil, fault.New("read request", "", "it asks for nothing this version knows",
		"install the same version of particle and the plugin")
}

func clusterMade(m membership.Made) *runtimeapi.ClusterMade {
	return &runtimeapi.ClusterMade{Address: m.Address, Token: m.Token, Expires: m.Expires, Already: m.Already, Encryption: m.Encryption}
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return hostview.Text(err.Error())
}

func (a API) clusterStatus(ctx context.Context) *runtimeapi.ClusterStatus {
	m := a.Cluster.Membership.Status(ctx)
	s := &runtimeapi.ClusterStatus{
		Role: string(m.Role), Node: m.Node, Joined: m.Joined, Expires: m.Expires, Leaving: m.Leaving,
		Hosts: []runtimeapi.ClusterHost{}, Store: []runtimeapi.ClusterStore{}, Closed: m.Closed, Skew: text(m.Skew), Problem: text(m.Problem),
	}
	if s.Encryption = m.Encryption; s.Encryption != topology.Plain && a.Cluster.Encrypting != nil {
		s.Unencrypted = text(a.Cluster.Encrypting())
	}
	if m.Cluster != (enrol.Fingerprint{}) {
		s.Cluster = m.Cluster.String()
	}
	here := a.Cluster.Member.Status()
	s.Hosts = clusterHosts(m.Hosts, here.Hosts)
	for _, h := range m.Store {
		s.Store = append(s.Store, runtimeapi.ClusterStore{Endpoint: h.Endpoint, Version: h.Version, Size: h.Size, Revision: h.Revision, Leader: h.Leader, Learner: h.Learner, Problem: h.Problem})
	}
	if s.Problem == "" && here.Enrolled && !here.Store.Healthy {
		s.Problem = "the store does not answer: " + hostview.Text(here.Store.Problem)
	}
	for _, n := range here.Networks {
		s.Networks = append(s.Networks, clusterNetwork(n))
	}
	return s
}

// clusterSummary asks nobody, so it is there when nobody answers.
func (a API) clusterSummary() *runtimeapi.ClusterSummary {
	if a.Cluster == nil {
		return nil
	}
	here := a.Cluster.Member.Status()
	if !here.Enrolled {
		return nil
	}
	s := summary(here)
	s.Removed = text(a.Cluster.Membership.Removed())
	return s
}

func summary(here member.Status) *runtimeapi.ClusterSummary {
	s := &runtimeapi.ClusterSummary{
		Store:    runtimeapi.StoreHealth{Healthy: here.Store.Healthy, Since: here.Store.Since, Problem: hostview.Text(here.Store.Problem)},
		Suspects: []string{}, Networks: []runtimeapi.ClusterNetwork{},
	}
	for _, h := range here.Hosts {
		if h.Alive {
			s.Alive++
		} else {
			s.Suspects = append(s.Suspects, cmp.Or(h.Name, string(h.ID)))
		}
	}
	for _, n := range here.Networks {
		if c := clusterNetwork(n); c.Problem != "" {
			s.Networks = append(s.Networks, c)
		}
	}
	return s
}

// clusterNetwork has a problem to tell of, with what to do about it, unless all is
// well.
func clusterNetwork(n member.NetworkStatus) runtimeapi.ClusterNetwork {
	c := runtimeapi.ClusterNetwork{
		ID: n.ID, Name: cmp.Or(n.Name, n.ID.Short()), VNI: n.VNI, State: string(n.Phase), Claims: n.Claims, Peers: n.Peers,
		Problem: hostview.Text(n.Problem),
	}
	switch {
	case c.Problem != "":
	case n.Suspended != nil:
		c.Problem = n.Suspended.Error() + "; it gives out no new addresses"
	case n.Unshared:
		c.Problem = "it was removed here, which the cluster does not know yet"
	case len(n.Duplicates) > 0:
		c.Problem = fmt.Sprintf("two hosts answer for %s", n.Duplicates[0].Prefix)
	case n.Phase == member.Leaving:
		c.Problem = "it was removed, and goes from this host when its last containers here end"
	case n.Phase == member.Pending && n.Name != "":
		c.Problem = "it is being made on this host, or about to be named in the cluster; nothing is to be done"
	}
	return c
}

// clusterHosts joins what the register of hosts and the directory know: a host
// may be in one and not, or not yet, in the other.
func clusterHosts(hosts []enrol.Host, nodes []member.Host) []runtimeapi.ClusterHost {
	all := []runtimeapi.ClusterHost{}
	for _, h := range hosts {
		one := runtimeapi.ClusterHost{ID: h.ID, Name: h.Name, VTEP: h.Address, State: "unknown", Version: h.Version, Role: "member"}
		if h.Server {
			one.Role = "server"
		}
		all = append(all, one)
	}
	for _, n := range nodes {
		i := slices.IndexFunc(all, func(h runtimeapi.ClusterHost) bool { return h.ID == n.ID })
		if i < 0 {
			i = len(all)
			all = append(all, runtimeapi.ClusterHost{ID: n.ID, Name: n.Name, Role: "member"})
		}
		all[i].State = "suspect"
		if n.Alive {
			all[i].State = "alive"
		}
		all[i].Version = cmp.Or(n.Version, all[i].Version)
		if n.VTEP.IsValid() {
			all[i].VTEP, all[i].Port = n.VTEP, n.Port
		}
	}
	slices.SortFunc(all, func(x, y runtimeapi.ClusterHost) int {
		return cmp.Or(cmp.Compare(x.Name, y.Name), cmp.Compare(x.ID, y.ID))
	})
	return all
}
