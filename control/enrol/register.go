package enrol

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/topology"
)

// Host is a member of the cluster as the register has it.
type Host struct {
	ID      topology.NodeID `json:"id"`
	Name    string          `json:"name"`
	Address netip.Addr      `json:"address"`
	// Port is the base of the host's ports, of use if it is a server: enrolment,
	// then the store for clients, then the store for servers.
	Port    uint16    `json:"port"`
	Server  bool      `json:"server,omitempty"`
	Version string    `json:"version,omitempty"` // of the plugin when it was last heard of
	Joined  time.Time `json:"joined"`
	// Certificates are those that it may use, the latest last. The former one
	// stays valid: the answer that brought the latest may have been lost.
	Certificates []Certificate `json:"certificates,omitempty"`

	// revision is of the entry that this was read from, or made of; 0: there was none.
	revision int64
}

// Certificate is one that a host was given.
type Certificate struct {
	Serial   string    `json:"serial"` // in hex
	NotAfter time.Time `json:"notAfter"`
	// Superseded: the host has joined again since. It ends when the host shows a later
	// one, which says that the answer arrived.
	Superseded bool `json:"superseded,omitempty"`
}

// CertificateOf is what the register notes of a certificate.
func CertificateOf(cert *x509.Certificate) Certificate {
	return Certificate{Serial: cert.SerialNumber.Text(16), NotAfter: cert.NotAfter}
}

func (c Certificate) same(other Certificate) bool { return c.Serial == other.Serial }

// supersede gives what a host keeps that joins again. If it did before, and has not shown
// a certificate of then, it has none, and keeps those from before that.
func supersede(all []Certificate) []Certificate {
	all = slices.Clone(all)
	if former := slices.DeleteFunc(slices.Clone(all), func(c Certificate) bool { return !c.Superseded }); len(former) > 0 {
		return former
	}
	for i := range all {
		all[i].Superseded = true
	}
	return all
}

// settle gives what a host keeps that shows one of its certificates.
func settle(all []Certificate, shown Certificate) []Certificate {
	i := slices.IndexFunc(all, shown.same)
	if i < 0 || all[i].Superseded {
		return all
	}
	return slices.DeleteFunc(slices.Clone(all), func(c Certificate) bool { return c.Superseded })
}

// Subject is the host as its certificates name it.
func (h Host) Subject() Subject {
	return Subject{Node: h.ID, Name: h.Name, Address: h.Address, Server: h.Server}
}

// Enrolment is where the host serves enrolment if it is a server.
func (h Host) Enrolment() netip.AddrPort { return netip.AddrPortFrom(h.Address, h.Port) }

// Clients is where it serves the store to clients.
func (h Host) Clients() netip.AddrPort { return netip.AddrPortFrom(h.Address, h.Port+1) }

// Peers is where it serves the store to the other servers.
func (h Host) Peers() netip.AddrPort { return netip.AddrPortFrom(h.Address, h.Port+2) }

// Revoked is a certificate that must not be used any more.
type Revoked struct {
	Certificate
	Node topology.NodeID `json:"node"`
	Name string          `json:"name"`
	At   time.Time       `json:"at"`
	// Cut: connections that it has opened are to end too.
	Cut bool `json:"cut,omitempty"`
}

// TokenInfo is what the register knows of the token that is valid.
type TokenInfo struct {
	Nonce   []byte    `json:"nonce"`
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires,omitzero"` // zero: never
}

// Expired tells whether the token has come to its end.
func (t TokenInfo) Expired(now time.Time) bool { return !t.Expires.IsZero() && now.After(t.Expires) }

// Token gives the token that the info is about.
func (a *Authority) Token(info TokenInfo) (Token, error) {
	secret, err := a.secret(info.Nonce)
	return Token{Cluster: a.Fingerprint(), Secret: secret}, err
}

// The register's keys in the store.
const (
	registerPrefix = "/particle/enrol/v1/"
	tokenKey       = registerPrefix + "token"
	hostPrefix     = registerPrefix + "hosts/"
	revokedPrefix  = registerPrefix + "revoked/"
)

// Register is the list of the cluster's hosts, kept in its store. Methods wait
// until ctx ends at most, and are safe for concurrent use.
type Register struct{ kv *clientv3.Client }

// NewRegister makes one of a connection to the store, which stays the caller's.
func NewRegister(c *clientv3.Client) *Register { return &Register{kv: c} }

// Causes that callers may ask for.
var (
	ErrNotEnrolled = errors.New("the cluster has no such host")
	ErrChanged     = errors.New("another server has changed it at the same moment")
)

// TokenLife is how long a token is good for if nothing else is asked.
const TokenLife = 24 * time.Hour

// TokenInfo gives the token's record, which it makes if there is none. A negative
// life is for ever.
func (r *Register) TokenInfo(ctx context.Context, life time.Duration) (TokenInfo, error) {
	fresh, raw, err := newToken(life)
	if err != nil {
		return TokenInfo{}, err
	}
	got, err := r.kv.Txn(ctx).If(clientv3.Compare(clientv3.CreateRevision(tokenKey), "=", 0)).
		Then(clientv3.OpPut(tokenKey, raw)).Else(clientv3.OpGet(tokenKey)).Commit()
	if err != nil || got.Succeeded {
		return fresh, explainStore("read token", "", err)
	}
	var info TokenInfo
	kvs := got.Responses[0].GetResponseRange().Kvs
	if err := json.Unmarshal(kvs[0].Value, &info); err != nil {
		return info, explainStore("read token", "", err)
	}
	return info, nil
}

// Rotate makes all tokens worthless that were given out before.
func (r *Register) Rotate(ctx context.Context, life time.Duration) (TokenInfo, error) {
	fresh, raw, err := newToken(life)
	if err != nil {
		return TokenInfo{}, err
	}
	_, err = r.kv.Put(ctx, tokenKey, raw)
	return fresh, explainStore("change token", "", err)
}

func newToken(life time.Duration) (TokenInfo, string, error) {
	info := TokenInfo{Nonce: make([]byte, 16), Created: time.Now().UTC()}
	if life > 0 {
		info.Expires = info.Created.Add(life)
	}
	if _, err := rand.Read(info.Nonce); err != nil {
		return info, "", err
	}
	raw, err := json.Marshal(info)
	return info, string(raw), err
}

// Hosts lists all hosts, in the order of their ids.
func (r *Register) Hosts(ctx context.Context) ([]Host, error) {
	return list(ctx, r, hostPrefix, func(h *Host, revision int64) { h.revision = revision })
}

// Host gives one host. Cause: ErrNotEnrolled.
func (r *Register) Host(ctx context.Context, id topology.NodeID) (h Host, err error) {
	got, err := r.kv.Get(ctx, hostPrefix+string(id))
	if err != nil {
		return h, explainStore("look up host", id.Short(), err)
	}
	if len(got.Kvs) == 0 {
		return h, &fault.Error{Op: "look up host", On: id.Short(), Err: ErrNotEnrolled, Fix: "`particle cluster status` lists the hosts"}
	}
	err = json.Unmarshal(got.Kvs[0].Value, &h)
	h.revision = got.Kvs[0].ModRevision
	return h, err
}

// forgetAfter is how long a certificate is remembered that has ended: clocks jump, and
// then some were only thought to have.
const forgetAfter = hostLife

// Enter notes a host, and revokes the certificates that its former entry lists
// and the new one does not. One that was read of the register is noted only if its entry
// is still what was read, and any other only if there is none: what another server has
// noted meanwhile, such as a certificate that it gave, is not lost. Nor does one come back
// that was removed since its certificate was looked up. It returns the host as it can be
// entered again. Cause: ErrChanged.
func (r *Register) Enter(ctx context.Context, h Host) (Host, error) {
	h.Certificates = slices.DeleteFunc(slices.Clone(h.Certificates), func(c Certificate) bool { return c.NotAfter.Add(forgetAfter).Before(time.Now()) })
	raw, err := json.Marshal(h)
	if err != nil {
		return h, err
	}
	old, err := r.Host(ctx, h.ID)
	if err != nil && !errors.Is(err, ErrNotEnrolled) {
		return h, err
	}
	ops, err := revoke(old, h.Certificates, false)
	if err != nil {
		return h, err
	}
	h.revision, err = r.replace(ctx, change{host: h, good: h.good(), revoke: ops, entry: clientv3.OpPut(hostPrefix+string(h.ID), string(raw))})
	return h, err
}

// good holds while none of the certificates is revoked with which a host is entered that
// the register does not have. It has one or two then.
func (h Host) good() (cmps []clientv3.Cmp) {
	if h.revision != 0 {
		return nil // whatever revokes one changes the entry
	}
	for _, c := range h.Certificates[max(0, len(h.Certificates)-atOnce):] {
		cmps = append(cmps, clientv3.Compare(clientv3.CreateRevision(revokedPrefix+c.Serial), "=", 0))
	}
	return cmps
}

// Remove takes a host out and revokes its certificates; not there is success. With
// cut, servers end the connections that the host has by then.
func (r *Register) Remove(ctx context.Context, id topology.NodeID, cut bool) error {
	old, err := r.Host(ctx, id)
	if errors.Is(err, ErrNotEnrolled) {
		return nil
	}
	if err != nil {
		return err
	}
	ops, err := revoke(old, nil, cut)
	if err != nil {
		return err
	}
	_, err = r.replace(ctx, change{host: old, revoke: ops, entry: clientv3.OpDelete(hostPrefix + string(id))})
	return err
}

// atOnce is how many certificates are revoked in one transaction: etcd takes 128
// operations, and as many comparisons.
const atOnce = 100

// change is of a host's entry that is still as it was read.
type change struct {
	host   Host
	good   []clientv3.Cmp // what has to hold beside that
	revoke []clientv3.Op  // of certificates, the latest last
	entry  clientv3.Op
}

// replace makes a change, and gives the entry's revision after it. The latest certificates
// are revoked together with the change of the entry, the others before: a host that is cut
// off halfway can still ask for it.
func (r *Register) replace(ctx context.Context, c change) (int64, error) {
	for len(c.revoke) > atOnce {
		if _, err := r.commit(ctx, c, c.revoke[:atOnce]...); err != nil {
			return 0, err
		}
		c.revoke = c.revoke[atOnce:]
	}
	return r.commit(ctx, c, append(c.revoke, c.entry)...)
}

func (r *Register) commit(ctx context.Context, c change, ops ...clientv3.Op) (int64, error) {
	still := append([]clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(hostPrefix+string(c.host.ID)), "=", c.host.revision)}, c.good...)
	got, err := r.kv.Txn(ctx).If(still...).Then(ops...).Commit()
	switch {
	case err != nil:
		return 0, explainStore("change host", c.host.Name, err)
	case !got.Succeeded:
		return 0, &fault.Error{Op: "change host", On: c.host.Name, Err: ErrChanged, Fix: "try again"}
	}
	return got.Header.Revision, nil
}

// revoke writes down the certificates of a host but those to be kept.
func revoke(h Host, keep []Certificate, cut bool) ([]clientv3.Op, error) {
	var ops []clientv3.Op
	ended := slices.DeleteFunc(slices.Clone(h.Certificates), func(c Certificate) bool { return slices.ContainsFunc(keep, c.same) })
	for i, c := range ended {
		// Servers end connections once, when the last are revoked: it starts their store
		// anew, which has to take these first.
		last := i >= (len(ended)-1)/atOnce*atOnce
		raw, err := json.Marshal(Revoked{Certificate: c, Node: h.ID, Name: h.Name, At: time.Now().UTC(), Cut: cut && last})
		if err != nil {
			return nil, err
		}
		ops = append(ops, clientv3.OpPut(revokedPrefix+c.Serial, string(raw)))
	}
	return ops, nil
}

// isRevoked asks the store itself.
func (r *Register) isRevoked(ctx context.Context, serial string) (bool, error) {
	got, err := r.kv.Get(ctx, revokedPrefix+serial, clientv3.WithCountOnly())
	if err != nil {
		return false, explainStore("look up certificate", serial, err)
	}
	return got.Count > 0, nil
}

// Revoke writes down that certificates must not be used any more, where the register
// does not say so. It may have lost them, and who remembers may know no more than the
// serial numbers: such is forgotten when the last certificate of then would be, and
// connections that it has opened are to end.
func (r *Register) Revoke(ctx context.Context, all []Revoked) error {
	for _, one := range all {
		if one.NotAfter.IsZero() {
			one.NotAfter, one.Cut = one.At.Add(hostLife), true
		}
		if one.NotAfter.Add(forgetAfter).Before(time.Now()) {
			continue
		}
		raw, err := json.Marshal(one)
		if err != nil {
			return err
		}
		key := revokedPrefix + one.Serial
		if _, err := r.kv.Txn(ctx).If(clientv3.Compare(clientv3.CreateRevision(key), "=", 0)).Then(clientv3.OpPut(key, string(raw))).Commit(); err != nil {
			return explainStore("revoke certificate", one.Name, err)
		}
	}
	return nil
}

// Revoked lists the certificates that must not be used any more, and forgets
// those that have ended by themselves.
func (r *Register) Revoked(ctx context.Context) ([]Revoked, error) {
	all, err := list(ctx, r, revokedPrefix, func(*Revoked, int64) {})
	live := all[:0]
	for _, one := range all {
		if time.Now().Before(one.NotAfter.Add(forgetAfter)) {
			live = append(live, one)
		} else if _, err := r.kv.Delete(ctx, revokedPrefix+one.Serial); err != nil {
			return nil, explainStore("forget certificate", one.Name, err)
		}
	}
	return live, err
}

// WatchRevoked sends whenever the list of revoked certificates may have changed,
// until ctx ends.
func (r *Register) WatchRevoked(ctx context.Context) <-chan struct{} {
	changed := make(chan struct{}, 1)
	told := func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	go func() {
		for {
			for range r.kv.Watch(clientv3.WithRequireLeader(ctx), revokedPrefix, clientv3.WithPrefix()) {
				told()
			}
			// The servers had no leader for a while, and may have one again.
			select {
			case <-ctx.Done():
				return
			case <-time.After(time.Second):
				told()
			}
		}
	}()
	return changed
}

// list reads all of a kind, and notes of each the revision of its entry.
func list[T any](ctx context.Context, r *Register, prefix string, note func(one *T, revision int64)) ([]T, error) {
	got, err := r.kv.Get(ctx, prefix, clientv3.WithPrefix())
	if err != nil {
		return nil, explainStore("list hosts", "", err)
	}
	all := make([]T, len(got.Kvs))
	for i, kv := range got.Kvs {
		if err := json.Unmarshal(kv.Value, &all[i]); err != nil {
			return nil, explainStore("read "+string(kv.Key), base64.StdEncoding.EncodeToString(kv.Value), err)
		}
		note(&all[i], kv.ModRevision)
	}
	return all, nil
}

func explainStore(op, on string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, context.DeadlineExceeded):
		err = fmt.Errorf("the cluster's store does not answer: %w", err)
	}
	return &fault.Error{Op: op, On: on, Err: err, Fix: "see `particle cluster status` on a host that serves the cluster"}
}
