package integration

import (
	"strings"
	"testing"

	"github.com/particle-net/particle/integration/sockets/attack"
	"github.com/particle-net/particle/integration/sockets/sock"
	"github.com/particle-net/particle/internal/hostpath"
	"github.com/particle-net/particle/internal/lab"
)

// rightful are the attacks that, beside the guard, only a lack of rights over the
// namespace stops, or that no way leads from one tenant to the other.
var rightful = []string{"bind/*-transparent", "spoof/*-transparent*", "sniff/*", "overhear/*", "forge/*", "change/*", "escape/settings", "tenant/*"}

// never are the attacks that succeed nowhere, and why; a case of another name that
// does is what TestAttackWithoutGuard asks for.
var never = []struct {
	cases  []string
	reason string
}{
	{[]string{"bind/sctp4*", "bind/dccp4*", "bind/l2tp4*", "bind/smc4", "bind/rds", "bind/tipc"}, "most kernels lack the protocol"},
	{[]string{"bind/udp4-unspec"}, "the kernel takes AF_UNSPEC for the wildcard alone"},
	{[]string{"private/udp6-unspec"}, "the kernel takes AF_UNSPEC for IPv4, or for no address at all"},
	{[]string{"private/*-victim"}, "whoever binds loopback is there alone"},
	{[]string{"private/*-route"}, "the kernel follows no route that a sender chooses"},
	{[]string{"scan/tcp4", "scan/udp4", "scan/udp-mapped", "scan/tcp6", "scan/udp6"},
		"without the guard there are no private addresses to find; where system calls are answered UDP finds them"},
	{[]string{"catch/udp6-disconnected"}, "a disconnected IPv6 socket hears its former peer alone"},
	{[]string{"spoof/ping4-pktinfo-connected"}, "a connected socket hears no answer to another address"},
	{[]string{"forge/packet", "forge/packet-true"},
		"the kernel takes nothing on lo from an address of its own; TestAttack has forge/packet-true succeed on another link"},
	{[]string{"squat/ping"}, "identifiers are apart where addresses are"},
	{[]string{"unix/netlink"}, "the filter of system calls lets no victim open what it takes, guard or not"},
	{[]string{"seize/*"}, "what could is not in the shared namespace; TestAttack has seize/map succeed from another"},
	{[]string{"link/*"}, "the shared namespace has no link of a container's; TestAttackOnBridge has them succeed"},
	{[]string{"escape/return", "escape/raw", "escape/address", "escape/transparent"}, "root of a user namespace has no rights over a network namespace that is not its own"},
}

// neverSucceeds tells the attacks that nothing but the kernel stops.
func neverSucceeds(name string) bool {
	for _, n := range never {
		if matches(n.cases, name) {
			return true
		}
	}
	return false
}

// bareManner comes to its neighbour's namespace with rights that particle's runtime takes
// away, after the tenants were connected.
var bareManner = manner{name: "bare", program: "sockets", entry: sock.Syscall, unconfined: true, joins: "idle", bare: true, only: rightful,
	// Not --privileged: runc 1.1 wants all rights for that, which not every machine has.
	options: []string{"--runtime", "runc", "--cap-add", "NET_ADMIN", "--cap-add", "NET_RAW", "--cap-add", "SYS_ADMIN", "--security-opt", "systempaths=unconfined"}}

// TestAttackWithoutGuard turns the guard off and the same attacks succeed: it is the
// guard that stops them, and they are attacks.
func TestAttackWithoutGuard(t *testing.T) {
	firstEngine(t, func(t *testing.T, engine string) {
		s := newStage(t, engine, "PARTICLE_GUARD=off")
		succeeded := map[string]bool{}
		for _, name := range []string{"unconfined", "socketcall", "uring", "uring-send", "uring-send-zc", "uring-sendmsg-zc"} {
			m := named(name)
			if !m.runs(t) {
				continue
			}
			t.Run(name, func(t *testing.T) {
				expectSuccess(t, m, s.attack(t, m, m.succeedsUnguarded), succeeded)
			})
		}
		t.Run("to-own", func(t *testing.T) {
			m := named("to-own")
			mustSucceed(t, s.attack(t, m, m.feltUnguarded), m.feltUnguarded)
		})
		s.connectTenants(t)
		// It takes the victim's listener from it, so it comes last.
		t.Run("bare", func(t *testing.T) {
			expectSuccess(t, bareManner, s.attack(t, bareManner, bareManner.succeedsUnguarded), succeeded)
		})
		for _, name := range names() {
			if succeeded[name] == neverSucceeds(name) && !matches(never[0].cases, name) {
				t.Errorf("%s: that it succeeds nowhere is %v, and that it is known not to is %v", name, !succeeded[name], neverSucceeds(name))
			}
		}
	})
}

// names are those of all cases.
func names() []string {
	var out []string
	for _, c := range attack.Cases() {
		out = append(out, c.Name)
	}
	return out
}

// succeedsUnguarded tells what the plain kernel lets happen. A ring's fast open does
// not carry data.
func (m manner) succeedsUnguarded(name string) bool {
	if neverSucceeds(name) || !m.bare && matches(rightful, name) {
		return false
	}
	return !strings.HasPrefix(m.entry, sock.Uring) || !strings.HasSuffix(name, "-fastopen")
}

// feltUnguarded tells of the attacks from a shared namespace what is felt in another.
func (m manner) feltUnguarded(name string) bool {
	return !neverSucceeds(name) && !matches(rightful, name) && !matches([]string{"spoof/*-group-*"}, name) &&
		matches([]string{"bind/*-third", "spoof/*", "lure/*-group", "lure/*-broadcast", "catch/*-group", "catch/*-broadcast"}, name)
}

func expectSuccess(t *testing.T, m manner, results map[string]attack.Result, succeeded map[string]bool) {
	t.Helper()
	for _, r := range sorted(results) {
		succeeded[r.Case] = succeeded[r.Case] || r.Success
		if r.Success != m.succeedsUnguarded(r.Case) {
			t.Errorf("%s: success is %v without the guard: %s %s", r.Case, r.Success, r.Errno, r.Detail)
		}
	}
}

// TestAttackOnBridge has the attacks by links succeed on a network of Docker's own, where
// neighbours are believed.
func TestAttackOnBridge(t *testing.T) {
	firstEngine(t, func(t *testing.T, engine string) {
		s := &stage{bed: newTestBed(t, lab.Options{Engine: engine}), engine: engine}
		s.populate(t, "-d", "bridge")
		m := named("own")
		m.only = []string{"control/tcp*", "link/*", "forge/header", "forge/packet"}
		everything := func(string) bool { return true }
		mustSucceed(t, s.attack(t, m, everything), everything)
	})
}

// mustSucceed is about some of the results.
func mustSucceed(t *testing.T, results map[string]attack.Result, must func(name string) bool) {
	t.Helper()
	for _, r := range sorted(results) {
		if must(r.Case) && !r.Success {
			t.Errorf("%s fails: %s %s", r.Case, r.Errno, r.Detail)
		}
	}
}

// connectTenants puts a link between the two networks, as nobody should.
func (s *stage) connectTenants(t *testing.T) {
	t.Helper()
	status, err := s.status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	path := map[string]string{}
	for _, n := range status.Networks {
		path[n.Name] = hostpath.NamespaceDir + "/" + string(n.ID)
	}
	for _, c := range [][2]string{
		{"red", "link add cable address 02:00:00:00:00:01 type veth peer name cable address 02:00:00:00:00:02 netns " + path["blue"]},
		{"red", "link set cable up"},
		{"blue", "link set cable up"},
		{"red", "address add fd00:77::c8c8/128 dev cable nodad"},
		{"red", "-6 neighbour add fe80::2 lladdr 02:00:00:00:00:02 dev cable"},
		{"blue", "-6 neighbour add fe80::1 lladdr 02:00:00:00:00:01 dev cable"},
		{"red", "route add 10.88.0.0/16 dev cable src 10.77.200.200"},
		{"blue", "route add 10.77.0.0/16 dev cable"},
		{"red", "-6 route add fd00:88::/64 via fe80::2 dev cable"},
		{"blue", "-6 route add fd00:77::/64 via fe80::1 dev cable"},
		// An address such as uplinks have, behind which a tenant is.
		{"blue", "address add 169.254.192.77/32 dev lo"},
		{"red", "route add 169.254.192.77 dev cable src 10.77.200.200"},
	} {
		command := append([]string{"/usr/bin/nsenter", "--net=" + path[c[0]], "ip"}, strings.Fields(c[1])...)
		if out, err := s.host.Exec(t.Context(), command...); err != nil {
			t.Fatalf("ip %s in %s: %v: %s", c[1], c[0], err, out)
		}
	}
}
