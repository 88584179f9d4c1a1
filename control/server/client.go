package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/particle-net/particle/control/enrol"
	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/topology"
)

// Target is where a store is and how it is reached.
type Target struct {
	Endpoints []string // https://ADDRESS:PORT
	TLS       *tls.Config
	User      string // empty without authentication
	Password  string
}

// Client looks after a store. It is safe for concurrent use.
type Client struct {
	etcd *clientv3.Client
	tls  *tls.Config
}

// signInLimit bounds the question for a token, which a user needs.
const signInLimit = 3 * time.Second

// Dial prepares a connection. It waits for one, for some seconds at most, if there
// is a user.
func Dial(t Target) (*Client, error) {
	c, err := clientv3.New(clientv3.Config{
		Endpoints: t.Endpoints, TLS: t.TLS, Username: t.User, Password: t.Password, Logger: zap.NewNop(),
		DialKeepAliveTime: 10 * time.Second, DialKeepAliveTimeout: 5 * time.Second,
		DialTimeout: signInLimit, // of no effect without a user
	})
	if err != nil {
		return nil, &fault.Error{Op: "reach the cluster's store", On: strings.Join(t.Endpoints, " "), Err: explain(err)}
	}
	return &Client{etcd: c, tls: t.TLS}, nil
}

// Close ends the connection.
func (c *Client) Close() error { return c.etcd.Close() }

// Register gives the register of hosts in this store.
func (c *Client) Register() *enrol.Register { return enrol.NewRegister(c.etcd) }

// Member is a server as the store has it.
type Member struct {
	ID      uint64
	Node    topology.NodeID // empty if it has never started
	Peer    string          // URL
	Client  string          // URL; empty if it has never started
	Learner bool            // it has no vote yet
}

// Is says whether the member is a host's server.
func (m Member) Is(h enrol.Host) bool {
	peer := storeURL(h.Peers().String())
	return m.Node == h.ID || m.Peer == peer.String()
}

// Members lists the store's servers as the one asked knows them.
func (c *Client) Members(ctx context.Context) ([]Member, error) {
	got, err := c.etcd.MemberList(ctx)
	if err != nil {
		return nil, &fault.Error{Op: "list the store's servers", Err: explain(err), Fix: "see `particle cluster status`"}
	}
	return members(got.Members), nil
}

func members(list []*etcdserverpb.Member) []Member {
	all := make([]Member, len(list))
	for i, m := range list {
		all[i] = Member{ID: m.ID, Node: topology.NodeID(m.Name), Learner: m.IsLearner}
		if len(m.PeerURLs) > 0 {
			all[i].Peer = m.PeerURLs[0]
		}
		if len(m.ClientURLs) > 0 {
			all[i].Client = m.ClientURLs[0]
		}
	}
	return all
}

// Add makes a host a server without a vote, and gives the members in etcd's
// form for its start. A server of that address that was added before and has
// never started is taken as it is; one that has is replaced: its data is gone, or
// it would not be added. The store takes one at a time, so one that was added and then
// not entered in the register, and will never start, is taken out first.
func (c *Client) Add(ctx context.Context, h enrol.Host) (initial string, err error) {
	peer := storeURL(h.Peers().String())
	all, err := c.Members(ctx)
	if err != nil {
		return "", err
	}
	for _, m := range all {
		if m.Peer != peer.String() {
			continue
		}
		if m.Node == "" {
			return initialCluster(all, m.ID, h.ID), nil
		}
		if err := c.remove(ctx, m.ID); err != nil {
			return "", &fault.Error{Op: "replace server", On: h.Name, Err: err, Fix: "see `particle cluster status`"}
		}
	}
	added, err := c.addLearner(ctx, peer.String())
	if errors.Is(err, rpctypes.ErrTooManyLearners) {
		took, failed := c.removeStray(ctx)
		if failed == nil && took {
			added, err = c.addLearner(ctx, peer.String())
		}
		err = errors.Join(err, failed)
	}
	if err != nil {
		fix := "see `particle cluster status`"
		if errors.Is(err, rpctypes.ErrTooManyLearners) {
			fix = "wait until the server that is joining has caught up, or remove it"
		}
		return "", &fault.Error{Op: "add server", On: h.Name, Err: explain(err), Fix: fix}
	}
	return initialCluster(members(added.Members), added.Member.ID, h.ID), nil
}

func (c *Client) addLearner(ctx context.Context, peer string) (added *clientv3.MemberAddResponse, err error) {
	err = settled(ctx, func() (err error) {
		added, err = c.etcd.MemberAddAsLearner(ctx, []string{peer})
		if errors.Is(err, rpctypes.ErrMemberNotFound) {
			err = fmt.Errorf("%w: %w", errSameSecond, err)
		}
		return err
	})
	return added, err
}

// removeStray takes out a server that was added and never entered in the register, and
// says whether there was one. One that is being entered right now is waited for.
func (c *Client) removeStray(ctx context.Context) (bool, error) {
	first, err := c.stray(ctx)
	if err != nil || first == 0 {
		return false, err
	}
	select {
	case <-ctx.Done():
		return false, ctx.Err()
	case <-time.After(enrol.EnterLimit + time.Second):
	}
	second, err := c.stray(ctx)
	if err != nil || second != first {
		return false, err
	}
	return true, c.remove(ctx, first)
}

// stray finds a member that has never started and is no server by the register; 0 if there
// is none.
func (c *Client) stray(ctx context.Context) (uint64, error) {
	all, err := c.Members(ctx)
	if err != nil {
		return 0, err
	}
	hosts, err := c.Register().Hosts(ctx)
	if err != nil {
		return 0, err
	}
	for _, m := range all {
		entered := slices.ContainsFunc(hosts, func(h enrol.Host) bool { return h.Server && m.Is(h) })
		if m.Learner && m.Node == "" && !entered {
			return m.ID, nil
		}
	}
	return 0, nil
}

// initialCluster names the members that have started, and a new one.
func initialCluster(all []Member, fresh uint64, node topology.NodeID) string {
	var parts []string
	for _, m := range all {
		if m.ID == fresh {
			m.Node = node
		}
		if m.Node != "" {
			parts = append(parts, string(m.Node)+"="+m.Peer)
		}
	}
	return strings.Join(parts, ",")
}

// Remove takes a host's server out of the store; not there is success.
func (c *Client) Remove(ctx context.Context, h enrol.Host) error {
	all, err := c.Members(ctx)
	if err != nil {
		return err
	}
	for _, m := range all {
		if !m.Is(h) {
			continue
		}
		if err := c.remove(ctx, m.ID); err != nil {
			return &fault.Error{Op: "remove server", On: h.Name, Err: err, Fix: "see `particle cluster status`"}
		}
	}
	return nil
}

func (c *Client) remove(ctx context.Context, id uint64) error {
	err := settled(ctx, func() error {
		_, err := c.etcd.MemberRemove(ctx, id)
		return err
	})
	if errors.Is(err, rpctypes.ErrMemberNotFound) {
		return nil
	}
	return explain(err)
}

// settled repeats a change of the members while etcd refuses it for now: it has
// seen one of them for less than 5 s, as after another change, or would give a
// member the id of one that was removed in the same second.
func settled(ctx context.Context, change func() error) error {
	limit := time.NewTimer(settleLimit)
	defer limit.Stop()
	for {
		err := change()
		if !errors.Is(err, rpctypes.ErrUnhealthy) && !errors.Is(err, rpctypes.ErrMemberNotEnoughStarted) && !errors.Is(err, errSameSecond) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-limit.C:
			return err
		case <-time.After(200 * time.Millisecond):
		}
	}
}

const settleLimit = 8 * time.Second

// errSameSecond: etcd makes a member's id of its address and the second.
var errSameSecond = errors.New("a server of this address was removed a moment ago")

// ErrBehind is the cause when a server has not caught up yet.
var ErrBehind = errors.New("the server has not caught up yet")

// Promote gives a host's server its vote; one that has it is success. Cause:
// ErrBehind.
func (c *Client) Promote(ctx context.Context, id topology.NodeID) error {
	all, err := c.Members(ctx)
	if err != nil {
		return err
	}
	for _, m := range all {
		if m.Node != id || !m.Learner {
			continue
		}
		_, err := c.etcd.MemberPromote(ctx, m.ID)
		if errors.Is(err, rpctypes.ErrMemberLearnerNotReady) {
			err = ErrBehind
		}
		if err != nil && !errors.Is(err, rpctypes.ErrMemberNotLearner) {
			return &fault.Error{Op: "promote server", On: id.Short(), Err: explain(err)}
		}
	}
	return nil
}

// Health is how one endpoint of the store is.
type Health struct {
	Endpoint string
	Version  string
	Size     int64 // bytes of its file
	Revision int64 // counts the writes of the whole store
	Leader   bool
	Learner  bool
	// Problem is why it cannot serve, or that it serves no writes.
	Problem string
}

// Check asks one endpoint, at most until ctx ends.
func (c *Client) Check(ctx context.Context, endpoint string) Health {
	h := Health{Endpoint: endpoint}
	got, err := c.etcd.Status(ctx, endpoint)
	if err != nil {
		h.Problem = explain(err).Error()
		return h
	}
	h.Version, h.Size, h.Revision = got.Version, got.DbSize, got.Header.Revision
	h.Leader, h.Learner = got.Leader == got.Header.MemberId, got.IsLearner
	if got.Leader == 0 {
		h.Problem = "no leader: fewer than half of the servers are up, and nothing can be written"
	}
	alarms, err := c.etcd.AlarmList(ctx)
	if err != nil {
		return h
	}
	for _, a := range alarms.Alarms {
		if a.MemberID != got.Header.MemberId {
			continue
		}
		switch a.Alarm {
		case etcdserverpb.AlarmType_NOSPACE:
			h.Problem = "NOSPACE: the store's file has reached its limit, and nothing can be written"
		case etcdserverpb.AlarmType_CORRUPT:
			h.Problem = "CORRUPT: the data of this server differs from the others'"
		}
	}
	return h
}

// explain says in a person's words what etcd's errors tell in its own.
func explain(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("it does not answer: %w", err)
	case errors.Is(err, rpctypes.ErrUnhealthy), errors.Is(err, rpctypes.ErrMemberNotEnoughStarted):
		return fmt.Errorf("a server of the store is down, and its members cannot be changed meanwhile: %w", err)
	}
	return err
}
