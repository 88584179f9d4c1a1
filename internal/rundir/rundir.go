// Package rundir keeps the files under /run/particle that particle-runtime
// reads or writes beside the plugin: the list of networks, by which it knows a
// particle network while the plugin is down, and one resolv.conf a container.
package rundir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/particle-net/particle/fabric"
	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/topology"
)

// Dir is the run directory as this process sees it. It is safe for concurrent
// use.
type Dir struct {
	networks, resolv string
	write            sync.Mutex // one writer of networks at a time
}

// New describes the folder; Networks and Resolv are its files' places.
func New(networks, resolv string) *Dir { return &Dir{networks: networks, resolv: resolv} }

// PublishNetworks writes "ID NAME" lines, the whole file at once. A name with a line
// break, which Docker lets through without telling the driver, is left out: it would be
// read as another network. particle-runtime asks Docker for what it does not find.
func (d *Dir) PublishNetworks(list []fabric.EngineNetwork) error {
	d.write.Lock()
	defer d.write.Unlock()
	lines := make([]string, len(list))
	for i, n := range list {
		name := n.Name
		if strings.ContainsAny(name, "\r\n") {
			name = ""
		}
		lines[i] = fmt.Sprintf("%s %s\n", n.ID, name)
	}
	slices.Sort(lines)
	next := d.networks + ".new"
	if err := os.WriteFile(next, []byte(strings.Join(lines, "")), 0o644); err != nil {
		return &fault.Error{Op: "write", On: next, Err: err, Fix: "make room in /run"}
	}
	return os.Rename(next, d.networks)
}

// SweepResolv removes the files, named by container and older than age, of the
// containers that keep rejects.
func (d *Dir) SweepResolv(keep func(topology.ContainerID) bool, age time.Duration) error {
	entries, err := os.ReadDir(d.resolv)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, entry := range entries {
		info, err := entry.Info()
		if err != nil || time.Since(info.ModTime()) < age || keep(topology.ContainerID(entry.Name())) {
			continue
		}
		if err := os.Remove(filepath.Join(d.resolv, entry.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
