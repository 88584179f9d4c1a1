package dns

import (
	"errors"
	"io"
	"net/netip"
	"slices"
	"strings"

	"github.com/particle-net/particle/internal/fault"
)

// maxResolvConf is far above any real file, in bytes. C libraries read three
// name servers and six search domains.
const maxResolvConf = 1 << 20

// ErrTooLarge tells of a resolv.conf that is none.
var ErrTooLarge = errors.New("file is larger than 1 MiB")

// Config is what a resolv.conf(5) says.
type Config struct {
	Servers []netip.Addr // in the file's order; an IPv6 address may have a zone
	Search  []string     // of the last search or domain line
	Options []string     // of all options lines, such as "ndots:1"
}

// ParseResolvConf reads a resolv.conf(5). Like the C library it passes over
// whatever it does not understand; it fails only if r does, or with
// ErrTooLarge.
func ParseResolvConf(r io.Reader) (Config, error) {
	text, err := io.ReadAll(io.LimitReader(r, maxResolvConf+1))
	if err != nil {
		return Config{}, &fault.Error{Op: "read", On: "resolv.conf", Err: err}
	}
	if len(text) > maxResolvConf {
		return Config{}, &fault.Error{Op: "read", On: "resolv.conf", Err: ErrTooLarge,
			Fix: "put a resolv.conf(5) with nameserver lines in its place"}
	}
	var c Config
	for line := range strings.Lines(string(text)) {
		c.read(fields(line))
	}
	return c, nil
}

// fields splits a line at blanks, up to a comment.
func fields(line string) []string {
	f := strings.Fields(line)
	comment := func(s string) bool { return s[0] == '#' || s[0] == ';' }
	if i := slices.IndexFunc(f, comment); i >= 0 {
		f = f[:i]
	}
	return f
}

// read takes in one line.
func (c *Config) read(line []string) {
	if len(line) < 2 {
		return
	}
	switch line[0] {
	case "nameserver":
		if addr, err := netip.ParseAddr(line[1]); err == nil {
			c.Servers = append(c.Servers, addr.Unmap())
		}
	case "domain": // one name; replaces search as search replaces it
		c.Search = []string{line[1]}
	case "search":
		c.Search = line[1:]
	case "options":
		c.Options = append(c.Options, line[1:]...)
	}
}

// Loopback gives the servers that only the host itself can reach, for which a
// Forwarder is needed: those on its loopback, the unspecified address, with
// which Linux reaches the loopback too, and link-local IPv6 addresses, whose
// zone names a link of the host.
func (c Config) Loopback() []netip.Addr {
	return slices.DeleteFunc(slices.Clone(c.Servers), func(a netip.Addr) bool { return !hostOnly(a) })
}

// Reachable gives the servers that a container can reach by routing.
func (c Config) Reachable() []netip.Addr {
	return slices.DeleteFunc(slices.Clone(c.Servers), hostOnly)
}

func hostOnly(a netip.Addr) bool {
	return a.IsLoopback() || a.IsUnspecified() || a.Zone() != "" || a.Is6() && a.IsLinkLocalUnicast()
}
