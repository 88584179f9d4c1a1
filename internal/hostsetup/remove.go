package hostsetup

import (
	"bytes"
	"context"
	"debug/buildinfo"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/particle-net/particle"
	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/internal/holder"
	"github.com/particle-net/particle/internal/hostpath"
	"github.com/particle-net/particle/internal/hostsetup/daemonjson"
	"github.com/particle-net/particle/overlay"
)

// UnregisterRequest is what Unregister is asked for.
type UnregisterRequest struct {
	DataRoot string `json:"dataRoot"`
	// InForce says that the engine still has our runtime loaded.
	InForce bool `json:"inForce"`
}

// UnregisterResult tells what Unregister has done.
type UnregisterResult struct {
	Config   string `json:"config"`
	Reloaded bool   `json:"reloaded"`
}

// Unregister makes dockerd let go of the runtime. It leaves the configuration
// file in the form that daemonjson.Handover explains; Remove puts the file from
// before in its place, once dockerd has loaded this one.
func Unregister(req UnregisterRequest) (UnregisterResult, error) {
	d, err := findDaemon(req.DataRoot)
	if err != nil {
		return UnregisterResult{}, err
	}
	rec, _, err := loadRecord(recordFile)
	if err != nil {
		return UnregisterResult{}, err
	}
	if !req.InForce {
		_, _, err := beforeUs(d.config, rec)
		return UnregisterResult{Config: d.config}, err
	}
	if rec, err = rec.at(d.config); err != nil {
		return UnregisterResult{}, err
	}
	have, before, err := beforeUs(d.config, rec)
	if err != nil {
		return UnregisterResult{}, err
	}
	text, err := daemonjson.Handover(before)
	if err != nil {
		return UnregisterResult{}, &fault.Error{Op: "restore dockerd's configuration", On: d.config, Err: err, Fix: "correct the file"}
	}
	if rec.Config.Path == "" {
		// Without a record the handover could not be told from the
		// administrator's own text.
		rec.Config = configRecord{Path: d.config, Absent: have == nil}
	}
	if hash := hashText(have); hash != rec.Config.Written && hash != rec.Config.Handover {
		rec.Config.Edited = true
	}
	rec.Config.Original, rec.Config.Handover = before, hashText(text)
	if err := os.MkdirAll(hostpath.StateDir, 0o700); err != nil {
		return UnregisterResult{}, &fault.Error{Op: "make directory", On: hostpath.StateDir, Err: err}
	}
	if err := rec.save(recordFile); err != nil {
		return UnregisterResult{}, err
	}
	plan := configPlan{have: have, want: text, record: rec.Config}
	if _, err := plan.apply(); err != nil {
		return UnregisterResult{}, err
	}
	return UnregisterResult{Config: d.config, Reloaded: true}, d.reload()
}

// beforeUs gives the text of the configuration file, and what it is without us.
func beforeUs(path string, rec record) (have, before []byte, err error) {
	if have, err = (daemon{config: path}).readConfig(); err != nil {
		return nil, nil, err
	}
	if before, err = rec.Config.without(have); err != nil {
		return nil, nil, &fault.Error{Op: "restore dockerd's configuration", On: path, Err: err,
			Fix: "correct the file and uninstall again"}
	}
	return have, before, nil
}

// RemoveRequest is what Remove is asked for.
type RemoveRequest struct {
	DataRoot string `json:"dataRoot"`
	// Undo takes back an installation that has failed: what the host had before in the
	// directory of state, such as an administrator's keys for etcd, stays.
	Undo bool `json:"undo,omitempty"`
}

// RemoveResult tells what Remove has done.
type RemoveResult struct {
	// Exact says that the configuration file is byte for byte what it was, or
	// gone if there was none.
	Exact bool `json:"exact"`
}

// Remove puts the configuration file from before the installation back and
// removes every file of ours. dockerd must have let go of the runtime, and the
// plugin must be gone. What is gone already is passed over.
func Remove(ctx context.Context, req RemoveRequest) (RemoveResult, error) {
	rec, known, err := loadRecord(recordFile)
	if err != nil {
		return RemoveResult{}, err
	}
	path := rec.Config.Path
	if path == "" {
		d, err := findDaemon(req.DataRoot)
		if err != nil {
			return RemoveResult{}, err
		}
		path = d.config
	}
	exact, err := restoreConfig(path, rec)
	if err != nil {
		return RemoveResult{}, err
	}
	if err := overlay.Cleanup(ctx, overlay.Options{NamespaceDir: hostpath.NamespaceDir}); err != nil {
		return RemoveResult{}, err
	}
	_ = os.Remove(filepath.Join(hostpath.CgroupDir, "particle")) // the kernel keeps a cgroup without a mount
	if err := unmountBelow(hostpath.RunDir); err != nil {
		return RemoveResult{}, err
	}
	if err := endHolder(ctx); err != nil {
		return RemoveResult{}, err
	}
	for _, file := range []string{path, hostpath.RuntimeBinary, hostpath.CLIBinary} {
		sweep(file)
	}
	// The record goes last: with it, an interrupted removal can be taken up.
	files := append(installed(known), hostpath.DriverSocket, hostpath.RunDir)
	if req.Undo && !rec.MadeState {
		files = append(files, recordFile)
	} else {
		files = append(files, hostpath.StateDir)
	}
	for _, file := range files {
		if err := os.RemoveAll(file); err != nil {
			return RemoveResult{}, &fault.Error{Op: "remove", On: file, Err: err, Fix: "remove it and uninstall again"}
		}
	}
	for _, dir := range []string{filepath.Dir(hostpath.RuntimeConfig), hostpath.StateDir} {
		_ = os.Remove(dir) // if nobody has anything else there
	}
	return RemoveResult{Exact: known && exact}, nil
}

// installed are the programs of ours that are on the host, and their configuration. Other
// programs have our names, too: without a record of an installation only what was built of
// this module is ours.
func installed(known bool) (files []string) {
	for path, name := range map[string]string{hostpath.RuntimeBinary: "particle-runtime", hostpath.CLIBinary: "particle"} {
		if known || builtOf(path) == particle.Module+"/cmd/"+name {
			files = append(files, path)
		}
	}
	if known || slices.Contains(files, hostpath.RuntimeBinary) {
		files = append(files, hostpath.RuntimeConfig)
	}
	return files
}

// builtOf is the package that a program was built of; empty if it is no program of Go's, or
// is not there.
func builtOf(path string) string {
	built, err := buildinfo.ReadFile(path)
	if err != nil {
		return ""
	}
	return built.Path
}

// endHolder ends the process of the guard by system calls, once the kernel has told
// it that the last container is gone.
func endHolder(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := holder.End(hostpath.HolderDir)
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return &fault.Error{Op: "end", On: "particle-runtime " + holder.Command, Err: err, Fix: "stop the containers of particle networks and uninstall again"}
		}
	}
}

func restoreConfig(path string, rec record) (exact bool, err error) {
	have, before, err := beforeUs(path, rec)
	if err != nil || have == nil {
		return true, err
	}
	exact = !rec.Config.Edited && bytes.Equal(before, rec.Config.Original)
	if rec.Config.Absent && len(before) == 0 {
		err = os.Remove(path)
		if err == nil && rec.Config.MadeDir != "" {
			removeEmpty(filepath.Dir(path), rec.Config.MadeDir)
		}
	} else if !bytes.Equal(have, before) {
		_, err = configPlan{have: have, want: before, record: configRecord{Path: path}}.apply()
	}
	if err != nil {
		return false, &fault.Error{Op: "restore dockerd's configuration", On: path, Err: err,
			Fix: "make the file writable for root and uninstall again"}
	}
	return exact, nil
}

// removeEmpty removes directories upwards from path to top, as far as they are
// empty.
func removeEmpty(path, top string) {
	for ; path == top || strings.HasPrefix(path, top+"/"); path = filepath.Dir(path) {
		if os.Remove(path) != nil {
			return
		}
	}
}

// unmountBelow unmounts everything below a directory, the latest mount first.
// Where the directory is in a mount shared with the host, the host follows.
func unmountBelow(dir string) error {
	raw, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return &fault.Error{Op: "list mounts", Err: err}
	}
	var points []string
	for line := range strings.Lines(string(raw)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			points = append(points, unescape(f[4]))
		}
	}
	for _, point := range slices.Backward(points) {
		if err := unix.Unmount(point, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return &fault.Error{Op: "unmount", On: point, Err: err, Fix: "unmount it and uninstall again"}
		}
	}
	return nil
}

// unescape undoes the kernel's way of writing white space in mountinfo.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// Survivors gives the ids of the engine's plugins whose containerd shims were
// started with our runtime and would need it to stop. runc's shim writes the
// runtime's path into the file `runtime` of its bundle.
func Survivors() ([]string, error) {
	var ids []string
	for _, state := range []string{"/run/docker/containerd/daemon", "/run/containerd"} {
		files, err := filepath.Glob(state + "/io.containerd.runtime.v2.task/*/*/runtime")
		if err != nil {
			return nil, err
		}
		for _, file := range files {
			bundle := filepath.Dir(file)
			text, err := os.ReadFile(file)
			if err == nil && strings.TrimSpace(string(text)) == hostpath.RuntimeBinary &&
				strings.HasPrefix(filepath.Base(filepath.Dir(bundle)), "plugins.") {
				ids = append(ids, filepath.Base(bundle))
			}
		}
	}
	return ids, nil
}

// Attended tells whether a process works for the engine's container or plugin
// of this id: containerd's shim and runc carry it on their command lines.
func Attended(id string) (bool, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return false, err
	}
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err == nil && slices.Contains(split([]byte(readProc(pid, "cmdline"))), id) {
			return true, nil
		}
	}
	return false, nil
}
