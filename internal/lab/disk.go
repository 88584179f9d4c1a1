package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/particle-net/particle/internal/fault"
)

// onDisk are the directories of a host that are its disk.
var onDisk = []string{dirUpper, dirData, dirContainerd}

// daemonJSON is the engine's configuration on a host.
const daemonJSON = "/etc/docker/daemon.json"

// SaveDisk shuts the host's engine down, ends all else, and copies the host's disk to a
// directory that it makes, for [Options.Disk]. The ids by which engines are told apart
// stay behind. The host is off then.
func (h *Host) SaveDisk(ctx context.Context, dir string) error {
	if err := h.StopDockerd(ctx); err != nil {
		return err
	}
	if err := h.PowerOff(ctx); err != nil {
		return err
	}
	if err := copyDisk(ctx, h.dir(), dir); err != nil {
		return &fault.Error{Op: "save disk", On: h.name, Err: err}
	}
	// Docker 20.10 has the one, later versions have the other.
	for _, id := range []string{filepath.Join(dirUpper, "etc/docker/key.json"), filepath.Join(dirData, "engine-id")} {
		if err := os.Remove(filepath.Join(dir, id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return &fault.Error{Op: "save disk", On: h.name, Err: err}
		}
	}
	return nil
}

// takeDisk gives the host a copy of a disk, with the engine's configuration of the
// options in it beside what was there.
func (h *Host) takeDisk(ctx context.Context, o Options) error {
	if err := copyDisk(ctx, o.Disk, h.dir()); err != nil {
		return &fault.Error{Op: "copy disk", On: o.Disk, Err: err, Fix: "make it with SaveDisk"}
	}
	path := filepath.Join(h.dir(), dirUpper, daemonJSON)
	raw, err := os.ReadFile(path)
	if err != nil {
		return &fault.Error{Op: "copy disk", On: o.Disk, Err: err, Fix: "make it with SaveDisk"}
	}
	config, more := map[string]any{}, map[string]any{}
	wanted, err := daemonConfig(o)
	if err := errors.Join(err, json.Unmarshal(raw, &config), json.Unmarshal([]byte(wanted), &more)); err != nil {
		return &fault.Error{Op: "read daemon.json", On: o.Disk, Err: err}
	}
	maps.Copy(config, more)
	return writeJSON(path, config)
}

// copyDisk copies a disk from one directory to another, which need not be there.
func copyDisk(ctx context.Context, from, to string) error {
	if err := os.MkdirAll(to, 0o711); err != nil {
		return err
	}
	for _, name := range onDisk {
		// With all that overlayfs keeps in extended attributes and devices.
		if out, err := exec.CommandContext(ctx, "cp", "-a", "--reflink=auto", filepath.Join(from, name), to+"/").CombinedOutput(); err != nil {
			return fmt.Errorf("cp %s: %w: %s", name, err, out)
		}
	}
	return nil
}
