package enrol

import (
	"net/netip"
	"time"

	"github.com/particle-net/particle/topology"
)

// Paths of the enrolment port. All take POST with a JSON object and answer one.
const (
	pathJoin  = "/particle/v1/join"
	pathRenew = "/particle/v1/renew"
	pathState = "/particle/v1/state"
	pathLeave = "/particle/v1/leave"
)

// maxBody bounds an answer, in bytes, and maxRequest a request, which anybody may send:
// it holds little more than a key.
const (
	maxBody    = 1 << 20
	maxRequest = 16 << 10
)

// JoinRequest asks for membership.
type JoinRequest struct {
	Secret  string          `json:"secret"`
	Request []byte          `json:"request"` // for the certificate, PEM
	ID      topology.NodeID `json:"id"`
	Name    string          `json:"name"`
	Address netip.Addr      `json:"address"`
	Port    uint16          `json:"port"`
	Server  bool            `json:"server,omitempty"`
	Version string          `json:"version,omitempty"`
	// Encryptions are those that the host's kernel can.
	Encryptions []topology.Encryption `json:"encryptions,omitempty"`
}

// Admission is membership.
type Admission struct {
	Certificate []byte `json:"certificate"` // PEM
	Host        Host   `json:"host"`        // as the register has it
	Servers     []Host `json:"servers"`
	// Encryption is the cluster's.
	Encryption topology.Encryption `json:"encryption,omitempty"`
	// AuthorityKey and InitialCluster are for a new server alone: PEM, and who the
	// store's members are, as etcd writes it.
	AuthorityKey   []byte `json:"authorityKey,omitempty"`
	InitialCluster string `json:"initialCluster,omitempty"`
}

// Hello is what a host says of itself with each request. A store that has lost
// its contents learns its hosts from it again.
type Hello struct {
	Name    string     `json:"name"`
	Address netip.Addr `json:"address"`
	Port    uint16     `json:"port"`
	Version string     `json:"version,omitempty"`
}

// memberRequest is the request of a host that has a certificate.
type memberRequest struct {
	Hello
	Request []byte `json:"request,omitempty"` // to renew: PEM
}

// State is what a host asks for from time to time.
type State struct {
	Servers []Host    `json:"servers"`
	Now     time.Time `json:"now"` // the server's clock
}

// refusal is an answer other than 200.
type refusal struct {
	Cause string `json:"cause"`
	Fix   string `json:"fix,omitempty"`
}
