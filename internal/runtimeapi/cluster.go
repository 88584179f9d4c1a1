package runtimeapi

import (
	"net/netip"
	"time"

	"github.com/particle-net/particle/topology"
)

// Cluster asks for what `particle cluster` does. It holds exactly one of its
// fields.
type Cluster struct {
	Init   *ClusterInit   `json:"init,omitempty"`
	Join   *ClusterJoin   `json:"join,omitempty"`
	Leave  *ClusterLeave  `json:"leave,omitempty"`
	Remove *ClusterRemove `json:"remove,omitempty"`
	Token  *ClusterToken  `json:"token,omitempty"`
	Status *Query         `json:"status,omitempty"`
	// Recover makes this server the store's only one.
	Recover *Query `json:"recover,omitempty"`
}

// ClusterReply holds the field that belongs to the request's.
type ClusterReply struct {
	Made    *ClusterMade   `json:"made,omitempty"` // to Init and Token
	Joined  *ClusterJoined `json:"joined,omitempty"`
	Left    *ClusterLeft   `json:"left,omitempty"`
	Removed string         `json:"removed,omitempty"` // the host's name
	Pending bool           `json:"pending,omitempty"` // it was alive: what it had is given up soon
	// Readmits: the token that is good lets it in again. Authority: it has the key that
	// lets hosts in.
	Readmits  bool           `json:"readmits,omitempty"`
	Authority bool           `json:"authority,omitempty"`
	Status    *ClusterStatus `json:"status,omitempty"`

	Recovered *ClusterRecovered `json:"recovered,omitempty"`
}

// ClusterInit makes a cluster of the host.
type ClusterInit struct {
	Address netip.Addr    `json:"address,omitzero"` // invalid: the one the default route uses
	Life    time.Duration `json:"life,omitempty"`   // of the token; 0: a day; negative: for ever
	Encrypt bool          `json:"encrypt,omitempty"`
}

// ClusterToken asks for the token that lets hosts in.
type ClusterToken struct {
	Rotate bool          `json:"rotate,omitempty"`
	Life   time.Duration `json:"life,omitempty"` // of a new one; 0: a day; negative: for ever
}

// ClusterMade tells how hosts join.
type ClusterMade struct {
	Address netip.AddrPort `json:"address"`
	Token   string         `json:"token"`
	Expires time.Time      `json:"expires,omitzero"` // zero: never
	Already bool           `json:"already,omitempty"`
	// Encryption is the cluster's. A plugin that is older than the wish says none.
	Encryption topology.Encryption `json:"encryption,omitempty"`
}

// ClusterJoin makes the host a member.
type ClusterJoin struct {
	Server  netip.AddrPort `json:"server"` // port 0: the same as this host's
	Token   string         `json:"token"`
	Address netip.Addr     `json:"address,omitzero"`
	Serve   bool           `json:"serve,omitempty"` // the store too
}

// ClusterJoined tells what the host is now.
type ClusterJoined struct {
	Name    string   `json:"name"`
	Servers []string `json:"servers"` // names
	Already bool     `json:"already,omitempty"`
	Two     bool     `json:"two,omitempty"` // it is one of two servers, which bear the loss of none
}

// ClusterRecovered tells which hosts serve the store no more, by name.
type ClusterRecovered struct {
	Former []string `json:"former,omitempty"`
}

// ClusterLeave ends membership.
type ClusterLeave struct {
	Force bool `json:"force,omitempty"`
}

// ClusterLeft tells how.
type ClusterLeft struct {
	Already bool   `json:"already,omitempty"` // there was none
	Untold  string `json:"untold,omitempty"`  // why no server could be told
	// External: PARTICLE_ETCD has the host in the cluster again when the plugin starts.
	External bool `json:"external,omitempty"`
}

// ClusterRemove takes another host out, by name, id or the start of one.
type ClusterRemove struct {
	Host string `json:"host"`
}

// ClusterStatus is a cluster as this host sees it.
type ClusterStatus struct {
	Role    string          `json:"role"`              // none, member, server or external
	Cluster string          `json:"cluster,omitempty"` // hash of the authority's certificate
	Node    topology.NodeID `json:"node"`
	Joined  time.Time       `json:"joined,omitzero"`
	Expires time.Time       `json:"expires,omitzero"` // of this host's certificate
	Leaving bool            `json:"leaving,omitempty"`
	// Encryption is how the cluster's hosts encrypt, and Unencrypted why this one
	// cannot, and so reaches no other.
	Encryption  topology.Encryption `json:"encryption,omitempty"`
	Unencrypted string              `json:"unencrypted,omitempty"`
	Hosts       []ClusterHost       `json:"hosts"`
	Store       []ClusterStore      `json:"store"`
	Networks    []ClusterNetwork    `json:"networks"`
	// Closed are ports of servers that this host does not reach, and why.
	Closed  []string `json:"closed,omitempty"`
	Skew    string   `json:"skew,omitempty"` // how this host's clock is wrong
	Problem string   `json:"problem,omitempty"`
}

// ClusterSummary is what a host knows of its cluster without asking anybody.
type ClusterSummary struct {
	Store StoreHealth `json:"store"`
	// Alive counts the hosts that were heard of lately, this one too; Suspects are the
	// others, by name.
	Alive    int      `json:"alive"`
	Suspects []string `json:"suspects"`
	// Removed says that this host is none of the cluster's any more, and what to do.
	Removed string `json:"removed,omitempty"`
	// Networks are those that are not as the cluster has them, or about to go.
	Networks []ClusterNetwork `json:"networks"`
}

// StoreHealth is whether the cluster's store answers this host.
type StoreHealth struct {
	Healthy bool      `json:"healthy"`
	Since   time.Time `json:"since,omitzero"`
	Problem string    `json:"problem,omitempty"`
}

// ClusterHost is a host of the cluster.
type ClusterHost struct {
	ID      topology.NodeID `json:"id"`
	Name    string          `json:"name"`
	VTEP    netip.Addr      `json:"vtep,omitzero"`
	Port    uint16          `json:"port,omitempty"` // UDP, of VXLAN; 0 if it has not told
	State   string          `json:"state"`          // alive, suspect or unknown
	Version string          `json:"version,omitempty"`
	Role    string          `json:"role"` // member or server
}

// ClusterStore is a server of the store.
type ClusterStore struct {
	Endpoint string `json:"endpoint"`
	Version  string `json:"version,omitempty"`  // of etcd
	Size     int64  `json:"size,omitempty"`     // bytes
	Revision int64  `json:"revision,omitempty"` // counts the writes of the whole store
	Leader   bool   `json:"leader,omitempty"`
	Learner  bool   `json:"learner,omitempty"` // it has no vote yet
	Problem  string `json:"problem,omitempty"`
}

// ClusterNetwork is a network of the cluster as it stands on this host.
type ClusterNetwork struct {
	ID      topology.SharedID `json:"id"`
	Name    string            `json:"name"`
	VNI     topology.VNI      `json:"vni"`
	State   string            `json:"state"`            // ready, pending, conflict or leaving
	Claims  []netip.Prefix    `json:"claims,omitempty"` // this host's
	Peers   int               `json:"peers"`            // other hosts that answer for addresses
	Problem string            `json:"problem,omitempty"`
}
