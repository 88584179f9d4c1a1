package dockerdir

import (
	"net/netip"
	"os"
	"strings"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/internal/runtimeapi"
)

// ParseHosts reads the lines of a hosts file (hosts(5)) in order. Comments and
// lines that do not start with an address are left out, as the C library does.
func ParseHosts(text string) []runtimeapi.HostLine {
	var lines []runtimeapi.HostLine
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		fields := strings.Fields(line)
		if len(fields) == 0 {
			continue
		}
		addr, err := netip.ParseAddr(fields[0])
		if err != nil {
			continue
		}
		lines = append(lines, runtimeapi.HostLine{Addr: addr, Names: fields[1:]})
	}
	return lines
}

// ReadHosts reads a hosts file.
func ReadHosts(path string) ([]runtimeapi.HostLine, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, &fault.Error{Op: "read hosts file", On: path, Err: err}
	}
	return ParseHosts(string(raw)), nil
}
