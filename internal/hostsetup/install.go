package hostsetup

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/particle-net/particle"
	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/internal/hostpath"
	"github.com/particle-net/particle/internal/hostsetup/daemonjson"
)

// InstallRequest is what Install is asked for.
type InstallRequest struct {
	DataRoot string `json:"dataRoot"` // the engine's, by which its process is found
	// Current is the runtime the engine uses for containers that name none.
	Current EngineRuntime `json:"current"`
	// MakeDefault makes ours that one.
	MakeDefault bool `json:"makeDefault"`
	// InForce says that the engine has the wanted configuration loaded already.
	InForce bool `json:"inForce"`
	// Settings are those of the plugin now; nil if there is none, or one that was never
	// finished. Empty are those of one that has no other than it comes with.
	Settings map[string]string `json:"settings"`
}

// EngineRuntime is a runtime as the engine knows it.
type EngineRuntime struct {
	Name string   `json:"name"`
	Path string   `json:"path"`
	Args []string `json:"args,omitempty"`
	Type string   `json:"type,omitempty"` // of a containerd shim instead of a path
}

// InstallResult tells what Install has done.
type InstallResult struct {
	Config   string `json:"config"`   // dockerd's configuration file
	Runtime  string `json:"runtime"`  // the real runtime
	Reloaded bool   `json:"reloaded"` // dockerd was told to reload
	// Settings are the plugin's: the request's, or the recorded ones.
	Settings map[string]string `json:"settings,omitempty"`
}

// Install puts the programs on the host and registers the runtime with dockerd.
// It checks everything it can before it changes anything. Whether dockerd has
// taken the new configuration is for the caller to see through the API.
func Install(req InstallRequest, programs Programs) (InstallResult, error) {
	d, err := findDaemon(req.DataRoot)
	if err != nil {
		return InstallResult{}, err
	}
	if err := d.conflict(req.MakeDefault); err != nil {
		return InstallResult{}, err
	}
	old, installed, err := loadRecord(recordFile)
	if err != nil {
		return InstallResult{}, err
	}
	if old, err = old.at(d.config); err != nil {
		return InstallResult{}, err
	}
	plan, err := planConfig(d, old, req.MakeDefault)
	if err != nil {
		return InstallResult{}, err
	}
	found, err := d.realRuntime(req, old)
	if err != nil {
		return InstallResult{}, err
	}
	if !installed {
		if err := refuseForeign(programs); err != nil {
			return InstallResult{}, err
		}
	}
	settings, err := json.Marshal(map[string]string{"runtime": found, "socket": hostpath.Socket})
	if err != nil {
		return InstallResult{}, err
	}
	settings = append(settings, '\n')
	keep := keepsRuntimeConfig(old)
	now := record{Version: particle.Version, Config: plan.record, Runtime: found, RuntimeConfig: old.RuntimeConfig,
		Settings: old.Settings}
	if !keep {
		now.RuntimeConfig = hashText(settings)
	}
	if req.Settings != nil {
		now.Settings = req.Settings
	}
	now.MadeState = missingDir(hostpath.StateDir) != ""
	if err := os.MkdirAll(hostpath.StateDir, 0o700); err != nil {
		return InstallResult{}, &fault.Error{Op: "make directory", On: hostpath.StateDir, Err: err}
	}
	if err := now.save(recordFile); err != nil {
		return InstallResult{}, err
	}
	if err := putFiles(programs, settings, keep); err != nil {
		return InstallResult{}, err
	}
	result := InstallResult{Config: d.config, Runtime: found, Settings: now.Settings}
	changed, err := plan.apply()
	if err != nil {
		return InstallResult{}, err
	}
	if changed || !req.InForce {
		result.Reloaded = true
		return result, d.reload()
	}
	return result, nil
}

// configPlan is a change of the daemon's configuration file, ready to be made.
type configPlan struct {
	have   []byte // nil if there is no file
	want   []byte
	record configRecord
}

func planConfig(d daemon, old record, makeDefault bool) (configPlan, error) {
	have, err := d.readConfig()
	if err != nil {
		return configPlan{}, err
	}
	broken := func(err error) error {
		if errors.Is(err, daemonjson.ErrForeign) {
			return &fault.Error{Op: "configure dockerd", On: d.config, Err: err,
				Fix: fmt.Sprintf("rename the runtime %q there and reload dockerd", hostpath.RuntimeName)}
		}
		return &fault.Error{Op: "read dockerd's configuration", On: d.config, Err: err,
			Fix: "correct the file; dockerd could not start with it either"}
	}
	if err := daemonjson.Check(have); err != nil {
		return configPlan{}, broken(err)
	}
	before, err := old.Config.without(have)
	if err != nil {
		return configPlan{}, broken(err)
	}
	rt := ours()
	rt.Default = makeDefault
	want, edit, err := daemonjson.Merge(before, rt)
	if err != nil {
		return configPlan{}, broken(err)
	}
	absent := have == nil || (old.Config.Absent && len(before) == 0)
	// If this is cut off before it writes the file, that still is wholly ours.
	handover := ""
	if hash := hashText(have); hash == old.Config.Written || hash == old.Config.Handover {
		handover = hash
	}
	return configPlan{have: have, want: want, record: configRecord{
		Path: d.config, Absent: absent, Original: before, Written: hashText(want), Handover: handover, Edit: edit,
		MadeDir: cmp.Or(old.Config.MadeDir, missingDir(filepath.Dir(d.config))),
	}}, nil
}

// missingDir names the topmost directory that is missing on the way to path.
func missingDir(path string) string {
	missing := ""
	for dir := path; dir != filepath.Dir(dir); dir = filepath.Dir(dir) {
		if _, err := os.Stat(dir); err == nil {
			break
		}
		missing = dir
	}
	return missing
}

// apply writes the file unless it is right already.
func (p configPlan) apply() (changed bool, err error) {
	path := p.record.Path
	if p.have != nil && bytes.Equal(p.have, p.want) {
		return false, nil
	}
	// dockerd's own default for the directory is 0755, and for files in it 0644.
	err = os.MkdirAll(filepath.Dir(path), 0o755)
	var a attributes
	if err == nil {
		a, err = attributesOf(path, 0o644)
	}
	if err == nil {
		err = overwrite(path, p.want, a)
	}
	if err != nil {
		return false, &fault.Error{Op: "write dockerd's configuration", On: path, Err: err,
			Fix: "make the file writable for root"}
	}
	return true, nil
}

// realRuntime finds the program that particle-runtime stands in front of: what
// containers have been run with so far.
func (d daemon) realRuntime(req InstallRequest, old record) (string, error) {
	current := req.Current
	if current.Name == hostpath.RuntimeName {
		if old.Runtime != "" && executable(old.Runtime) == nil {
			return old.Runtime, nil
		}
		current = EngineRuntime{}
	}
	var cause string
	switch {
	case current.Name == "" || current.Name == "runc" || (current.Path == "" && current.Type == ""):
		current.Path = "runc"
	case current.Path == "":
		cause = fmt.Sprintf("it is a containerd shim (%s), which no OCI runtime can stand in front of", current.Type)
	case len(current.Args) > 0:
		cause = "it has runtimeArgs, which particle-runtime does not pass on"
	}
	if cause != "" {
		if req.MakeDefault {
			return "", fault.New("stand in front of the default runtime", current.Name, cause,
				"install with --no-default-runtime and run containers with --runtime particle")
		}
		current.Path = "runc"
	}
	found, err := d.lookup(current.Path)
	if err != nil {
		return "", &fault.Error{Op: "find the real runtime", On: current.Path, Err: err, Fix: "install it on the host"}
	}
	return found, nil
}

// refuseForeign keeps a first installation from replacing programs of other
// origin that happen to have our names.
func refuseForeign(programs Programs) error {
	for path, program := range programs.targets() {
		if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) || same(path, program) {
			continue
		}
		return fault.New("put program", path, "a file of that name is there, and `particle install` did not put it there",
			"move it away")
	}
	return nil
}

func (p Programs) targets() map[string]*os.File {
	return map[string]*os.File{hostpath.RuntimeBinary: p.Runtime, hostpath.CLIBinary: p.CLI}
}

// keepsRuntimeConfig tells whether the administrator has changed the runtime's
// configuration since it was written.
func keepsRuntimeConfig(old record) bool {
	text, err := os.ReadFile(hostpath.RuntimeConfig)
	return err == nil && hashText(text) != old.RuntimeConfig
}

func putFiles(programs Programs, settings []byte, keepConfig bool) error {
	if !keepConfig {
		err := os.MkdirAll(filepath.Dir(hostpath.RuntimeConfig), 0o755)
		if err == nil {
			err = replace(hostpath.RuntimeConfig, bytes.NewReader(settings), attributes{mode: 0o644})
		}
		if err != nil {
			return &fault.Error{Op: "write configuration", On: hostpath.RuntimeConfig, Err: err, Fix: "make /etc writable"}
		}
	}
	for path, program := range programs.targets() {
		if same(path, program) {
			continue
		}
		err := os.MkdirAll(filepath.Dir(path), 0o755)
		if err == nil {
			_, err = program.Seek(0, 0)
		}
		if err == nil {
			err = replace(path, program, attributes{mode: 0o755})
		}
		if err != nil {
			return &fault.Error{Op: "put program", On: path, Err: err, Fix: "make the directory writable"}
		}
	}
	return nil
}
