package server

import (
	"cmp"
	"crypto/rand"
	"crypto/tls"
	"net/url"
	"path/filepath"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.uber.org/zap"

	"github.com/particle-net/particle/control/enrol"
)

const (
	// quota bounds the store's file, in bytes. A network takes some 300 and a
	// block 200, so it is never reached by use, and small enough to notice misuse.
	quota = 256 << 20
	// keepRevisions and snapshotEvery keep the file small and restarts short:
	// the store sees few writes.
	keepRevisions = "10000"
	snapshotEvery = 2000
)

// Config is what a server is to be.
type Config struct {
	Host enrol.Host // its id names the member
	// Dir holds the data. It is made if it is not there.
	Dir string
	// Initial lists the members, as enrol.Store's Admit gave it, until this one has
	// started for the first time; empty from then on, and for the only server. Of no
	// effect once there is data.
	Initial string
	// Others are the hosts that serve the store beside this one, for people. A server
	// without data and Initial makes a new store if there are none, and else does not
	// start: see ErrLost.
	Others string
	// Files of the host's certificate, its key, the authority's certificate and
	// the list of revoked certificates, read anew for each connection.
	Certificate, Key, Authority, Revoked string
	Quota                                int64 // bytes that the store's file may grow to; 0 for the default
	// Alone makes this server the only one, with the data it has: what others may
	// have had beyond that is lost. Start it so once, when the others are gone for
	// good; those that do come back are told that they were removed, and end.
	Alone bool
}

// lost says whether the data is gone of a server on which others count: they would take
// a store that it made anew for the one that has confirmed their writes and given them
// its vote.
func (c Config) lost() bool {
	return c.Others != "" && c.Initial == "" && !c.Alone && !wal.Exist(filepath.Join(c.Dir, "member", "wal"))
}

func (c Config) etcd(log *zap.Logger) *embed.Config {
	e := embed.NewConfig()
	clients, peers := storeURL(c.Host.Clients().String()), storeURL(c.Host.Peers().String())
	e.Name, e.Dir = string(c.Host.ID), c.Dir
	e.ListenClientUrls, e.AdvertiseClientUrls = []url.URL{clients}, []url.URL{clients}
	e.ListenPeerUrls, e.AdvertisePeerUrls = []url.URL{peers}, []url.URL{peers}
	// The ids of a new store and of its server are made of this and of the address. A
	// former server that comes back is not to take it for the store that it knows.
	e.InitialClusterToken = rand.Text()
	e.InitialCluster, e.ClusterState = c.Initial, embed.ClusterStateFlagExisting
	if c.Initial == "" || c.Alone {
		e.InitialCluster, e.ClusterState = e.Name+"="+peers.String(), embed.ClusterStateFlagNew
	}
	e.AutoCompactionMode, e.AutoCompactionRetention = embed.CompactorModeRevision, keepRevisions
	e.SnapshotCount, e.QuotaBackendBytes = snapshotEvery, cmp.Or(c.Quota, quota)
	e.ForceNewCluster = c.Alone
	e.StrictReconfigCheck, e.EnableGRPCGateway = true, false
	// Hosts lose the way to each other at times; a member that comes back must
	// not force an election.
	e.PreVote = true
	e.WarningApplyDuration, e.WarningUnaryRequestDuration = time.Second, time.Second
	e.TlsMinVersion = "TLS1.3"
	e.ClientTLSInfo = transport.TLSInfo{
		CertFile: c.Certificate, KeyFile: c.Key, TrustedCAFile: c.Authority, CRLFile: c.Revoked,
		ClientCertAuth: true, MinVersion: tls.VersionTLS13,
	}
	e.PeerTLSInfo = e.ClientTLSInfo
	// Only servers may be peers: any host of the cluster has a certificate. What
	// address a peer's connections come from does not matter.
	e.PeerTLSInfo.AllowedHostnames, e.PeerTLSInfo.SkipClientSANVerify = []string{enrol.ServerName}, true
	e.ZapLoggerBuilder = embed.NewZapLoggerBuilder(log)
	return e
}

func storeURL(at string) url.URL { return url.URL{Scheme: "https", Host: at} }
