package overlay

import (
	"fmt"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
)

// ensureHostRules makes the table in the host's namespace, after a look at the
// host's bridges if the last was too long ago.
func (h *Host) ensureHostRules() (changed bool, err error) {
	if h.surveyed.IsZero() || time.Since(h.surveyed) >= h.opts.AcceptEvery {
		if h.outward, err = h.outwardBridges(); err != nil {
			return false, err
		}
		h.surveyed = time.Now()
	}
	return h.root.ensureRules(hostRules(h.opts.Port, h.outward))
}

// outwardBridges are the names, in order, of the bridges by which the host
// reaches other machines: those that a default route uses, or that have a port
// other than the ends of containers and virtual machines. All others, Docker's
// among them whatever their names, connect what runs on this host.
func (h *Host) outwardBridges() ([]string, error) {
	links, err := listed(h.root.route.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	exits, err := h.exits()
	if err != nil {
		return nil, err
	}
	inner := []string{(&netlink.Veth{}).Type(), (&netlink.Tuntap{}).Type(), (&netlink.Dummy{}).Type()}
	var names []string
	for _, l := range links {
		index := l.Attrs().Index
		outward := slices.ContainsFunc(exits, func(e exit) bool { return e.link == index }) ||
			slices.ContainsFunc(links, func(port netlink.Link) bool {
				return port.Attrs().MasterIndex == index && !slices.Contains(inner, port.Type())
			})
		if l.Type() == bridgeKind && outward {
			names = append(names, l.Attrs().Name)
		}
	}
	slices.Sort(names)
	return names, nil
}
