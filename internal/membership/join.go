package membership

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/particle-net/particle/control/enrol"
	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/topology"
)

// InitOptions are a user's.
type InitOptions struct {
	Address   netip.Addr    // invalid: found
	TokenLife time.Duration // 0: a day; negative: for ever
	// Encrypt: what the hosts send each other for containers is encrypted.
	Encrypt bool
}

func (o InitOptions) encryption() topology.Encryption {
	if o.Encrypt {
		return topology.ByWireGuard
	}
	return topology.Plain
}

// Made is what init tells.
type Made struct {
	Address netip.AddrPort // for hosts that join
	Token   string
	Expires time.Time // of the token; zero: never
	Already bool      // this host served the cluster before
	// Encryption is the cluster's.
	Encryption topology.Encryption
}

// Init makes a cluster of this host alone, whose store it serves. On a host that
// serves one it changes nothing.
func (m *Membership) Init(ctx context.Context, o InitOptions) (Made, error) {
	m.change.Lock()
	defer m.change.Unlock()
	const op = "make a cluster"
	if err := m.refuse(op); err != nil {
		return Made{}, err
	}
	if c := m.state(); c != nil {
		if c.server == nil {
			return Made{}, fault.New(op, "", "this host is a member of a cluster already", "run `particle cluster leave` first")
		}
		if o.Encrypt && m.recordOf(c).Encryption == topology.Plain {
			return Made{}, fault.New(op, "", "this host serves a cluster that is not encrypted", "have all hosts leave it, and make another")
		}
		made, err := m.token(ctx, c, TokenOptions{Life: o.TokenLife})
		made.Already = true
		return made, err
	}
	if err := m.canEncrypt(o.encryption()); err != nil {
		return Made{}, err
	}
	addr, err := m.address(ctx, o.Address)
	if err != nil {
		return Made{}, err
	}
	r := record{Name: m.o.Name, Address: addr, Port: m.o.Port, Server: true, Encryption: o.encryption(), Joined: time.Now().UTC()}
	if err := m.prepareFirst(&r); err != nil {
		return Made{}, err
	}
	if err := m.begin(ctx, r); err != nil {
		return Made{}, errors.Join(err, m.undo())
	}
	return m.token(ctx, m.state(), TokenOptions{Life: o.TokenLife})
}

func (m *Membership) refuse(op string) error {
	if err := m.refuseExternal(op); err != nil {
		return err
	}
	return m.damage()
}

// prepareFirst makes the files of a cluster's first server.
func (m *Membership) prepareFirst(r *record) error {
	authority, err := enrol.NewAuthority(time.Now())
	if err != nil {
		return err
	}
	authorityKey, err := authority.Key()
	if err != nil {
		return err
	}
	key, request, err := enrol.NewKey()
	if err != nil {
		return err
	}
	host := r.host(m.node)
	cert, _, err := authority.Issue(request, host.Subject(), time.Now())
	if err != nil {
		return err
	}
	r.Cluster, r.Servers = authority.Fingerprint(), []enrol.Host{host}
	return m.write(*r, membershipFiles{authority: authority.Certificate(), authorityKey: authorityKey, key: key, certificate: cert})
}

// membershipFiles are what makes a member; authorityKey what makes a server.
type membershipFiles struct{ authority, authorityKey, key, certificate []byte }

// write puts a membership on disk, where it is in force from then on.
func (m *Membership) write(r record, w membershipFiles) error {
	f, err := m.place.prepare()
	if err != nil {
		return err
	}
	err = errors.Join(writeFile(f.authority(), w.authority), writeFile(f.key(), w.key), writeFile(f.certificate(), w.certificate))
	if err == nil && r.Server {
		err = errors.Join(writeFile(f.authorityKey(), w.authorityKey), writeEmptyList(f, w))
	}
	if err == nil {
		err = f.write(r)
	}
	if err == nil {
		err = m.place.commit()
	}
	if err != nil {
		return errors.Join(err, os.RemoveAll(f.dir))
	}
	return nil
}

func writeEmptyList(f files, w membershipFiles) error {
	authority, err := enrol.ReadAuthority(w.authority, w.authorityKey)
	if err != nil {
		return err
	}
	der, err := authority.Revocations(nil, time.Now())
	if err != nil {
		return err
	}
	return writeFile(f.revoked(), der)
}

// begin takes up what was written, and waits until the store on this host, if it
// is to be one, answers or cannot.
func (m *Membership) begin(ctx context.Context, r record) error {
	if err := m.enter(r); err != nil {
		return err
	}
	c := m.state()
	if c.server == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	poll := time.NewTicker(100 * time.Millisecond)
	defer poll.Stop()
	for {
		state := c.server.store.State()
		if state.Problem != "" && !state.Unmet {
			return errors.New(state.Problem)
		}
		err := c.server.tend(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return &fault.Error{Op: "start the cluster's store", Err: fmt.Errorf("it did not answer in time: %w", err), Fix: "see the log of the Docker daemon, and try again"}
		case <-poll.C:
		}
	}
}

// undo takes back a membership that did not come to be.
func (m *Membership) undo() error {
	m.halt()
	err := m.place.drop()
	m.deliver(nil)
	return err
}

// JoinOptions are a user's.
type JoinOptions struct {
	Server  netip.AddrPort // of a host that serves the cluster
	Token   string
	Address netip.Addr // this host's; invalid: found
	Serve   bool       // this host shall serve the store too
}

// Joined is what join tells.
type Joined struct {
	Name, ID string // of this host
	Servers  []enrol.Host
	Already  bool // it was a member before
	Two      bool // it is one of two servers, which bear the loss of none
}

// Join makes this host a member of a cluster, or a member a server. On a host
// that is what is asked for it changes nothing but the address of a member, if one is
// given, and whom a member asks that does not know the server.
func (m *Membership) Join(ctx context.Context, o JoinOptions) (Joined, error) {
	m.change.Lock()
	defer m.change.Unlock()
	const op = "join the cluster"
	if err := m.refuse(op); err != nil {
		return Joined{}, err
	}
	t, err := enrol.ParseToken(o.Token)
	if err != nil {
		return Joined{}, err
	}
	var former *record
	if c := m.state(); c != nil {
		r := m.recordOf(c)
		switch {
		case r.Leaving:
			return Joined{}, fault.New(op, "", "this host is leaving its former cluster", "wait until `particle cluster status` says that it is in none")
		case r.Cluster != t.Cluster:
			return Joined{}, fault.New(op, "", "this host is in another cluster", "run `particle cluster leave` first")
		}
		if err = m.introduce(ctx, c, m.enrolment(o)); err != nil {
			return Joined{}, err
		}
		if r, err = m.readdress(ctx, c, o); err != nil {
			return Joined{}, err
		}
		switch {
		case c.server != nil && c.server.store.State().Out() && o.Serve: // it becomes one anew
		case r.Server || !o.Serve:
			return Joined{Name: r.Name, ID: string(m.node), Servers: r.Servers, Already: true}, nil
		}
		former, o.Address = &r, r.Address
	}
	addr, err := m.address(ctx, o.Address)
	if err != nil {
		return Joined{}, err
	}
	o.Server = m.enrolment(o)
	return m.join(ctx, o, joining{token: t, address: addr, former: former})
}

// readdress tells the cluster the address of a member that is to have another, and gives
// the record: the one asked for or, where a server is to be reached at it, one that this
// host has.
func (m *Membership) readdress(ctx context.Context, c *current, o JoinOptions) (record, error) {
	r := m.recordOf(c)
	if r.Server || !o.Address.IsValid() && (!o.Serve || isOwn(r.Address)) {
		return r, nil
	}
	addr, err := m.address(ctx, o.Address)
	if err != nil || addr == r.Address {
		return r, err
	}
	if r, err = m.amend(c, func(r *record) { r.Address = addr }); err != nil {
		return r, err
	}
	_, err = m.askServers(ctx, c) // each question says who asks
	return r, err
}

// enrolment is where the server that a user has named serves it.
func (m *Membership) enrolment(o JoinOptions) netip.AddrPort {
	if o.Server.Port() == 0 {
		return netip.AddrPortFrom(o.Server.Addr(), m.o.Port)
	}
	return o.Server
}

// introduce has a member learn who serves the cluster from a server that it does not know
// and a user has named: all that it knows may have been replaced while it was off. That
// this one does not answer is no failure if another does.
func (m *Membership) introduce(ctx context.Context, c *current, server netip.AddrPort) error {
	r := m.recordOf(c)
	if r.Server || slices.ContainsFunc(r.Servers, func(h enrol.Host) bool { return h.Enrolment() == server }) {
		return nil
	}
	c.asking.Lock()
	bounded, cancel := context.WithTimeout(ctx, askLimit)
	state, err := m.caller(c).State(bounded, server)
	cancel()
	c.asking.Unlock()
	if err == nil {
		return m.update(c, state.Servers)
	}
	if _, known := m.askServers(ctx, c); known != nil {
		return err
	}
	return nil
}

// isOwn says whether an address is this host's now.
func isOwn(addr netip.Addr) bool {
	l, err := net.Listen("tcp", netip.AddrPortFrom(addr, 0).String())
	if err != nil {
		return false
	}
	_ = l.Close() // it was for trying alone
	return true
}

type joining struct {
	token   enrol.Token
	address netip.Addr
	former  *record // of a member that becomes a server; nil of a host in no cluster
}

// back makes the host again what it was before a join that came to nothing. The cluster
// may have let it in; its former certificate is good until it shows another.
func (m *Membership) back(j joining) error {
	if j.former == nil {
		return m.undo()
	}
	return m.enter(*j.former)
}

func (m *Membership) join(ctx context.Context, o JoinOptions, j joining) (Joined, error) {
	key, request, err := enrol.NewKey()
	if err != nil {
		return Joined{}, err
	}
	ask := enrol.JoinRequest{
		Request: request, ID: m.node, Name: m.o.Name, Address: j.address, Port: m.o.Port, Server: o.Serve, Version: m.o.Version,
	}
	cannot := m.canEncrypt(topology.ByWireGuard)
	if cannot == nil {
		ask.Encryptions = []topology.Encryption{topology.ByWireGuard}
	}
	a, authority, err := enrol.Join(ctx, o.Server, j.token, ask)
	if errors.Is(err, enrol.ErrEncrypted) && cannot != nil {
		return Joined{}, &fault.Error{Op: "join the cluster", Err: fmt.Errorf("what its hosts send each other is encrypted: %w", cannot)}
	}
	if err != nil {
		return Joined{}, err
	}
	r := record{Cluster: j.token.Cluster, Name: m.o.Name, Address: j.address, Port: m.o.Port, Server: o.Serve, Encryption: a.Encryption,
		Initial: a.InitialCluster, Servers: a.Servers, Joined: a.Host.Joined}
	m.halt() // of a member that becomes a server
	w := membershipFiles{authority: authority, authorityKey: a.AuthorityKey, key: key, certificate: a.Certificate}
	if err := m.write(r, w); err != nil {
		err = &fault.Error{Op: "join the cluster", Err: err, Fix: "make the directory writable, or room on its disk, and run the same command again"}
		return Joined{}, errors.Join(err, m.back(j))
	}
	done := Joined{Name: r.Name, ID: string(m.node), Servers: r.Servers, Two: o.Serve && len(r.Servers) == 1}
	err = m.begin(ctx, r)
	if err != nil && m.state() == nil { // otherwise it goes on trying
		err = errors.Join(err, m.back(j))
	}
	return done, err
}
