package holder

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/topology"
)

// Identity is what one container may be on its network.
type Identity struct {
	// Namespace is the file of the tenant namespace. Sockets of other namespaces are
	// left alone.
	Namespace string `json:"namespace"`
	// IPv4 and IPv6 are the own addresses; invalid if the network lacks the family.
	IPv4 netip.Addr `json:"ipv4,omitzero"`
	IPv6 netip.Addr `json:"ipv6,omitzero"`
	// Loopback4 is what the container calls 127.0.0.0, Loopback6 what it calls ::1.
	Loopback4 netip.Addr `json:"loopback4"`
	Loopback6 netip.Addr `json:"loopback6"`
}

// file is where a container's identity is.
func file(dir string, id topology.ContainerID) string { return filepath.Join(dir, string(id)) }

// Tell writes a container's identity down, before its first program runs.
func Tell(dir string, id topology.ContainerID, i Identity) error {
	raw, err := json.Marshal(i)
	path := file(dir, id)
	if err == nil {
		err = os.WriteFile(path+".new", raw, 0o600)
	}
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		return &fault.Error{Op: "tell addresses to the guard of", On: id.Short(), Err: err}
	}
	return nil
}

// Forget removes it; gone already is success.
func Forget(dir string, id topology.ContainerID) { _ = os.Remove(file(dir, id)) }

func readIdentity(dir string, id topology.ContainerID) (Identity, error) {
	var i Identity
	raw, err := os.ReadFile(file(dir, id))
	if err == nil {
		err = json.Unmarshal(raw, &i)
	}
	return i, err
}
