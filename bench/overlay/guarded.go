package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/particle-net/particle/addrguard"
	"github.com/particle-net/particle/bench/rig"
	"github.com/particle-net/particle/internal/process"
	"github.com/particle-net/particle/overlay"
	"github.com/particle-net/particle/topology"
)

// container is a cgroup whose processes the address guard of its host knows.
type container struct {
	guard *addrguard.Guard
	opts  addrguard.Options
	path  string // in the file system
	home  string // where this process belongs
}

// admit gives a host a guard and a container with the address. What it gives is to
// be closed also if it fails.
func admit(h *overlay.Host, host int, id topology.NetworkID, addr netip.Addr) (c *container, err error) {
	ctx := context.Background()
	// A guard attaches its programs to the top of the hierarchy's branch.
	cgroup := fmt.Sprintf("/particle-bench-%d-%d/container", os.Getpid(), host)
	c = &container{opts: addrguard.Options{
		Pins: filepath.Join(rig.RunDir, fmt.Sprint("bpf-", host)), Cgroups: filepath.Join(rig.RunDir, fmt.Sprint("cgroup-", host)), Spaces: h,
	}}
	if c.guard, err = addrguard.Open(ctx, c.opts); err != nil {
		return c, err
	}
	home, err := process.Unified("/proc/self/cgroup")
	if err != nil {
		return c, err
	}
	c.home = filepath.Join(c.opts.Cgroups, home)
	c.path = filepath.Join(c.opts.Cgroups, cgroup)
	if err := os.MkdirAll(c.path, 0o755); err != nil {
		return c, err
	}
	if err := c.guard.Protect(ctx, id, false); err != nil {
		return c, err
	}
	_, err = c.guard.Admit(ctx, cgroup, addrguard.Identity{Identity: topology.Identity{Network: id, IPv4: addr, Slot: 1}})
	return c, err
}

// do runs fn with this whole process in the container. Sockets stay the container's
// that were made in it.
func (c *container) do(fn func() error) (err error) {
	if c == nil {
		return fn()
	}
	if err := move(c.path); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, move(c.home)) }()
	return fn()
}

func move(cgroup string) error {
	return os.WriteFile(filepath.Join(cgroup, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0)
}

func (c *container) close() error {
	var errs []error
	if c.guard != nil {
		errs = append(errs, c.guard.Close())
	}
	if c.path != "" {
		for _, dir := range []string{c.path, filepath.Dir(c.path)} {
			if err := os.Remove(dir); err != nil && !errors.Is(err, syscall.ENOENT) {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(append(errs, addrguard.Cleanup(context.Background(), c.opts))...)
}
