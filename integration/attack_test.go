package integration

import (
	"encoding/json"
	"errors"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/particle-net/particle/addrguard"
	"github.com/particle-net/particle/integration/sockets/attack"
	"github.com/particle-net/particle/internal/hostpath"
	"github.com/particle-net/particle/internal/lab"
	"github.com/particle-net/particle/internal/netnstest"
)

// concession is what a shared namespace cannot give, or does otherwise. The
// phrase stands in docs/limits.md, where a user reads of it.
type concession struct {
	cases  []string // patterns of path.Match
	phrase string
}

// find returns the pattern of a concession that covers a case.
func find(list []concession, name string) (pattern string, ok bool) {
	for _, c := range list {
		for _, pattern := range c.cases {
			if matches([]string{pattern}, name) {
				return pattern, true
			}
		}
	}
	return "", false
}

// matches tells whether one of the patterns covers a name.
func matches(patterns []string, name string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool {
		ok, err := path.Match(pattern, name)
		return err == nil && ok
	})
}

// documented fails for concessions that the limits do not name, and for patterns
// that cover nothing.
func documented(t *testing.T, list []concession, used map[string]bool) {
	t.Helper()
	limits, err := os.ReadFile("../docs/limits.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range list {
		if !strings.Contains(string(limits), c.phrase) {
			t.Errorf("docs/limits.md does not say %q of %s", c.phrase, strings.Join(c.cases, " "))
		}
		for _, pattern := range c.cases {
			if !used[pattern] {
				t.Errorf("nothing differs of %s, which is conceded as %q", pattern, c.phrase)
			}
		}
	}
}

// conceded are attacks that succeed in spite of the guard.
var conceded = []concession{
	{[]string{"squat/*-auto"}, "A port that the kernel chose for a socket that was never bound"},
	{[]string{"squat/unix"}, "A name of an abstract unix socket that one container holds"},
	{[]string{"squat/netlink"}, "Numbers of netlink sockets are one space"},
}

// concededHere are those, and what this kernel lacks the hooks for.
func concededHere(t *testing.T) []concession {
	t.Helper()
	if netnstest.Since(t, 6, 7) {
		return conceded
	}
	return append(slices.Clone(conceded), concession{[]string{"unix/*", "lure/unix"}, "Abstract unix sockets of neighbours can be reached"})
}

// stage is a host with a victim on each of two networks, and on one of them another
// with a namespace of its own.
type stage struct {
	*bed
	engine  string
	victims map[string][]string // flags of "sockets attack", by manner.victim
	others  []string            // the rest of its flags
}

// ownVictim is the manner.victim that has a namespace of its own.
const ownVictim = "own"

func newStage(t *testing.T, engine string, settings ...string) *stage {
	t.Helper()
	s := &stage{bed: newTestBed(t, lab.Options{Engine: engine}), engine: engine}
	if len(settings) > 0 {
		s.must(t, "plugin", "disable", "-f", hostpath.PluginName)
		s.must(t, append([]string{"plugin", "set", hostpath.PluginName}, settings...)...)
		s.must(t, "plugin", "enable", hostpath.PluginName)
	}
	s.populate(t, "-d", "particle", "--ipam-driver", "particle")
	return s
}

// populate makes the networks, and all who are on them but the attackers.
func (s *stage) populate(t *testing.T, driver ...string) {
	t.Helper()
	if err := s.load(t.Context(), socketsImage); err != nil {
		t.Fatal(err)
	}
	for name, subnets := range map[string][2]string{"red": {"10.77.0.0/16", "fd00:77::/64"}, "blue": {"10.88.0.0/16", "fd00:88::/64"}} {
		s.must(t, slices.Concat([]string{"network", "create"}, driver, []string{"--ipv6", "--subnet", subnets[0], "--subnet", subnets[1], name})...)
	}
	s.victims = map[string][]string{
		"":        ends("victim")(s.victim(t, "victim-red", "--network", "red")),
		ownVictim: ends("victim")(s.victim(t, "victim-own", "--network", "red", "--label", "particle.namespace=own")),
	}
	s.others = append(ends("other")(s.victim(t, "victim-blue", "--network", "blue")), nobody...)
	for _, p := range addrguard.Prefixes() {
		s.others = append(s.others, "-private", p.String())
	}
}

// nobody are addresses of the network red that nobody has.
var nobody = []string{"-third", "10.77.200.200", "-third6", "fd00:77::c8c8"}

// ends are the flags that give addresses to a role.
func ends(role string) func(four, six string) []string {
	return func(four, six string) []string { return []string{"-" + role, four, "-" + role + "6", six} }
}

// victim starts one, and returns its addresses once it listens.
func (b *bed) victim(t *testing.T, name string, options ...string) (four, six string) {
	t.Helper()
	b.must(t, append(append([]string{"run", "-d", "--name", name}, options...), socketsImage, "sockets", "victim")...)
	b.mustCome(t, name+" listens", func() error {
		out, err := b.docker(t.Context(), "logs", name)
		if err == nil && !strings.Contains(out, "listening on") {
			err = errors.New("it does not")
		}
		return err
	})
	out := b.must(t, "inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{.GlobalIPv6Address}}{{end}}", name)
	four, six, _ = strings.Cut(out, " ")
	return four, six
}

// attack runs all attacks in one manner. Those that must succeed may have waited for
// somebody who had no turn on a busy machine: if they do not they are run again.
func (s *stage) attack(t *testing.T, m manner, must func(name string) bool) map[string]attack.Result {
	t.Helper()
	var names, business []string
	for _, c := range attack.Cases() {
		switch {
		case m.only != nil && !matches(m.only, c.Name):
		case !(m.scan && isFirst(s.engine)) && matches([]string{"scan/*"}, c.Name), m.alone && attack.IsControl(c.Name):
		case m.own && matches(ownBusiness, c.Name):
			business = append(business, c.Name)
		default:
			names = append(names, c.Name)
		}
	}
	results := s.attempt(t, m, names, must)
	// What an attacker does to its own namespace, in which it may take the victim's
	// address, is done in one that is used for nothing else.
	maps.Copy(results, s.attempt(t, m, slices.DeleteFunc(business, func(name string) bool { return !must(name) }), must))
	return results
}

// attempt runs the attacks of these names until those that must have succeeded.
func (s *stage) attempt(t *testing.T, m manner, names []string, must func(name string) bool) map[string]attack.Result {
	t.Helper()
	const attempts = 4
	results := map[string]attack.Result{}
	for range attempts {
		if len(names) == 0 {
			break
		}
		maps.Copy(results, s.run(t, m, names))
		names = slices.DeleteFunc(names, func(name string) bool { return results[name].Success || !must(name) })
	}
	return results
}

// run runs the attacks of these names.
func (s *stage) run(t *testing.T, m manner, names []string) map[string]attack.Result {
	t.Helper()
	if m.exec || m.joins == "idle" {
		s.must(t, append(append([]string{"run", "-d", "--name", "idle", "--network", "red"}, m.idle...), socketsImage, "sockets", "idle")...)
		defer s.must(t, "rm", "-f", "idle")
	}
	args := []string{"exec", "idle"}
	if !m.exec {
		args = s.start(m)
	}
	args = append(append(args, m.program, "attack", "-entry", m.entry), s.victims[m.victim]...)
	if m.alone {
		args = append(args, "-alone")
	}
	args = append(append(args, s.others...), names...)
	results := map[string]attack.Result{}
	for line := range strings.Lines(s.must(t, args...)) {
		var r attack.Result
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		results[r.Case] = r
	}
	if len(results) != len(names) {
		t.Fatalf("%d results of %d attacks", len(results), len(names))
	}
	return results
}

// start is how Docker is to start an attacker.
func (s *stage) start(m manner) []string {
	args := []string{"run", "--rm", "--network", "red"}
	if m.joins != "" {
		args[3] = "container:" + m.joins
	}
	if m.unconfined {
		args = append(args, "--security-opt", "seccomp=unconfined")
	}
	args = append(args, m.options...)
	if m.user != "" {
		args = append(args, "--user", m.user)
	}
	return append(args, socketsImage)
}

// TestAttack lets a container attack its neighbour in every manner. Nothing
// succeeds but what is conceded.
func TestAttack(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		s, allowed := newStage(t, engine), concededHere(t)
		used := map[string]bool{}
		for _, m := range manners {
			if !m.on(engine) || !m.runs(t) {
				continue
			}
			t.Run(m.name, func(t *testing.T) {
				judge(t, m, s.attack(t, m, m.mustSucceed), allowed, used)
			})
		}
		if isFirst(engine) { // which has all manners
			documented(t, allowed, used)
		}
	})
}

// judge says which attacks succeed that must not, and which fail that must not;
// it notes the patterns that were needed.
func judge(t *testing.T, m manner, results map[string]attack.Result, allowed []concession, used map[string]bool) {
	t.Helper()
	for _, r := range sorted(results) {
		pattern, ok := find(allowed, r.Case)
		used[pattern] = used[pattern] || ok && r.Success
		switch must := m.mustSucceed(r.Case); {
		case must && !r.Success:
			t.Errorf("%s fails: %s %s", r.Case, r.Errno, r.Detail)
		case !must && r.Success && !ok:
			t.Errorf("%s succeeds: %s %s", r.Case, r.Errno, r.Detail)
		}
	}
}

// sorted are results in the order of their names.
func sorted(results map[string]attack.Result) []attack.Result {
	var out []attack.Result
	for _, name := range slices.Sorted(maps.Keys(results)) {
		out = append(out, results[name])
	}
	return out
}
