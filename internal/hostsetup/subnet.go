package hostsetup

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/particle-net/particle/internal/report"
	"github.com/particle-net/particle/overlay"
)

// subnets looks whether a network's subnet is also somebody else's whom this host reaches.
// Docker compares it with the routes of the host on which the network is made, and a
// cluster has it on others, too.
func subnets(ctx context.Context, req ProbeRequest) report.Check {
	c := report.Check{Name: "subnets", Grade: report.OK}
	return onHost(ctx, c, req.Port, func(host *overlay.Host) report.Check {
		routes, err := host.Routed(ctx)
		if err != nil {
			c.Grade = report.Warn
			c.Finding, c.Remedy = tell(err, "run as root")
			return c
		}
		found := hidden(req, routes)
		if len(found) == 0 {
			c.Finding = "none is of this host's own networks, too"
			return c
		}
		c.Grade, c.Finding = report.Warn, strings.Join(found, "; ")
		c.Remedy = "if containers need it, make the network with another --subnet"
		return c
	})
}

// hidden tells what containers do not reach of the host's networks, because their own has
// the addresses.
func hidden(req ProbeRequest, routes []overlay.Routed) (found []string) {
	for _, name := range slices.Sorted(maps.Keys(req.Subnets)) {
		for _, subnet := range req.Subnets[name] {
			for _, r := range routes {
				if subnet.Overlaps(r.Prefix) {
					found = append(found, fmt.Sprintf("containers of the network %s, which has %s, do not reach %s behind %s", name, subnet, r.Prefix, r.Link))
				}
			}
		}
	}
	return found
}
