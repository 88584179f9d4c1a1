package main

import (
	"fmt"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/bench/rig"
)

// space is a network namespace and a socket to change it by.
type space struct {
	file  *os.File
	route *netlink.Handle
}

func (s *space) fd() netlink.NsFd { return netlink.NsFd(s.file.Fd()) }

func (s *space) close() {
	s.route.Close()
	_ = s.file.Close()
}

// newSpace makes a namespace with lo up.
func newSpace() (s *space, err error) {
	err = rig.OnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("create namespace: %w", err)
		}
		s, err = openSpace("/proc/thread-self/ns/net")
		return err
	})
	if err != nil {
		return nil, err
	}
	lo, err := s.route.LinkByName("lo")
	if err == nil {
		err = s.route.LinkSetUp(lo)
	}
	return s, err
}

// openSpace opens the one that is bound on a path.
func openSpace(path string) (*space, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	var route *netlink.Handle
	err = inside(file, func() (err error) {
		route, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		_ = file.Close()
		return nil, err
	}
	return &space{file: file, route: route}, nil
}

// do runs fn on a thread in the namespace.
func (s *space) do(fn func() error) error { return inside(s.file, fn) }

func inside(ns *os.File, fn func() error) error {
	return rig.OnThread(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter namespace: %w", err)
		}
		return fn()
	})
}

// raise gives a link an address, if any, and brings it up.
func (s *space) raise(name, address string) error {
	link, err := s.route.LinkByName(name)
	if err == nil && address != "" {
		var a *netlink.Addr
		if a, err = netlink.ParseAddr(address); err == nil {
			err = s.route.AddrAdd(link, a)
		}
	}
	if err == nil {
		err = s.route.LinkSetUp(link)
	}
	if err != nil {
		return fmt.Errorf("set up %s: %w", name, err)
	}
	return nil
}

// mtu is that of the link by which packets leave for an address.
func (s *space) mtu(to netip.Addr) (int, error) {
	routes, err := s.route.RouteGet(to.AsSlice())
	if err != nil || len(routes) == 0 {
		return 0, fmt.Errorf("find the route to %s: %w", to, err)
	}
	link, err := s.route.LinkByIndex(routes[0].LinkIndex)
	if err != nil {
		return 0, fmt.Errorf("find the link to %s: %w", to, err)
	}
	return link.Attrs().MTU, nil
}
