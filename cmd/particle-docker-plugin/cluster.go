package main

import (
	"context"
	"net/netip"
	"os"
	"runtime"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	particle "github.com/particle-net/particle"
	"github.com/particle-net/particle/control/server"
	"github.com/particle-net/particle/internal/hostpath"
	"github.com/particle-net/particle/internal/membership"
	"github.com/particle-net/particle/overlay"
)

// membershipOptions are this host's. What depends on its networks (Busy, Leaving
// and Removing) is the caller's to add.
func membershipOptions(s settings, plane *overlay.Host, log *logrus.Entry) membership.Options {
	o := membership.Options{
		StateDir: onHost(hostpath.StateDir), Name: hostName(), Port: s.clusterPort, Version: particle.Version,
		Address: func(ctx context.Context) (netip.Addr, error) {
			u, err := plane.Underlay(ctx, s.vtep)
			return u.VTEP, err
		},
		Command: []string{"/proc/self/exe", server.Argument},
		Log:     log,
	}
	if s.etcd != "" {
		endpoints, _ := membership.ParseEndpoints(s.etcd) // it was when it was read
		o.External = &membership.External{Endpoints: endpoints, User: s.etcdUser, Dir: onHost(hostpath.EtcdClientDir)}
	}
	return o
}

// hostName gives the host's name: Docker gives a plugin one of its own.
func hostName() string {
	names := make(chan string, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread is in another namespace, and ends
		name := ""
		if fd, err := unix.Open("/proc/1/ns/uts", unix.O_RDONLY|unix.O_CLOEXEC, 0); err == nil {
			if unix.Setns(fd, unix.CLONE_NEWUTS) == nil {
				name, _ = os.Hostname()
			}
			_ = unix.Close(fd)
		}
		names <- name
	}()
	if name := <-names; name != "" {
		return name
	}
	name, err := os.Hostname()
	if err != nil || name == "" {
		return "unnamed"
	}
	return name
}
