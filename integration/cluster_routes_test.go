package integration

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/particle-net/particle/internal/hostpath"
	"github.com/particle-net/particle/internal/runtimeapi"
)

// inTenant is a command in the network's namespace on the host.
func (b *bed) inTenant(ctx context.Context, network string, argv ...string) ([]string, error) {
	n, err := b.network(ctx, network)
	return append([]string{"/usr/bin/nsenter", "--net=" + hostpath.NamespaceDir + "/" + string(n.ID)}, argv...), err
}

// routes are what the host's kernel has of a network's other hosts: who answers
// for which addresses.
func (b *bed) routes(ctx context.Context, network string) (map[netip.Prefix]netip.Addr, error) {
	all := map[netip.Prefix]netip.Addr{}
	for _, family := range []string{"-4", "-6"} {
		command, err := b.inTenant(ctx, network, "ip", "-j", family, "route", "show", "table", "all", "dev", "vx0")
		if err != nil {
			return nil, err
		}
		out, err := b.host.Exec(ctx, command...)
		if err != nil {
			return nil, err
		}
		var found []struct {
			Dst      string
			Protocol string
			Metric   uint32
		}
		if err := json.Unmarshal([]byte(out), &found); err != nil {
			return nil, fmt.Errorf("%s: %w", out, err)
		}
		for _, r := range found {
			if r.Protocol == "kernel" {
				continue
			}
			p, err := prefixOf(r.Dst)
			if err != nil {
				return nil, err
			}
			// Each host's routes have the number of its tunnel address as metric.
			all[p] = netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, r.Metric)))
		}
	}
	return all, nil
}

// prefixOf reads what ip writes.
func prefixOf(text string) (netip.Prefix, error) {
	if strings.Contains(text, "/") {
		return netip.ParsePrefix(text)
	}
	a, err := netip.ParseAddr(text)
	return netip.PrefixFrom(a, a.BitLen()), err
}

// agree says whether the routes of these hosts are what all hosts have claimed of
// the network, and no two have claimed the same. A route within late may still be there
// though nobody has claimed it any more.
func agree(ctx context.Context, network string, hosts, all []*bed, late ...netip.Prefix) error {
	claims := map[netip.Prefix]netip.Addr{}
	for _, b := range all {
		n, err := b.network(ctx, network)
		if err != nil {
			return err
		}
		for _, pool := range n.Pools {
			for _, block := range pool.Blocks {
				if block.State == runtimeapi.BlockLeaving {
					continue
				}
				if other, taken := claims[block.Prefix]; taken {
					return fmt.Errorf("%s and %s both have %s", other, b.host.Addr4(), block.Prefix)
				}
				claims[block.Prefix] = b.host.Addr4()
			}
		}
	}
	var errs []error
	for _, b := range hosts {
		want := maps.Clone(claims)
		maps.DeleteFunc(want, func(_ netip.Prefix, a netip.Addr) bool { return a == b.host.Addr4() })
		got, err := b.routes(ctx, network)
		maps.DeleteFunc(got, func(p netip.Prefix, _ netip.Addr) bool {
			_, claimed := want[p]
			return !claimed && slices.ContainsFunc(late, p.Overlaps)
		})
		if err == nil && !maps.Equal(got, want) {
			err = fmt.Errorf("routes of %s: %v, want %v", b.host.Name(), got, want)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// routeLog is the service that writes down what becomes of a network's routes, and of
// what they lead by.
const routeLog = "routes"

// logRoutes begins to write down what becomes of the network's routes, neighbours and
// FDB entries.
func (b *bed) logRoutes(ctx context.Context, network string) error {
	command, err := b.inTenant(ctx, network, "ip", "-ts", "monitor", "route", "neigh")
	if err != nil {
		return err
	}
	return b.host.StartService(ctx, routeLog, command...)
}

// lostRoute is a route that was taken away, and when.
type lostRoute struct {
	to netip.Prefix
	at time.Time
}

// lostRoutes lists the routes that were taken away since logRoutes, and what the kernel
// said of neighbours and FDB entries that were. Those that it makes by itself for
// multicast are no loss.
func (b *bed) lostRoutes() (lost []lostRoute, neighbours []string, err error) {
	log, err := os.Open(b.host.ServiceLog(routeLog))
	if err != nil {
		return nil, nil, err
	}
	defer log.Close()
	lines := bufio.NewScanner(log)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 3 || fields[1] != "Deleted" || !slices.Contains(fields, "vx0") {
			continue
		}
		if !slices.Contains(fields, "metric") {
			if !strings.HasPrefix(fields[2], "ff02:") {
				neighbours = append(neighbours, lines.Text())
			}
			continue
		}
		at, err := time.ParseInLocation("[2006-01-02T15:04:05.999999]", fields[0], time.Local)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", lines.Text(), err)
		}
		p, err := prefixOf(fields[2])
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", lines.Text(), err)
		}
		lost = append(lost, lostRoute{p, at})
	}
	return lost, neighbours, lines.Err()
}
