package overlay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/topology"
)

// RemoveHostRules deletes what networks share in the host's namespace: our
// nftables tables, the members of the cluster among them, and the accept rules
// given to iptables. Call it when no network is left; those that come later make
// them again. Forwarding stays as it is, for others may rely on it, and so does what
// came with it.
func (h *Host) RemoveHostRules(ctx context.Context) error {
	release, err := h.write(ctx)
	if err != nil {
		return err
	}
	defer release()
	h.filter = filter{}
	err = errors.Join(h.root.removeRules(tableName), h.root.removeRules(filterTable), h.withdrawAccepted(ctx))
	if err != nil {
		return &fault.Error{Op: "remove host rules", Err: err, Fix: "run `nft delete table inet " + tableName + "`, the same for " + filterTable + ", and see `iptables -S` and `ip6tables -S`"}
	}
	return nil
}

// Cleanup removes every trace of the data plane from the host: all networks,
// uplinks, WireGuard, rules and NamespaceDir. Processes still inside a tenant namespace
// keep it, without its devices. It does what it can and tells all that failed.
func Cleanup(ctx context.Context, opts Options) error {
	opts.Ready = 0
	h, err := Open(ctx, opts)
	if err != nil {
		return err
	}
	errs := []error{h.removeNetworks(ctx), h.removeUplinks(ctx), h.RemoveWireGuard(ctx), h.RemoveHostRules(ctx)}
	errs = append(errs, h.Close())
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := os.Remove(opts.NamespaceDir); err != nil {
		return &fault.Error{Op: "remove namespace directory", On: opts.NamespaceDir, Err: err, Fix: "remove what is left in it"}
	}
	return nil
}

// removeNetworks removes networks by their files and their gateways', bound or not.
func (h *Host) removeNetworks(ctx context.Context) error {
	entries, err := os.ReadDir(h.opts.NamespaceDir)
	if err != nil {
		return &fault.Error{Op: "list networks", On: h.opts.NamespaceDir, Err: err, Fix: "check that it is readable"}
	}
	var ids []topology.NetworkID
	for _, entry := range entries {
		if id, err := topology.ParseNetworkID(strings.TrimSuffix(entry.Name(), gatewaySuffix)); err == nil {
			ids = append(ids, id)
		}
	}
	var errs []error
	for _, id := range slices.Compact(ids) { // entries are in order of their names
		errs = append(errs, h.Remove(ctx, id))
	}
	return errors.Join(errs...)
}

// removeUplinks deletes host's ends whose networks are not known any more.
func (h *Host) removeUplinks(ctx context.Context) error {
	release, err := h.write(ctx)
	if err != nil {
		return err
	}
	defer release()
	links, err := listed(h.root.route.LinkList)
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	var errs []error
	for _, l := range links {
		name := l.Attrs().Name
		_, bad := topology.ParseNetworkID(strings.TrimPrefix(name, uplinkPrefix))
		if l.Type() != (&netlink.Veth{}).Type() || !strings.HasPrefix(name, uplinkPrefix) || bad != nil {
			continue
		}
		_, err := h.root.remove(name)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
