package hostsetup

import (
	"encoding/json"
	"errors"
	"io/fs"
	"net/netip"
	"os"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/internal/hostpath"
)

// ClusterRecord is what the host's disk tells of the cluster that it is in. The file
// is package internal/membership's, which brings the store with it that only the
// plugin is to have.
type ClusterRecord struct {
	Name    string          `json:"name"`    // of this host there; empty if it is in none
	Server  bool            `json:"server"`  // it serves the store
	Servers []ClusterServer `json:"servers"` // this one too
}

// ClusterServer is a host that serves the store.
type ClusterServer struct {
	Name    string     `json:"name"`
	Address netip.Addr `json:"address"`
}

// FindCluster reads it. The plugin need not run.
func FindCluster() (ClusterRecord, error) { return readCluster(hostpath.ClusterRecord) }

func readCluster(path string) (ClusterRecord, error) {
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return ClusterRecord{}, nil
	}
	var r ClusterRecord
	if err == nil {
		err = json.Unmarshal(raw, &r)
	}
	if err == nil && r.Name == "" {
		err = errors.New("it does not tell this host's name")
	}
	if err != nil {
		return r, &fault.Error{Op: "read membership", On: path, Err: err, Fix: "run `particle cluster leave --force`, or remove the directory it is in"}
	}
	return r, nil
}
