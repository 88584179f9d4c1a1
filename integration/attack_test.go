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
	"github.com/particle-net/particle/integration/sockets/sock"
	"github.com/particle-net/particle/internal/hostpath"
	"github.com/particle-net/particle/internal/lab"
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

// manner is how an attacker runs.
type manner struct {
	name    string
	program string
	entry   string
	// unconfined is without Docker's seccomp profile, which forbids new user
	// namespaces, and on current engines io_uring.
	unconfined bool
	exec       bool   // in a container that runs already
	user       string // "" is root
	// own is with what brings a network namespace of the container's own. What it
	// does there is its own business.
	own bool
	// options are Docker's, beside those of other fields. only are the attacks that
	// they could help, if not all.
	options, only []string
	// bare is a process past all that confines containers, with every right over the
	// shared namespace; it tries what only a lack of them stops.
	bare bool
	// scan tries all private addresses, too, for seconds. The guard looks at each
	// call alike, so one manner of each kernel entry is enough.
	scan bool
}

// ownBusiness are attacks on the namespace that the attacker is in. It has the right to
// some of them, which shows that others lack it alone.
var (
	ownBusiness = []string{"bind/*", "sniff/*", "change/*", "escape/*"}
	ownRights   = []string{"bind/*-transparent", "sniff/*", "change/[^s]*", "forge/*-true", "forge/tcp-repair"}
)

// mustSucceed tells the cases that show that the others fail for a good reason.
func (m manner) mustSucceed(name string) bool {
	// "A process with CAP_SYS_ADMIN (and no user namespace) can open the guard's maps"
	return attack.IsControl(name) || m.own && matches(ownRights, name) || m.name == "mounting" && name == "seize/map"
}

var manners = []manner{
	{name: "ordinary", program: "sockets", entry: sock.Syscall},
	{name: "exec", program: "sockets", entry: sock.Syscall, exec: true},
	{name: "user", program: "sockets", entry: sock.Syscall, user: "1000:1000"},
	{name: "unconfined", program: "sockets", entry: sock.Syscall, unconfined: true, scan: true},
	{name: "386", program: "sockets386", entry: sock.Syscall},
	{name: "socketcall", program: "sockets386", entry: sock.Socketcall, unconfined: true, scan: true},
	{name: "uring", program: "sockets", entry: sock.Uring, unconfined: true, scan: true},
	{name: "uring-async", program: "sockets", entry: sock.UringAsync, unconfined: true},
	{name: "uring-sqpoll", program: "sockets", entry: sock.UringSqpoll, unconfined: true},
	{name: "uring-386", program: "sockets386", entry: sock.Uring, unconfined: true},
	{name: "own", program: "sockets", entry: sock.Syscall, own: true, options: []string{"--cap-add", "NET_RAW", "--cap-add", "NET_ADMIN"}},
	// What could help to seize more than the own.
	{name: "systempaths", program: "sockets", entry: sock.Syscall, unconfined: true, options: []string{"--security-opt", "systempaths=unconfined"},
		only: []string{"control/*", "change/*", "escape/*", "seize/*"}},
	{name: "host-proc", program: "sockets", entry: sock.Syscall, own: true, options: []string{"-v", "/proc:/host/proc"}, only: seizing},
	{name: "host-cgroup", program: "sockets", entry: sock.Syscall, own: true, options: []string{"-v", "/sys/fs/cgroup:/sys/fs/cgroup", "--cgroupns", "host"}, only: seizing},
	{name: "mounting", program: "sockets", entry: sock.Syscall, own: true, options: []string{"--cap-add", "SYS_ADMIN"}, only: seizing},
}

var seizing = []string{"control/tcp4-*", "seize/*"}

// stage is a host with a victim on each of two networks.
type stage struct {
	*bed
	scene []string // flags of "sockets attack"
}

func newStage(t *testing.T, engine string, settings ...string) *stage {
	t.Helper()
	s := &stage{bed: newTestBed(t, lab.Options{Engine: engine})}
	if len(settings) > 0 {
		s.must(t, "plugin", "disable", "-f", hostpath.PluginName)
		s.must(t, append([]string{"plugin", "set", hostpath.PluginName}, settings...)...)
		s.must(t, "plugin", "enable", hostpath.PluginName)
	}
	if err := s.load(t.Context(), socketsImage); err != nil {
		t.Fatal(err)
	}
	s.must(t, "network", "create", "-d", "particle", "--ipam-driver", "particle", "--ipv6", "--subnet", "10.77.0.0/16", "--subnet", "fd00:77::/64", "red")
	s.must(t, "network", "create", "-d", "particle", "--ipam-driver", "particle", "--ipv6", "--subnet", "10.88.0.0/16", "--subnet", "fd00:88::/64", "blue")
	red4, red6 := s.victim(t, "red")
	blue4, blue6 := s.victim(t, "blue")
	s.scene = []string{"-victim", red4, "-victim6", red6, "-other", blue4, "-other6", blue6, "-third", "10.77.200.200", "-third6", "fd00:77::c8c8"}
	for _, p := range addrguard.Prefixes() {
		s.scene = append(s.scene, "-private", p.String())
	}
	return s
}

// victim starts one, and returns its addresses once it listens.
func (b *bed) victim(t *testing.T, network string) (four, six string) {
	t.Helper()
	name := "victim-" + network
	b.must(t, "run", "-d", "--name", name, "--network", network, socketsImage, "sockets", "victim")
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
		case m.bare && !matches(rightful, c.Name), !m.scan && matches([]string{"scan/*"}, c.Name):
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
	var args []string
	if m.exec || m.bare {
		s.must(t, "run", "-d", "--name", "idle", "--network", "red", socketsImage, "sockets", "idle")
		defer s.must(t, "rm", "-f", "idle")
	}
	switch {
	case m.exec:
		args = []string{"exec", "idle"}
	case m.bare:
		// Not --privileged: runc 1.1 wants all rights for that, which not every machine has.
		args = []string{"run", "--rm", "--runtime", "runc", "--network", "container:idle", "--cap-add", "NET_ADMIN", "--cap-add", "NET_RAW", "--cap-add", "SYS_ADMIN",
			"--security-opt", "seccomp=unconfined", "--security-opt", "systempaths=unconfined", socketsImage}
	default:
		args = []string{"run", "--rm", "--network", "red"}
		if m.unconfined {
			args = append(args, "--security-opt", "seccomp=unconfined")
		}
		args = append(args, m.options...)
		if m.user != "" {
			args = append(args, "--user", m.user)
		}
		args = append(args, socketsImage)
	}
	args = append(append(append(args, m.program, "attack", "-entry", m.entry), s.scene...), names...)
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

// TestAttack lets a container attack its neighbour in every manner. Nothing
// succeeds but what is conceded.
func TestAttack(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		s := newStage(t, engine)
		used := map[string]bool{}
		for _, m := range manners {
			t.Run(m.name, func(t *testing.T) {
				judge(t, m, s.attack(t, m, m.mustSucceed), conceded, used)
			})
		}
		documented(t, conceded, used)
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
