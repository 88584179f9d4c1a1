package integration

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/particle-net/particle/integration/sockets/table"
	"github.com/particle-net/particle/internal/lab"
	"github.com/particle-net/particle/internal/netnstest"
)

// differences are the socket calls whose answer is another one in a particle
// network than in a network namespace of the container's own.
var differences = []concession{
	{[]string{"bind/*-127.1.2.3", "connect/*-by-127.1.2.3", "datagram/*-by-127.1.2.3", "datagram/*-by-127.1.2.3-connected"},
		"127.0.0.0/8 beyond 127.0.0.0/24 does not exist"},
	{[]string{"bind/*-fe80::1", "option/pktinfo-other*", "mistake/connect-mapped-v6only"},
		"An address that is not the container's is refused with EADDRNOTAVAIL"},
	{[]string{"conflict/*-any-loopback", "conflict/*-loopback-any", "conflict/*-dual-self6", "conflict/*-v6only-loopback6"},
		"A wildcard and a loopback address, or the own IPv6 address, can be bound at one port"},
	{[]string{"mistake/bind-unspec-any*"}, "A wildcard of the family AF_UNSPEC cannot be bound"},
	{[]string{"connect/*-by-127.0.0.2", "stream/from-any-to-loopback", "stream/from-self-to-loopback", "stream/from-loopback-to-self",
		"stream/from-self6-to-loopback6", "stream/disconnect-reconnect", "datagram/disconnect-reconnect", "datagram/reconnect-*"},
		"A container's connection to itself may be named by its own address"},
	{[]string{"stream/from-any6-*", "peer/tcp6-from-dual", "peer/udp*-autobound-connected"},
		"A socket of both families that was bound to the wildcard cannot connect"},
	{[]string{"stream/device-loopback"}, "A server on the wildcard of the link `lo`"},
	{[]string{"option/freebind-tcp", "option/freebind-udp", "option/freebind6-*"}, "IP_FREEBIND"},
	{[]string{"option/transparent*", "option/mark", "option/priority-7", "family/raw-*", "family/packet*", "family/xdp"},
		"CAP_NET_RAW is taken from every container"},
	{[]string{"family/udplite", "family/sctp", "family/wrong-type", "family/smc"}, "Raw sockets, packet sockets, SCTP, DCCP, UDP-Lite and the like are refused"},
	{[]string{"option/device-eth0", "name/own-address-on-a-link"}, "There is no `eth0`, and no link has"},
	{[]string{"option/pktinfo-loopback*", "option/pktinfo-none-loopback*", "option/pktinfo-none6-loopback*", "option/recverr-loopback*"}, "IP_PKTINFO, IP_RECVERR and `/proc/net` show"},
	{[]string{"group/receive-*", "group/broadcast"}, "Multicast and broadcast reach nobody, the container"},
	{[]string{"group/bound", "group/bound6", "group/bound-tcp", "bind/*-255.255.255.255", "bind/*-239.1.2.3", "bind/*-ff15::1"},
		"A UDP socket can be bound to a group"},
}

// differencesBefore66 are more, where devices cannot have programs; the others of the
// network are met without IPv6 also by a container with a namespace of its own.
var (
	differencesBefore66 = []concession{
		{[]string{"connect/::-by-*", "stream/mptcp6*", "stream/group-dual-*6", "datagram/::-by-*", "datagram/autobind6", "option/pktinfo-self6*",
			"option/pktinfo-none6*", "answer/pktinfo-SELF6*", "answer/pktinfo-::1*", "peer/udp6-from-dual"}, "Servers for both families on the wildcard"},
		{[]string{"ping/SELF6", "ping/PEER*", "ping/bound-any"}, "Pings of other addresses than 127.0.0.1 and ::1"},
	}
	othersBefore66 = []concession{{[]string{"peer/tcp6-dual", "peer/udp6-dual*"}, "Servers for both families on the wildcard"}}
)

// TestSocketTable does the same with sockets in a container of a Docker bridge
// and in one of a particle network, and compares what the kernel says. One with a
// namespace of its own "lacks nothing that is listed above".
func TestSocketTable(t *testing.T) {
	firstEngine(t, func(t *testing.T, engine string) {
		b := newTestBed(t, lab.Options{Engine: engine})
		if err := b.load(t.Context(), socketsImage); err != nil {
			t.Fatal(err)
		}
		b.must(t, "network", "create", "--ipv6", "--subnet", "10.66.0.0/16", "--subnet", "fd00:66::/64", "bridged")
		b.must(t, "network", "create", "-d", "particle", "--ipam-driver", "particle", "--ipv6", "--subnet", "10.77.0.0/16", "--subnet", "fd00:77::/64", "shared")
		bridged := b.table(t, "bridged", "sockets")
		if diff := cmp.Diff(bridged, b.table(t, "bridged", "sockets")); diff != "" {
			t.Errorf("two runs in equal containers differ:\n%s", diff)
		}
		shared, own := differences, []concession(nil)
		if !netnstest.Since(t, 6, 6) {
			shared, own = slices.Concat(differences, differencesBefore66, othersBefore66), othersBefore66
		}
		used := map[string]bool{}
		for _, program := range socketsPrograms(t) {
			compare(t, "shared, "+program, bridged, b.table(t, "shared", program), shared, used)
		}
		documented(t, shared, used)
		compare(t, "own", bridged, b.table(t, "shared", "sockets", "--label", "particle.namespace=own"), own, used)
	})
}

// compare tells what is not as in a container of a bridge and not conceded.
func compare(t *testing.T, where string, bridged, ours []string, allowed []concession, used map[string]bool) {
	t.Helper()
	for i, name := range table.Names() {
		pattern, ok := find(allowed, name)
		if ours[i] == bridged[i] {
			if strings.HasPrefix(bridged[i], "socket ") { // what this kernel has for nobody
				used[pattern] = true
			}
			continue
		}
		used[pattern] = true
		if !ok {
			t.Errorf("%s:\n\tbridge  %s\n\t%s  %s", name, bridged[i], where, ours[i])
		}
	}
}

// table runs the table on a network, beside a victim, and returns its lines in
// order. The victim stays for the next run.
func (b *bed) table(t *testing.T, network, program string, options ...string) []string {
	t.Helper()
	if out, err := b.docker(t.Context(), "inspect", "-f", "{{.State.Running}}", "victim-"+network); err != nil || out != "true" {
		b.victim(t, "victim-"+network, "--network", network)
	}
	four, six, _ := strings.Cut(b.must(t, "inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{.GlobalIPv6Address}}{{end}}", "victim-"+network), " ")
	args := append([]string{"run", "--rm", "--network", network}, options...)
	out := b.must(t, append(args, socketsImage, program, "table", "-peer", four, "-peer6", six)...)
	var lines []string
	for text := range strings.Lines(out) {
		var line table.Line
		if err := json.Unmarshal([]byte(text), &line); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		lines = append(lines, fmt.Sprintf("%s %s %q", line.Result, line.Errno, line.Seen))
	}
	if len(lines) != len(table.Names()) {
		t.Fatalf("%d lines of %d cases", len(lines), len(table.Names()))
	}
	return lines
}
