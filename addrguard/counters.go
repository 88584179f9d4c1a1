package addrguard

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/topology"
)

// Counters tell how often the programs stepped in. They only grow; those of a
// container end with it, or when another identity is admitted for its cgroup.
type Counters struct {
	BindsRewritten  uint64 // bind to the wildcard or to loopback
	BindsDenied     uint64 // to an address that is not the own
	ConnectsDenied  uint64 // to loopback addresses of others, or from a port without an address
	SourcesDenied   uint64 // datagrams with a forged source
	SocketsDenied   uint64 // raw, and of protocols the hooks do not see
	StrangersDenied uint64 // in a protected namespace without being admitted; totals alone
	EgressDropped   uint64 // packets
	IngressDropped  uint64 // packets
	UnixDenied      uint64 // connections and datagrams to abstract sockets of others
	Steered         uint64 // connections and datagrams to the IPv6 address of a socket for both families
	PingsRewritten  uint64 // echo requests that got the own source
}

func counters(n [guardVerdictVERDICTS]uint64) Counters {
	return Counters{
		BindsRewritten: n[guardVerdictBIND_REWRITTEN], BindsDenied: n[guardVerdictBIND_DENIED],
		ConnectsDenied: n[guardVerdictCONNECT_DENIED], SourcesDenied: n[guardVerdictSOURCE_DENIED],
		SocketsDenied: n[guardVerdictSOCKET_DENIED], StrangersDenied: n[guardVerdictSTRANGER_DENIED],
		EgressDropped: n[guardVerdictEGRESS_DROPPED], IngressDropped: n[guardVerdictINGRESS_DROPPED],
		UnixDenied: n[guardVerdictUNIX_DENIED], Steered: n[guardVerdictSTEERED],
		PingsRewritten: n[guardVerdictPING_REWRITTEN],
	}
}

// Counters are those of one container; all zero if it is not admitted.
func (g *Guard) Counters(id topology.CgroupID) (Counters, error) {
	var c guardContainer
	err := g.containers.Lookup(id, &c)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return Counters{}, &fault.Error{Op: "read counters", On: fmt.Sprint(id), Err: err, Fix: "try again"}
	}
	return counters(c.Counts), nil
}

// Totals are those of the host since its boot, containers that are gone included.
func (g *Guard) Totals() (Counters, error) {
	var sums [guardVerdictVERDICTS]uint64
	for v := range guardVerdictVERDICTS {
		var perCPU []uint64
		if err := g.totals.Lookup(v, &perCPU); err != nil {
			return Counters{}, &fault.Error{Op: "read counters", Err: err, Fix: "try again"}
		}
		for _, n := range perCPU {
			sums[v] += n
		}
	}
	return counters(sums), nil
}
