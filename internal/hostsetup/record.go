package hostsetup

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/internal/hostpath"
	"github.com/particle-net/particle/internal/hostsetup/daemonjson"
)

// recordFile is where the host remembers what installation has changed.
const recordFile = hostpath.StateDir + "/install.json"

// record is what installation has changed on this host. It is written before
// the changes it tells of.
type record struct {
	Version string       `json:"version"` // of the program that installed
	Config  configRecord `json:"config"`
	// Runtime is the real runtime that was found.
	Runtime string `json:"runtime"`
	// RuntimeConfig is the hash of hostpath.RuntimeConfig as it was written.
	RuntimeConfig string `json:"runtimeConfig"`
	// Settings are the plugin's, so that an upgrade which was cut off between
	// removing the old plugin and making the new one does not lose them.
	Settings map[string]string `json:"settings,omitempty"`
	// MadeState: the directory of state was not there before this installation.
	MadeState bool `json:"madeState,omitempty"`
}

// configRecord tells of the daemon's configuration file.
type configRecord struct {
	Path     string `json:"path"`
	Absent   bool   `json:"absent"`   // there was no such file
	Original []byte `json:"original"` // the file without us
	Edited   bool   `json:"edited"`   // it had been changed by others when we were taken out
	MadeDir  string `json:"madeDir,omitempty"`
	// Written and Handover are hashes of the two texts that installation and
	// its removal put there. A file with one of them is wholly ours, and
	// Original can take its place.
	Written  string          `json:"written"`
	Handover string          `json:"handover,omitempty"`
	Edit     daemonjson.Edit `json:"edit"`
}

// without gives the text the file would have without us.
func (c configRecord) without(text []byte) ([]byte, error) {
	if hash := hashText(text); hash == c.Written || hash == c.Handover {
		return c.Original, nil
	}
	return daemonjson.Unmerge(text, ours(), c.Edit)
}

// at is the record for the configuration file that dockerd reads now, which somebody may have
// changed for another since: what installation did to the former one is taken back there, and
// the latter goes by its keys alone.
func (r record) at(path string) (record, error) {
	if r.Config.Path == "" || r.Config.Path == path {
		return r, nil
	}
	_, err := restoreConfig(r.Config.Path, r)
	r.Config = configRecord{}
	return r, err
}

// loadRecord gives the record, or a zero one and false.
func loadRecord(path string) (record, bool, error) {
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return record{}, false, nil
	}
	var r record
	if err == nil {
		err = json.Unmarshal(raw, &r)
	}
	if err != nil {
		return record{}, false, &fault.Error{Op: "read record of installation", On: path, Err: err,
			Fix: "remove the file; the daemon's configuration will then be restored by its keys alone"}
	}
	return r, true, nil
}

func (r record) save(path string) error {
	raw, err := json.MarshalIndent(r, "", "  ")
	if err == nil {
		err = replace(path, bytes.NewReader(append(raw, '\n')), attributes{mode: 0o600})
	}
	if err != nil {
		return &fault.Error{Op: "write record of installation", On: path, Err: err, Fix: "make room on the disk and try again"}
	}
	return nil
}

// ours is what is registered with dockerd.
func ours() daemonjson.Runtime {
	return daemonjson.Runtime{Name: hostpath.RuntimeName, Path: hostpath.RuntimeBinary}
}
