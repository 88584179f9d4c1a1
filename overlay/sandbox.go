package overlay

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/topology"
)

// SameNamespace reports whether path, such as a sandbox key of Docker's or
// /proc/PID/ns/net, is the network's tenant namespace. Causes: ErrNoNetwork;
// fs.ErrNotExist when path is missing.
func (h *Host) SameNamespace(id topology.NetworkID, path string) (bool, error) {
	own, err := h.path(id)
	if err != nil {
		return false, err
	}
	if bound, err := isBound(own); err != nil || !bound {
		return false, &fault.Error{Op: "compare namespace", On: path, Err: errors.Join(ErrNoNetwork, err),
			Fix: "create network " + id.Short() + " again"}
	}
	same, err := sameNamespace(own, path)
	if err != nil {
		return false, &fault.Error{Op: "compare namespace", On: path, Err: err, Fix: "start the container again"}
	}
	return same, nil
}

// Expose binds the tenant namespace on target, Docker's sandbox key, where
// Docker looks for a container's namespace after it was restarted. Whatever was
// bound there before is replaced. It touches the mount table alone and waits
// for no other call. Cause: ErrNoNetwork.
func (h *Host) Expose(id topology.NetworkID, target string) error {
	own, err := h.path(id)
	if err != nil {
		return err
	}
	err = ensureBound(own)
	if err == nil {
		err = expose(own, target)
	}
	if err != nil {
		return &fault.Error{Op: "expose namespace", On: target, Err: err,
			Fix: "check that the plugin sees the host's /run/docker"}
	}
	return nil
}

func expose(own, target string) error {
	err := bindNew(own, target)
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	if same, err := sameNamespace(own, target); err != nil || same {
		return err
	}
	if err := unbind(target); err != nil {
		return err
	}
	return bindNew(own, target)
}

// bindNew binds on a target that does not exist yet; fs.ErrExist if it does.
func bindNew(own, target string) error {
	fd, err := unix.Open(target, unix.O_CREAT|unix.O_EXCL|unix.O_RDONLY|unix.O_CLOEXEC, 0o444)
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
			return err
		}
		fd, err = unix.Open(target, unix.O_CREAT|unix.O_EXCL|unix.O_RDONLY|unix.O_CLOEXEC, 0o444)
	}
	if err != nil {
		return &fs.PathError{Op: "create", Path: target, Err: err}
	}
	_ = unix.Close(fd)
	return mount(own, target)
}

// Conceal undoes Expose; gone is success. Processes in the namespace are not
// affected.
func (h *Host) Conceal(target string) error {
	if err := unbind(target); err != nil {
		return &fault.Error{Op: "conceal namespace", On: target, Err: err, Fix: "unmount it with `umount -l`"}
	}
	return nil
}

// Listen opens a stream listener inside the tenant namespace; network is tcp,
// tcp4 or tcp6, address a literal "IP:port". Cause: ErrNoNetwork.
func (h *Host) Listen(ctx context.Context, id topology.NetworkID, network, address string) (net.Listener, error) {
	var listener net.Listener
	err := h.listen(id, address, func() (err error) {
		listener, err = new(net.ListenConfig).Listen(ctx, network, address)
		return err
	})
	return listener, err
}

// ListenPacket is Listen for udp, udp4 and udp6.
func (h *Host) ListenPacket(ctx context.Context, id topology.NetworkID, network, address string) (net.PacketConn, error) {
	var conn net.PacketConn
	err := h.listen(id, address, func() (err error) {
		conn, err = new(net.ListenConfig).ListenPacket(ctx, network, address)
		return err
	})
	return conn, err
}

// listen runs open inside. The address must be literal: a name would be looked
// up by other goroutines, hence in another namespace.
func (h *Host) listen(id topology.NetworkID, address string, open func() error) error {
	if _, err := netip.ParseAddrPort(address); err != nil {
		return &fault.Error{Op: "listen", On: address, Err: err, Fix: "give a literal IP:port"}
	}
	path, err := h.path(id)
	if err != nil {
		return err
	}
	err = ensureBound(path)
	if err == nil {
		err = within(path, open)
	}
	if err != nil {
		return &fault.Error{Op: "listen", On: address, Err: fmt.Errorf("network %s: %w", id.Short(), err),
			Fix: "see which program of the network has the address"}
	}
	return nil
}

// Within runs fn on a thread inside the tenant namespace and gives its error as it
// is. Goroutines that fn starts are outside. Cause: ErrNoNetwork.
func (h *Host) Within(id topology.NetworkID, fn func() error) error {
	path, err := h.path(id)
	if err != nil {
		return err
	}
	err = ensureBound(path)
	if err != nil {
		return &fault.Error{Op: "enter namespace", On: id.Short(), Err: err,
			Fix: "create the network, or restart the plugin if Docker lists it"}
	}
	return within(path, fn)
}

// ensureBound fails for a network's file on which no namespace is bound.
func ensureBound(path string) error {
	bound, err := isBound(path)
	if err == nil && !bound {
		err = ErrNoNetwork
	}
	return err
}

func within(path string, fn func() error) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	return enter(file, fn)
}
