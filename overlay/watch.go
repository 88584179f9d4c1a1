package overlay

import (
	"fmt"
	"hash/maphash"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/topology"
)

// watch hears whether anything has changed in a tenant namespace. To read all that a
// network of a thousand hosts holds takes longer than to program one of them, and it
// is to be known every few seconds for each network. The kernel tells it to sockets
// that ask; what it tells is not read, but that it does.
//
// A socket keeps its namespace alive, so the watch ends with the network.
type watch struct {
	of      unix.Stat_t // the namespace's file
	sockets []int
	// sum is of the segment that a look has found in order; 0 if there was none since
	// the last change.
	sum uint64
}

// rings are what a watch listens to: links, addresses, neighbours with FDB entries,
// routes and rules of both IP versions; the firewall.
var rings = []struct{ protocol, groups int }{
	{unix.NETLINK_ROUTE, group(unix.RTNLGRP_LINK) | group(unix.RTNLGRP_NEIGH) |
		group(unix.RTNLGRP_IPV4_IFADDR) | group(unix.RTNLGRP_IPV4_ROUTE) | group(unix.RTNLGRP_IPV4_RULE) |
		group(unix.RTNLGRP_IPV6_IFADDR) | group(unix.RTNLGRP_IPV6_ROUTE) | group(unix.RTNLGRP_IPV6_RULE)},
	{unix.NETLINK_NETFILTER, group(unix.NFNLGRP_NFTABLES)},
}

func group(n int) int { return 1 << (n - 1) }

// watchOf gives the network's watch, begun anew if there is none of this namespace.
func (h *Host) watchOf(id topology.NetworkID, ns *namespace) (*watch, error) {
	var of unix.Stat_t
	if err := unix.Fstat(ns.fd(), &of); err != nil {
		return nil, &os.PathError{Op: "stat", Path: ns.file.Name(), Err: err}
	}
	if w := h.watches[id]; w != nil {
		if w.of.Dev == of.Dev && w.of.Ino == of.Ino {
			return w, nil
		}
		h.unwatch(id)
	}
	w := &watch{of: of}
	if err := enter(ns.file, w.listen); err != nil {
		w.close()
		return nil, fmt.Errorf("listen for changes: %w", err)
	}
	h.watches[id] = w
	return w, nil
}

// unwatch ends the network's watch; none is fine.
func (h *Host) unwatch(id topology.NetworkID) {
	if w := h.watches[id]; w != nil {
		w.close()
		delete(h.watches, id)
	}
}

func (w *watch) close() {
	for _, fd := range w.sockets {
		_ = unix.Close(fd)
	}
}

// listen opens the sockets in the namespace of the calling thread. Their buffers are
// as small as they can be: that one overflows is told, too.
func (w *watch) listen() error {
	for _, r := range rings {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, r.protocol)
		if err != nil {
			return err
		}
		w.sockets = append(w.sockets, fd)
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1); err != nil {
			return err
		}
		if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: uint32(r.groups)}); err != nil {
			return err
		}
	}
	return nil
}

// still says whether nothing has changed since the segment was found in order.
func (w *watch) still(seg topology.Segment) bool {
	var word [4]byte
	for _, fd := range w.sockets {
		for {
			_, _, err := unix.Recvfrom(fd, word[:], 0)
			if err == unix.EAGAIN { //nolint:errorlint // a system call's own
				break
			}
			if err != unix.EINTR { //nolint:errorlint // likewise
				w.sum = 0
			}
			if err != nil && err != unix.EINTR && err != unix.ENOBUFS { //nolint:errorlint // likewise
				break
			}
		}
	}
	return w.sum != 0 && w.sum == sum(seg)
}

// found notes whether a look has found the segment in order.
func (w *watch) found(seg topology.Segment, inOrder bool) {
	if w.sum = 0; inOrder {
		w.sum = sum(seg)
	}
}

var seed = maphash.MakeSeed()

// sum tells segments apart in this process. One in 2^64 differs without its sum
// doing so.
func sum(seg topology.Segment) uint64 {
	var h maphash.Hash
	h.SetSeed(seed)
	list := func(all []netip.Prefix) {
		maphash.WriteComparable(&h, len(all))
		for _, p := range all {
			maphash.WriteComparable(&h, p)
		}
	}
	maphash.WriteComparable(&h, seg.VTEP)
	maphash.WriteComparable(&h, [3]int{int(seg.VNI), int(seg.Port), seg.MTU})
	list(seg.Pools)
	list(seg.Subnets)
	for _, p := range seg.Peers {
		maphash.WriteComparable(&h, p.VTEP)
		maphash.WriteComparable(&h, string(p.MAC))
		list(p.Prefixes)
	}
	return h.Sum64() | 1
}
