package shim

import (
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/particle-net/particle/internal/dockerdir"
	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/internal/runtimeapi"
)

// resolvConf is a resolv.conf(5) without its comments.
type resolvConf struct {
	servers []string // as they are written, in order
	rest    []string // search, domain, options and other lines, in order
}

func parseResolvConf(text string) resolvConf {
	var r resolvConf
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0][0] == '#' || fields[0][0] == ';' {
			continue
		}
		into, entry := &r.rest, strings.Join(fields, " ")
		if fields[0] == "nameserver" {
			if len(fields) < 2 {
				continue
			}
			into, entry = &r.servers, fields[1]
		}
		if !slices.Contains(*into, entry) {
			*into = append(*into, entry)
		}
	}
	return r
}

func (r resolvConf) text() []byte {
	var out []byte
	for _, server := range r.servers {
		out = append(out, "nameserver "+server+"\n"...)
	}
	for _, line := range r.rest {
		out = append(out, line+"\n"...)
	}
	return out
}

// isLocal is true for a server that only the host itself reaches. The C library
// takes the unspecified address for loopback.
func isLocal(server string) bool {
	addr, err := netip.ParseAddr(server)
	return err == nil && (addr.IsLoopback() || addr.IsUnspecified())
}

// dockerDefaults is what Docker <= 25 writes when the host's file names no
// server that a container could reach (libnetwork's resolvconf package); the
// IPv6 ones for networks with IPv6.
var dockerDefaults = []string{"8.8.8.8", "8.8.4.4", "2001:4860:4860::8888", "2001:4860:4860::8844"}

// isFallback is true when the servers are not anybody's choice but what Docker
// put in place of the host's own.
func isFallback(servers, host []string) bool {
	return slices.Contains(servers, dockerDefaults[0]) && slices.Contains(servers, dockerDefaults[1]) &&
		!slices.ContainsFunc(servers, func(s string) bool { return !slices.Contains(dockerDefaults, s) }) &&
		!slices.ContainsFunc(host, func(s string) bool { return !isLocal(s) })
}

// tenantResolvConf makes the container's resolv.conf of the one Docker made,
// which has 127.0.0.11 or the host's loopback servers in it: neither answers
// in a tenant namespace. One that the user has chosen is the container's own.
func tenantResolvConf(docker, host resolvConf, chosen []string, place runtimeapi.Placement) resolvConf {
	out := docker
	out.servers = slices.DeleteFunc(slices.Clone(docker.servers), func(s string) bool { return isLocal(s) && !slices.Contains(chosen, s) })
	if len(chosen) == 0 && (place.Internal || isFallback(out.servers, host.servers) && place.Resolver.IsValid()) {
		out.servers = nil // none reaches out of an internal network
	}
	if len(out.servers) == 0 && place.Resolver.IsValid() {
		out.servers = []string{place.Resolver.String()}
	}
	return out
}

// writeResolvConf writes the file that is shown to the container in place of
// Docker's. Docker's own stays as it is: Docker compares and edits it.
func (h *Host) writeResolvConf(path, source string, c dockerdir.Container, place runtimeapi.Placement) error {
	docker, err := os.ReadFile(source)
	if err != nil {
		return &fault.Error{Op: "start container", On: c.Label(), Err: err}
	}
	host, err := os.ReadFile(h.ResolvConf)
	if err != nil {
		host = nil // a host without one has no servers, as Docker sees it
	}
	conf := tenantResolvConf(parseResolvConf(string(docker)), parseResolvConf(string(host)), c.Host.DNS, place)
	err = os.MkdirAll(h.Resolv, 0o755)
	if err == nil {
		err = writeFile(path, conf.text(), 0o644)
	}
	if err != nil {
		return &fault.Error{Op: "start container", On: c.Label(), Err: err}
	}
	return nil
}
