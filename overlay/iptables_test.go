package overlay_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// dockerFirewall is what dockerd does to the host's iptables.
func dockerFirewall(m *machine) {
	for _, a := range versions() {
		m.Run(a.iptables, "-P", "FORWARD", "DROP")
		m.Run(a.iptables, "-N", "DOCKER-USER")
		m.Run(a.iptables, "-A", "DOCKER-USER", "-j", "RETURN")
		m.Run(a.iptables, "-I", "FORWARD", "-j", "DOCKER-USER")
	}
}

// "Where Docker's FORWARD chain drops, accepting rules stand in it".
func TestForwardPolicyOfDocker(t *testing.T) {
	for name, c := range map[string]struct {
		setup func(*machine)
		root  string
		chain string
	}{
		"with DOCKER-USER": {dockerFirewall, "", "FORWARD"},
		"policy alone": {func(m *machine) {
			m.Run("iptables", "-P", "FORWARD", "DROP")
			m.Run("ip6tables", "-P", "FORWARD", "DROP")
		}, "", "FORWARD"},
		"in the host's root":  {dockerFirewall, "/proc/self/root", "FORWARD"},
		"no iptables to find": {func(*machine) {}, "/proc/sys", ""},
	} {
		t.Run(name, func(t *testing.T) {
			eachVersion(t, func(t *testing.T, a addressing) {
				m, internet := routed(t)
				m.opts.HostRoot = c.root
				m.restart()
				c.setup(m)
				before := m.Run(a.iptables, "-S")
				serve(t, listenTCP(t, internet, at(a.outside, 80)), "internet")
				ns := m.tenantWithUplink(1)
				if got, err := ask(ns, a.container, at(a.outside, 80)); err != nil {
					t.Errorf("got %q, %v\n%s", got, err, m.Run(a.iptables, "-S"))
				}
				m.applyUplink(1, false)
				if n := strings.Count(m.Run(a.iptables, "-S"), "-A "+c.chain+" -i pu+"); c.chain != "" && n != 1 {
					t.Errorf("%d accept rules in %s, want 1", n, c.chain)
				}
				if c.chain != "" { // as firewalld does when it is reloaded
					m.Run(a.iptables, "-D", c.chain, "-i", "pu+", "-m", "comment", "--comment", "particle", "-j", "ACCEPT")
					m.applyUplink(1, true)
				}
				if err := m.RemoveHostRules(t.Context()); err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(before, m.Run(a.iptables, "-S")); diff != "" {
					t.Errorf("%s after removal (-want +got):\n%s", a.iptables, diff)
				}
			})
		})
	}
}

// What a user of Docker drops in DOCKER-USER is dropped for our networks, too, though
// the rules of an earlier version stand there; what returns from there, passes.
func TestUsersOfDockerDrop(t *testing.T) {
	eachVersion(t, func(t *testing.T, a addressing) {
		m, internet := routed(t)
		dockerFirewall(m)
		m.Run(a.iptables, "-I", "DOCKER-USER", "-p", "tcp", "--dport", "81", "-j", "DROP")
		m.Run(a.iptables, "-I", "DOCKER-USER", "-m", "conntrack", "--ctstate", "ESTABLISHED", "-j", "RETURN")
		note := []string{"-m", "comment", "--comment", "particle", "-j", "ACCEPT"}
		m.Run(a.iptables, append([]string{"-I", "DOCKER-USER", "-i", "pu+"}, note...)...)
		m.Run(a.iptables, append([]string{"-I", "DOCKER-USER", "-o", "pu+", "-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED"}, note...)...)
		serve(t, listenTCP(t, internet, at(a.outside, 80)), "internet")
		serve(t, listenTCP(t, internet, at(a.outside, 81)), "dropped")
		ns := m.tenantWithUplink(1)
		if got, err := ask(ns, a.container, at(a.outside, 80)); err != nil {
			t.Errorf("got %q, %v\n%s", got, err, m.Run(a.iptables, "-S"))
		}
		if got, err := ask(ns, a.container, at(a.outside, 81)); err == nil {
			t.Errorf("got %q through what DOCKER-USER drops\n%s", got, m.Run(a.iptables, "-S"))
		}
	})
}

// Who clears FORWARD takes the way to DOCKER-USER from it, and leaves that chain as it is.
func TestForwardCleared(t *testing.T) {
	eachVersion(t, func(t *testing.T, a addressing) {
		m, internet := routed(t)
		dockerFirewall(m)
		serve(t, listenTCP(t, internet, at(a.outside, 80)), "internet")
		ns := m.tenantWithUplink(1)
		m.Run(a.iptables, "-F", "FORWARD")
		m.applyUplink(1, true)
		if got, err := ask(ns, a.container, at(a.outside, 80)); err != nil {
			t.Errorf("got %q, %v\n%s", got, err, m.Run(a.iptables, "-S"))
		}
	})
}
