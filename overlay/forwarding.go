package overlay

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/topology"
)

const forwarding4 = "net/ipv4/ip_forward"

// ensureForwarding lets the host forward IPv4 for the uplink. Where forwarding is off, the
// host is to be no router for others, as of IPv6.
func (h *Host) ensureForwarding(ctx context.Context, id topology.NetworkID) (changed bool, err error) {
	wanted := []sysctl{
		{forwarding4, "1"},
		{"net/ipv4/conf/" + hostEnd(id) + "/forwarding", "1"},
	}
	var on string
	err = enter(h.root.file, func() (err error) {
		if on, err = readSysctl(forwarding4); err == nil && on != "0" {
			changed, err = settle(wanted)
		}
		return err
	})
	if err != nil || on != "0" {
		return changed, err
	}
	if err := h.routeForNobody(ctx, iptables, forwarding4); err != nil {
		return false, err
	}
	err = enter(h.root.file, func() (err error) {
		changed, err = settle(wanted)
		return err
	})
	return changed, err
}

// routeForNobody has a program's FORWARD chain drop what no rule accepts, before forwarding
// is turned on.
func (h *Host) routeForNobody(ctx context.Context, program, setting string) error {
	_, err := h.iptables(ctx, program, "-P", forwardChain, "DROP")
	if err == nil || errors.Is(err, errNoIptables) {
		return nil
	}
	return &fault.Error{Op: "keep the host from routing for others", On: forwardChain, Err: err,
		Fix: "run `" + program + " -S` on the host and mend what it reports, or turn " + strings.ReplaceAll(setting, "/", ".") + " on yourself"}
}

const forwarding6 = "net/ipv6/conf/all/forwarding"

// ensureForwarding6 lets the host forward IPv6. The kernel knows only one switch
// for all links (force_forwarding of Linux 6.17 would be needed on every link
// that answers may come by), and it does more than that. So where it is off:
//
//   - Links that take router advertisements go on to, by accept_ra=2. With 1 a
//     router ignores them, and the kernel removes the default routes it has from
//     them as it becomes one (net/ipv6/route.c, rt6_purge_dflt_routers).
//   - The host is to be no router for others. As dockerd does when it turns
//     forwarding on, the policy of ip6tables' FORWARD chain becomes DROP.
//
// Where it is on, somebody else has thought about both.
func (h *Host) ensureForwarding6(ctx context.Context) (changed bool, err error) {
	var on string
	err = enter(h.root.file, func() (err error) {
		if on, err = readSysctl(forwarding6); err == nil && on == "0" {
			err = keepAdvertisements()
		}
		return err
	})
	if err != nil || on != "0" {
		return false, err
	}
	if err := h.routeForNobody(ctx, ip6tables, forwarding6); err != nil {
		return false, err
	}
	return true, enter(h.root.file, func() error { return writeSysctl(forwarding6, "1") })
}

// keepAdvertisements makes the links of the calling thread's namespace that
// take router advertisements do so as a router's, too. It leaves alone what new
// links will have: they may be containers'.
func keepAdvertisements() error {
	const links = "net/ipv6/conf"
	entries, err := os.ReadDir(sysctlRoot + links)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if name := e.Name(); name == "all" || name == "default" || name == "lo" || strings.HasPrefix(name, uplinkPrefix) {
			continue
		}
		setting := links + "/" + e.Name() + "/accept_ra"
		have, err := readSysctl(setting)
		if err == nil && have == "1" {
			err = writeSysctl(setting, "2")
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // a link that has gone meanwhile
			return fmt.Errorf("keep router advertisements of %s: %w", e.Name(), err)
		}
	}
	return nil
}
