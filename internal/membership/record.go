package membership

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/control/enrol"
	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/topology"
)

// record is cluster.json.
type record struct {
	Cluster enrol.Fingerprint `json:"cluster"`
	Name    string            `json:"name"` // of this host, as the cluster knows it
	Address netip.Addr        `json:"address"`
	Port    uint16            `json:"port"` // base
	Server  bool              `json:"server,omitempty"`
	// Encryption is the cluster's.
	Encryption topology.Encryption `json:"encryption,omitempty"`
	// Initial is for a server that was not the first, until it has started: see
	// server.Config.
	Initial string       `json:"initial,omitempty"`
	Servers []enrol.Host `json:"servers"` // with a vote, as last heard
	Joined  time.Time    `json:"joined"`
	// Leaving: the host has given up its part, and goes.
	Leaving bool `json:"leaving,omitempty"`
}

func (r record) host(node topology.NodeID) enrol.Host {
	return enrol.Host{ID: node, Name: r.Name, Address: r.Address, Port: r.Port, Server: r.Server, Joined: r.Joined}
}

// files is a directory that makes a host a member.
type files struct{ dir string }

func (f files) record() string       { return filepath.Join(f.dir, "cluster.json") }
func (f files) authority() string    { return filepath.Join(f.dir, "ca.pem") }
func (f files) authorityKey() string { return filepath.Join(f.dir, "ca.key") }
func (f files) certificate() string  { return filepath.Join(f.dir, "node.pem") }
func (f files) former() string       { return filepath.Join(f.dir, "node-former.pem") }
func (f files) key() string          { return filepath.Join(f.dir, "node.key") }
func (f files) revoked() string      { return filepath.Join(f.dir, "crl.der") }
func (f files) data() string         { return filepath.Join(f.dir, "etcd") }

// read gives the record, nil if there is none.
func (f files) read() (*record, error) {
	raw, err := os.ReadFile(f.record())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var r record
	if err == nil {
		err = json.Unmarshal(raw, &r)
	}
	if err != nil {
		return nil, &fault.Error{Op: "read membership", On: f.record(), Err: err,
			Fix: "remove the directory it is in, restart the plugin, and join the cluster again"}
	}
	return &r, nil
}

func (f files) write(r record) error {
	raw, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(f.record(), raw)
}

// writeFile puts content at path, for root alone, so that a reader or a crash
// finds the old file or the new one and nothing between.
func writeFile(path string, content []byte) error {
	tmp, err := writeBeside(path, content)
	if err != nil {
		return err
	}
	defer os.Remove(tmp)
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// writeBeside puts content in a file of another name in the directory of path. After an
// error there is none.
func writeBeside(path string, content []byte) (name string, err error) {
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*") // 0600
	if err != nil {
		return "", err
	}
	_, err = tmp.Write(content)
	if err == nil {
		err = tmp.Sync()
	}
	if err = errors.Join(err, tmp.Close()); err != nil {
		err = errors.Join(err, os.Remove(tmp.Name()))
	}
	return tmp.Name(), err
}

// writable tries whether a file of the directory could be written anew: the record, or
// a certificate and the one before.
func writable(path string) error {
	probe, err := writeBeside(path, make([]byte, 2*room))
	if err != nil {
		return err
	}
	return os.Remove(probe)
}

// room is more than the record or a certificate takes, with its block on the disk.
const room = 4 << 10

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// place is where the directories are.
type place struct{ state string }

func (p place) now() files    { return files{filepath.Join(p.state, "cluster")} }
func (p place) next() files   { return files{filepath.Join(p.state, "cluster.new")} }
func (p place) former() files { return files{filepath.Join(p.state, "cluster.left")} }

// prepare gives an empty directory to fill.
func (p place) prepare() (files, error) {
	next := p.next()
	if err := os.RemoveAll(next.dir); err != nil {
		return next, err
	}
	return next, os.Mkdir(next.dir, 0o700)
}

// commit makes what was prepared the host's membership, in place of a former one.
func (p place) commit() error {
	if err := syncDir(p.next().dir); err != nil {
		return err
	}
	flags := uint(unix.RENAME_NOREPLACE)
	if _, err := os.Stat(p.now().dir); err == nil {
		flags = unix.RENAME_EXCHANGE
	}
	if err := unix.Renameat2(unix.AT_FDCWD, p.next().dir, unix.AT_FDCWD, p.now().dir, flags); err != nil {
		return &fault.Error{Op: "write membership", On: p.now().dir, Err: err}
	}
	return p.tidy()
}

// drop ends membership.
func (p place) drop() error {
	if err := p.forgetSecret(); err != nil {
		return err
	}
	if err := os.RemoveAll(p.former().dir); err != nil {
		return err
	}
	if err := os.Rename(p.now().dir, p.former().dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return p.tidy()
}

// tidy removes what has no meaning.
func (p place) tidy() error {
	return errors.Join(syncDir(p.state), os.RemoveAll(p.next().dir), os.RemoveAll(p.former().dir))
}

// nodeID gives the host's id, which it draws if there is none.
func nodeID(state string) (topology.NodeID, error) {
	path := filepath.Join(state, "node")
	raw, err := os.ReadFile(path)
	if err == nil {
		if id, err := topology.ParseNodeID(string(raw)); err == nil {
			return id, nil
		}
		return "", fault.New("read this host's id", path, "it is damaged", "restore the file, or remove it if the host is in no cluster")
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	id := make([]byte, 16)
	if _, err := rand.Read(id); err != nil {
		return "", err
	}
	text := hex.EncodeToString(id)
	return topology.NodeID(text), writeFile(path, []byte(text))
}
