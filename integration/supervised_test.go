package integration

import (
	"slices"
	"strings"
	"testing"

	"github.com/particle-net/particle/integration/sockets/sock"
)

// concededBySeccomp are attacks that the guard by system calls does not stop, beside
// those that no guard does.
var concededBySeccomp = []concession{
	{[]string{"spoof/udp*-none", "spoof/udp*-autobound*", "spoof/ping*-none", "spoof/*-fastopen", "catch/udp*-auto", "scan/udp*", "unix/dgram-unconnected"},
		"It keeps apart programs, not attackers: sendmsg(2) on a socket that was never bound"},
	{[]string{"catch/udp4-group", "catch/udp6-group", "catch/udp4-broadcast"}, "What a container sends to a group reaches sockets of neighbours"},
	{[]string{"spoof/*-pktinfo*", "spoof/udp6-sticky"}, "A source named in ancillary data"},
	{[]string{"bind/udp4-loopback-of-others"}, "Programs read their own addresses where they expect the wildcard or 127.0.0.1"},
}

// TestAttackSupervised is TestAttack where the guard answers system calls.
func TestAttackSupervised(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		s := newStage(t, engine, "PARTICLE_GUARD=seccomp")
		allowed := slices.Concat(conceded, concededBySeccomp)
		used := map[string]bool{}
		for _, m := range manners {
			same := m.name == "user" || m.name == "386" // as the ordinary one
			// "Under this guard it is bound by nothing": nobody answers its calls.
			if same || m.alone || !m.on(engine) || !m.runs(t) {
				continue
			}
			t.Run(m.name, func(t *testing.T) {
				if strings.HasPrefix(m.entry, sock.Uring) {
					s.noRing(t, m)
					return
				}
				// This guard has no maps; others of this kernel may have some.
				must := func(name string) bool { return name != "seize/map" && m.mustSucceed(name) }
				results := s.attack(t, m, must)
				delete(results, "seize/map")
				judge(t, m, results, allowed, used)
			})
		}
		if isFirst(engine) {
			documented(t, allowed, used)
		}
	})
}

// noRing checks that nothing goes past the guard by a ring:
// "io_uring is refused (EPERM), as are protocols other than TCP", which package filter's
// tests try.
func (s *stage) noRing(t *testing.T, m manner) {
	t.Helper()
	args := slices.Concat(s.start(m), []string{m.program, "attack", "-entry", m.entry}, s.victims[""], s.others)
	if _, err := s.docker(t.Context(), args...); err == nil || !strings.Contains(err.Error(), "operation not permitted") {
		t.Errorf("a ring is made: %v", err)
	}
}
