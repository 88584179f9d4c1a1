package report

import (
	"cmp"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/particle-net/particle/internal/runtimeapi"
	"github.com/particle-net/particle/topology"
)

// shortID is how many digits of an id Docker shows.
const shortID = 12

// Status writes the networks, pools and endpoints of a host; now is what ages
// are counted to.
func Status(w io.Writer, s runtimeapi.Status, now time.Time) error {
	var b strings.Builder
	fmt.Fprintf(&b, "particle %s, up %s, %s\n", cmp.Or(s.Version, "(unknown version)"), age(s.Started, now), underlay(s.Underlay))
	if s.Repairs > 0 {
		fmt.Fprintf(&b, "%s since then: something else changed what belongs to particle\n", plural(s.Repairs, "repair"))
	}
	writeGuard(&b, s.Guard)
	if s.Cluster != nil {
		writeSummary(&b, *s.Cluster, now)
	}
	if len(s.Networks) == 0 {
		b.WriteString("\nNo networks. Create one with: docker network create -d particle --ipam-driver particle NAME\n")
		return write(w, b.String())
	}
	networks := slices.SortedFunc(slices.Values(s.Networks), func(a, b runtimeapi.NetworkStatus) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID))
	})
	b.WriteByte('\n')
	networkTable(networks).write(&b)
	if t := poolTable(networks); len(t.rows) > 0 {
		b.WriteByte('\n')
		t.write(&b)
	}
	if t := blockTable(networks); len(t.rows) > 0 {
		b.WriteByte('\n')
		t.write(&b)
	}
	if t := endpointTable(networks, now); len(t.rows) > 0 {
		b.WriteByte('\n')
		t.write(&b)
	}
	for _, n := range networks {
		if n.Problem != "" {
			fmt.Fprintf(&b, "\n%s: %s\n", word(name(n)), n.Problem)
		}
	}
	return write(w, b.String())
}

// writeGuard tells what is not as it should be.
func writeGuard(b *strings.Builder, g runtimeapi.GuardStatus) {
	if g.Mode == "off" {
		b.WriteString("the address guard is off: containers of one network can use each other's addresses\n")
	}
	if g.Why != "" {
		fmt.Fprintf(b, "the address guard works by system calls (seccomp), and less strictly, because %s\n", g.Why)
	}
	for _, lack := range g.Lacks {
		fmt.Fprintf(b, "the address guard does without a part: %s\n", lack)
	}
	if text := counted(g); text != "" {
		fmt.Fprintf(b, "address guard since the boot: %s\n", text)
	}
	if g.Strangers > 0 {
		fmt.Fprintf(b, "%s denied to processes that are in a network's namespace and in no container\n", plural(int(g.Strangers), "socket"))
	}
	if g.Problem != "" {
		fmt.Fprintf(b, "the address guard cannot be read: %s\n", g.Problem)
	}
}

func underlay(u runtimeapi.UnderlayStatus) string {
	if u.VTEP == "" {
		return "no VTEP: networks stay on this host"
	}
	text := fmt.Sprintf("VTEP %s, port %d, MTU %d", u.VTEP, u.Port, u.MTU)
	if u.Encryption != topology.Plain {
		text += fmt.Sprintf(", encrypted (%s)", u.Encryption)
	}
	return text
}

func networkTable(networks []runtimeapi.NetworkStatus) table {
	t := table{head: []string{"NETWORK", "NAME", "SCOPE", "PEERS", "VNI", "MTU", "UPLINK", "ENDPOINTS", "STATE"}}
	for _, n := range networks {
		uplink, state, peers := cmp.Or(n.Uplink, "-"), "ok", "-"
		if n.Scope == runtimeapi.ScopeCluster {
			peers = strconv.Itoa(n.Peers)
		}
		if n.Internal {
			uplink = "internal"
		}
		if n.Problem != "" {
			state = "problem"
		}
		if n.Guard == "seccomp" {
			state += ", guard by seccomp"
		}
		t.add(short(string(n.ID)), cmp.Or(n.Name, "-"), cmp.Or(n.Scope, runtimeapi.ScopeHost), peers, fmt.Sprint(n.VNI), strconv.Itoa(n.MTU), uplink,
			strconv.Itoa(len(n.Endpoints)), state)
	}
	return t
}

func poolTable(networks []runtimeapi.NetworkStatus) table {
	t := table{head: []string{"POOL OF", "SUBNET", "RANGE", "USED", "FREE"}}
	for _, n := range networks {
		for _, p := range n.Pools {
			used, free := strconv.Itoa(p.Used), cmp.Or(p.Free, "-")
			if p.ID == "" { // Docker's own IPAM keeps the books
				used, free = "-", "-"
			}
			t.add(name(n), prefix(p.Subnet), prefix(p.Range), used, free)
		}
	}
	return t
}

// blockTable lists what of the networks that a cluster shares is this host's.
func blockTable(networks []runtimeapi.NetworkStatus) table {
	t := table{head: []string{"BLOCK OF", "IN CLUSTER", "BLOCK", "USED", "FREE", "STATE"}}
	for _, n := range networks {
		for _, p := range n.Pools {
			for _, b := range p.Blocks {
				t.add(name(n), short(string(n.Shared)), prefix(b.Prefix), strconv.Itoa(b.Used), b.Free, b.State)
			}
		}
	}
	return t
}

func endpointTable(networks []runtimeapi.NetworkStatus, now time.Time) table {
	t := table{head: []string{"CONTAINER", "ID", "NETWORK", "ADDRESS", "PROCESS", "STATE", "DENIED", "AGE"}}
	for _, n := range networks {
		endpoints := slices.SortedFunc(slices.Values(n.Endpoints), func(a, b runtimeapi.EndpointStatus) int {
			return cmp.Or(a.IPv4.Compare(b.IPv4), a.IPv6.Compare(b.IPv6), cmp.Compare(a.ID, b.ID))
		})
		for _, e := range endpoints {
			process := "-"
			if e.Pid > 0 {
				process = strconv.Itoa(e.Pid)
			}
			address, state := addresses(e.IPv4, e.IPv6), e.State
			if e.Own {
				state += ", own namespace"
			}
			if e.Reason != "" {
				state += ": " + e.Reason
			}
			t.add(cmp.Or(e.Name, "-"), cmp.Or(short(string(e.Container)), "-"), name(n), address, process, state, denied(e.Denied), age(e.Since, now))
			for _, g := range e.Guests {
				t.add(cmp.Or(g.Name, "-"), short(string(g.Container)), name(n), address, strconv.Itoa(g.Pid), "guest", denied(g.Denied), age(g.Since, now))
			}
		}
	}
	return t
}

// counted are the guard's verdicts on all containers, of which those that end take
// theirs with them.
func counted(g runtimeapi.GuardStatus) string {
	var parts []string
	for _, c := range []struct {
		n    uint64
		what string
	}{
		{g.Changed.Binds, "binds rewritten"}, {g.Changed.Steered, "steered to IPv4"}, {g.Changed.Pings, "pings rewritten"},
		{g.Denied.Binds, "binds denied"}, {g.Denied.Connects, "connects denied"}, {g.Denied.Sources, "sources denied"},
		{g.Denied.Sockets, "sockets denied"}, {g.Denied.Unix, "abstract names denied"}, {g.Denied.Packets, "packets dropped"},
	} {
		if c.n > 0 {
			parts = append(parts, fmt.Sprint(c.n, " ", c.what))
		}
	}
	return strings.Join(parts, ", ")
}

// denied is how often the guard stepped in.
func denied(d runtimeapi.Denials) string {
	if d.Sum() == 0 {
		return "-"
	}
	return strconv.FormatUint(d.Sum(), 10)
}

func name(n runtimeapi.NetworkStatus) string { return cmp.Or(n.Name, short(string(n.ID))) }

func short(id string) string {
	if len(id) > shortID {
		return id[:shortID]
	}
	return id
}

func prefix(p netip.Prefix) string {
	if !p.IsValid() {
		return "-"
	}
	return p.String()
}

func addresses(list ...netip.Addr) string {
	var out []string
	for _, a := range list {
		if a.IsValid() {
			out = append(out, a.String())
		}
	}
	return cmp.Or(strings.Join(out, ","), "-")
}

// age is a duration in its largest unit, as `docker ps` shows it.
func age(since, now time.Time) string {
	if since.IsZero() {
		return "-"
	}
	d := max(now.Sub(since), 0)
	switch {
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	default:
		return fmt.Sprintf("%dd", int(d.Hours()/24))
	}
}

// table is text in columns as wide as their longest cell.
type table struct {
	head []string
	rows [][]string
}

func (t *table) add(cells ...string) {
	for i := range cells {
		cells[i] = word(cells[i])
	}
	t.rows = append(t.rows, cells)
}

func (t table) write(b *strings.Builder) {
	width := make([]int, len(t.head))
	for _, row := range append([][]string{t.head}, t.rows...) {
		for i, cell := range row {
			width[i] = max(width[i], len(cell))
		}
	}
	for _, row := range append([][]string{t.head}, t.rows...) {
		var line strings.Builder
		for i, cell := range row {
			fmt.Fprintf(&line, "%-*s   ", width[i], cell)
		}
		b.WriteString(strings.TrimRight(line.String(), " ") + "\n")
	}
}

// MTUChecks names the networks of a cluster whose packets the underlay does not carry
// whole any more: its MTU is looked at when a network comes, and may be lowered later.
func MTUChecks(s runtimeapi.Status) []Check {
	vtep, err := netip.ParseAddr(s.Underlay.VTEP)
	if err != nil || s.Underlay.MTU == 0 {
		return nil // no other host is reached anyway, which is told elsewhere
	}
	most := s.Underlay.MTU - topology.Underlay{VTEP: vtep}.Overhead()
	var names []string
	for _, n := range s.Networks {
		if n.Scope == runtimeapi.ScopeCluster && n.MTU > most {
			names = append(names, fmt.Sprintf("%s (%d)", cmp.Or(n.Name, short(string(n.ID))), n.MTU))
		}
	}
	if len(names) == 0 {
		return nil
	}
	return []Check{{Name: "MTU", Grade: Warn,
		Finding: fmt.Sprintf("the underlay's MTU of %d leaves %d, and networks have more: %s; packets between hosts go in pieces, or are lost",
			s.Underlay.MTU, most, strings.Join(names, ", ")),
		Remedy: "raise the MTU of the link that carries " + s.Underlay.VTEP + ", or create the networks anew with `-o mtu=" + strconv.Itoa(most) + "`"}}
}
