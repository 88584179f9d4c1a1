package overlay

import (
	"fmt"
	"hash/maphash"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/topology"
)

// watch hears whether anything has changed in a namespace of a network's. To read all
// that a network of a thousand hosts holds takes longer than to program one of them,
// and it is to be known every few seconds for each network. The kernel tells it to
// sockets that ask; what it tells is not read, but that it does.
//
// A socket keeps its namespace alive, so the watch ends with the network.
type watch struct {
	of      unix.Stat_t // the namespace's file
	sockets []int
	heard   uint64 // grows when something has changed, and is another for each watch
	inOrder sight
}

// sight is what a look found in order, and what was heard until then of all that it
// looked at; zero if nothing was.
type sight struct{ heard, sum uint64 }

// rings are what a watch listens to: links, addresses, neighbours with FDB entries,
// routes, rules and what is forwarded of both IP versions; the firewall.
var rings = []struct{ protocol, groups int }{
	{unix.NETLINK_ROUTE, group(unix.RTNLGRP_LINK) | group(unix.RTNLGRP_NEIGH) |
		group(unix.RTNLGRP_IPV4_IFADDR) | group(unix.RTNLGRP_IPV4_ROUTE) | group(unix.RTNLGRP_IPV4_RULE) | group(unix.RTNLGRP_IPV4_NETCONF) |
		group(unix.RTNLGRP_IPV6_IFADDR) | group(unix.RTNLGRP_IPV6_ROUTE) | group(unix.RTNLGRP_IPV6_RULE) | group(unix.RTNLGRP_IPV6_NETCONF)},
	{unix.NETLINK_NETFILTER, group(unix.NFNLGRP_NFTABLES)},
}

func group(n int) int { return 1 << (n - 1) }

// watchOf gives the watch of the namespace that is bound on a path, begun anew if
// there is none of this one.
func (h *Host) watchOf(path string, ns *namespace) (*watch, error) {
	var of unix.Stat_t
	if err := unix.Fstat(ns.fd(), &of); err != nil {
		return nil, &os.PathError{Op: "stat", Path: ns.file.Name(), Err: err}
	}
	if w := h.watches[path]; w != nil {
		if w.of.Dev == of.Dev && w.of.Ino == of.Ino {
			return w, nil
		}
		h.unwatch(path)
	}
	w := &watch{of: of, heard: uint64(time.Now().UnixNano())}
	if err := enter(ns.file, w.listen); err != nil {
		w.close()
		return nil, fmt.Errorf("listen for changes: %w", err)
	}
	h.watches[path] = w
	return w, nil
}

// unwatch ends the watch of a path; none is fine.
func (h *Host) unwatch(path string) {
	if w := h.watches[path]; w != nil {
		w.close()
		delete(h.watches, path)
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
		fd, err := listenTo(r.protocol, r.groups)
		if err != nil {
			return err
		}
		w.sockets = append(w.sockets, fd)
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1); err != nil {
			return err
		}
	}
	return nil
}

// listenTo opens a socket of the calling thread's namespace that hears groups, and does
// not block.
func listenTo(protocol, groups int) (fd int, err error) {
	fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
	if err != nil {
		return 0, err
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: uint32(groups)}); err != nil {
		_ = unix.Close(fd)
		return 0, err
	}
	return fd, nil
}

// hear tells the same as before if nothing has changed since.
func (w *watch) hear() uint64 {
	var word [4]byte
	for _, fd := range w.sockets {
		for {
			_, _, err := unix.Recvfrom(fd, word[:], 0)
			if err == unix.EAGAIN { //nolint:errorlint // a system call's own
				break
			}
			if err != unix.EINTR { //nolint:errorlint // likewise
				w.heard++
			}
			if err != nil && err != unix.EINTR && err != unix.ENOBUFS { //nolint:errorlint // likewise
				break
			}
		}
	}
	return w.heard
}

// note keeps what a look has found in order, or that it has not.
func (w *watch) note(s sight, inOrder bool) {
	if w.inOrder = s; !inOrder {
		w.inOrder = sight{}
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
		maphash.WriteComparable(&h, netip.AddrPortFrom(p.VTEP, p.Port))
		maphash.WriteComparable(&h, string(p.MAC))
		list(p.Prefixes)
	}
	return h.Sum64()
}
