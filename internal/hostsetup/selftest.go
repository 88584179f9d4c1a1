package hostsetup

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/particle-net/particle/internal/fault"
)

// SelftestResult is what a container knows of its own address.
type SelftestResult struct {
	Addrs []netip.Addr `json:"addrs"`
}

// Selftest runs in a container on a particle network: it reads the container's
// addresses where every program would, from the hosts file, takes a TCP and a
// UDP port on each, writes the result and stays until ctx or the input ends.
// Without membership of the tenant namespace no port can be taken, since the
// addresses are not there.
func Selftest(ctx context.Context, in io.Reader, out io.Writer) error {
	hostname, err := os.Hostname()
	if err != nil {
		return &fault.Error{Op: "read own host name", Err: err}
	}
	file, err := os.Open("/etc/hosts")
	if err != nil {
		return &fault.Error{Op: "read own address", Err: err}
	}
	addrs, err := ownAddrs(file, hostname)
	if err := errors.Join(err, file.Close()); err != nil {
		return &fault.Error{Op: "read own address", On: "/etc/hosts", Err: err}
	}
	for _, addr := range addrs {
		release, err := takePorts(ctx, addr)
		if err != nil {
			return &fault.Error{Op: "use own address", On: addr.String(), Err: err,
				Fix: "see `particle doctor`; the container was not put into its network's namespace"}
		}
		defer release()
	}
	if err := json.NewEncoder(out).Encode(SelftestResult{Addrs: addrs}); err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, in)
		close(ended)
	}()
	select {
	case <-ctx.Done():
	case <-ended:
	}
	return nil
}

func takePorts(ctx context.Context, addr netip.Addr) (release func(), err error) {
	var config net.ListenConfig
	at := netip.AddrPortFrom(addr, 0).String()
	stream, err := config.Listen(ctx, "tcp", at)
	if err != nil {
		return nil, err
	}
	packets, err := config.ListenPacket(ctx, "udp", at)
	if err != nil {
		return nil, errors.Join(err, stream.Close())
	}
	return func() { _ = errors.Join(stream.Close(), packets.Close()) }, nil
}

// ownAddrs finds the addresses that a hosts file gives to a name.
func ownAddrs(hosts io.Reader, name string) ([]netip.Addr, error) {
	var addrs []netip.Addr
	lines := bufio.NewScanner(hosts)
	for lines.Scan() {
		line, _, _ := strings.Cut(lines.Text(), "#")
		fields := strings.Fields(line)
		if len(fields) < 2 || !slices.Contains(fields[1:], name) {
			continue
		}
		addr, err := netip.ParseAddr(fields[0])
		if err != nil {
			return nil, err
		}
		if !slices.Contains(addrs, addr) {
			addrs = append(addrs, addr)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if len(addrs) == 0 {
		return nil, fmt.Errorf("no line names %s", name)
	}
	return addrs, nil
}
