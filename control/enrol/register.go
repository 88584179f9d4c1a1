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
}

// Certificate is one that a host was given.
type Certificate struct {
	Serial   string    `json:"serial"` // in hex
	NotAfter time.Time `json:"notAfter"`
}

// CertificateOf is what the register notes of a certificate.
func CertificateOf(cert *x509.Certificate) Certificate {
	return Certificate{Serial: cert.SerialNumber.Text(16), NotAfter: cert.NotAfter}
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

// ErrNotEnrolled is the cause when the register has no such host.
var ErrNotEnrolled = errors.New("the cluster has no such host")

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
func (r *Register) Hosts(ctx context.Context) ([]Host, error) { return list[Host](ctx, r, hostPrefix) }

// Host gives one host. Cause: ErrNotEnrolled.
func (r *Register) Host(ctx context.Context, id topology.NodeID) (Host, error) {
	h, _, err := r.host(ctx, id)
	return h, err
}

func (r *Register) host(ctx context.Context, id topology.NodeID) (h Host, revision int64, err error) {
	got, err := r.kv.Get(ctx, hostPrefix+string(id))
	if err != nil {
		return h, 0, explainStore("look up host", id.Short(), err)
	}
	if len(got.Kvs) == 0 {
		return h, 0, &fault.Error{Op: "look up host", On: id.Short(), Err: ErrNotEnrolled, Fix: "`particle cluster status` lists the hosts"}
	}
	return h, got.Kvs[0].ModRevision, json.Unmarshal(got.Kvs[0].Value, &h)
}

// forgetAfter is how long a certificate is remembered that has ended: clocks jump, and
// then some were only thought to have.
const forgetAfter = hostLife

// Enter notes a host, and revokes the certificates that its former entry lists
// and the new one does not.
func (r *Register) Enter(ctx context.Context, h Host) error {
	h.Certificates = slices.DeleteFunc(slices.Clone(h.Certificates), func(c Certificate) bool { return c.NotAfter.Add(forgetAfter).Before(time.Now()) })
	raw, err := json.Marshal(h)
	if err != nil {
		return err
	}
	old, revision, err := r.host(ctx, h.ID)
	if err != nil && !errors.Is(err, ErrNotEnrolled) {
		return err
	}
	ops, err := revoke(old, h.Certificates, false)
	if err != nil {
		return err
	}
	return r.replace(ctx, h, revision, append(ops, clientv3.OpPut(hostPrefix+string(h.ID), string(raw))))
}

// Remove takes a host out and revokes its certificates; not there is success. With
// cut, servers end the connections that the host has by then.
func (r *Register) Remove(ctx context.Context, id topology.NodeID, cut bool) error {
	old, revision, err := r.host(ctx, id)
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
	return r.replace(ctx, old, revision, append(ops, clientv3.OpDelete(hostPrefix+string(id))))
}

func (r *Register) replace(ctx context.Context, h Host, revision int64, ops []clientv3.Op) error {
	got, err := r.kv.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(hostPrefix+string(h.ID)), "=", revision)).Then(ops...).Commit()
	if err == nil && !got.Succeeded {
		return fault.New("change host", h.Name, "another server has changed it at the same moment", "try again")
	}
	return explainStore("change host", h.Name, err)
}

// revoke writes down the certificates of a host but those to be kept.
func revoke(h Host, keep []Certificate, cut bool) ([]clientv3.Op, error) {
	var ops []clientv3.Op
	for _, c := range h.Certificates {
		if slices.ContainsFunc(keep, func(k Certificate) bool { return k.Serial == c.Serial }) {
			continue
		}
		raw, err := json.Marshal(Revoked{Certificate: c, Node: h.ID, Name: h.Name, At: time.Now().UTC(), Cut: cut})
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

// Revoked lists the certificates that must not be used any more, and forgets
// those that have ended by themselves.
func (r *Register) Revoked(ctx context.Context) ([]Revoked, error) {
	all, err := list[Revoked](ctx, r, revokedPrefix)
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

func list[T any](ctx context.Context, r *Register, prefix string) ([]T, error) {
	got, err := r.kv.Get(ctx, prefix, clientv3.WithPrefix())
	if err != nil {
		return nil, explainStore("list hosts", "", err)
	}
	all := make([]T, len(got.Kvs))
	for i, kv := range got.Kvs {
		if err := json.Unmarshal(kv.Value, &all[i]); err != nil {
			return nil, explainStore("read "+string(kv.Key), base64.StdEncoding.EncodeToString(kv.Value), err)
		}
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
