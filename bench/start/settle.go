package main

import (
	"context"
	"fmt"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/internal/fault"
)

// settle waits until the kernel has destroyed the network namespaces of containers
// removed before: it does so some time after their removal, one after the other
// and holding the lock that every change of a network needs, so that the next turn
// would pay for the one before it. The kernel keeps the order (cleanup_net in
// net/core/net_namespace.c): once a namespace given up now is gone, all are.
func settle(ctx context.Context) error {
	result := make(chan error, 1)
	go func() {
		// Never unlocked: the thread has left its network namespace and ends here.
		runtime.LockOSThread()
		result <- awaitWitness(ctx)
	}()
	if err := <-result; err != nil {
		return &fault.Error{Op: "wait for the kernel to destroy namespaces", Err: err}
	}
	return nil
}

// awaitWitness makes two namespaces joined by a veth pair, gives the second up, and
// waits until the pair goes with it.
func awaitWitness(ctx context.Context) error {
	watch, err := enterNewNamespace()
	if err != nil {
		return err
	}
	defer watch.Close()
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	updates, done := make(chan netlink.LinkUpdate), make(chan struct{})
	defer close(done)
	if err := netlink.LinkSubscribe(updates, done); err != nil {
		return err
	}
	last, err := enterNewNamespace()
	if err != nil {
		return err
	}
	const name = "witness"
	err = h.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: "last", PeerNamespace: netlink.NsFd(last.Fd())})
	last.Close()
	if err == nil {
		err = unix.Setns(int(watch.Fd()), unix.CLONE_NEWNET)
	}
	if err != nil {
		return err
	}
	for {
		select {
		case u, open := <-updates:
			if !open {
				return fmt.Errorf("the kernel's messages ended")
			}
			if u.Header.Type == unix.RTM_DELLINK && u.Attrs().Name == name {
				return nil
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// enterNewNamespace moves the calling thread into a new network namespace.
func enterNewNamespace() (*os.File, error) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return nil, fmt.Errorf("make a network namespace: %w", err)
	}
	return os.Open("/proc/thread-self/ns/net")
}
