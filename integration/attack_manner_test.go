package integration

import (
	"slices"
	"testing"

	"github.com/particle-net/particle/integration/sockets/attack"
	"github.com/particle-net/particle/integration/sockets/sock"
)

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
	// joins is whose network it shares (--network container:X): idle, which is made for it
	// with some options, or a victim.
	joins string
	idle  []string
	// victim is whom it attacks: the one that shares the network's namespace, or ownVictim.
	victim string
	// bare is a process past all that confines containers, with every right over the
	// shared namespace; it tries what only a lack of them stops.
	bare bool
	// alone cannot ask the victim: what it could say counts as heard.
	alone bool
	// once is one that differs from others in what the kernel does with it: the first
	// engine shows that.
	once bool
	// scan tries all private addresses, too, for seconds, on the first engine. The guard
	// looks at each call alike, so one manner of each kernel entry is enough.
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
	switch {
	case m.alone:
		return m.name == "stranger-raw"
	case m.name == "guest" && matches(guestRights, name):
		return true
	case m.name == "mounting" && name == "seize/map":
		// "A process with CAP_SYS_ADMIN (and no user namespace) can open the guard's maps"
		return true
	}
	return attack.IsControl(name) || m.own && matches(ownRights, name)
}

var manners = []manner{
	{name: "ordinary", program: "sockets", entry: sock.Syscall},
	{name: "exec", program: "sockets", entry: sock.Syscall, exec: true},
	{name: "user", program: "sockets", entry: sock.Syscall, user: "1000:1000", once: true},
	{name: "unconfined", program: "sockets", entry: sock.Syscall, unconfined: true, scan: true},
	{name: "386", program: "sockets386", entry: sock.Syscall, once: true},
	{name: "socketcall", program: "sockets386", entry: sock.Socketcall, unconfined: true, scan: true, once: true},
	{name: "uring", program: "sockets", entry: sock.Uring, unconfined: true, scan: true},
	{name: "uring-async", program: "sockets", entry: sock.UringAsync, unconfined: true, once: true},
	{name: "uring-sqpoll", program: "sockets", entry: sock.UringSqpoll, unconfined: true, once: true},
	{name: "uring-send", program: "sockets", entry: sock.UringSend, unconfined: true, only: sending, once: true},
	{name: "uring-send-zc", program: "sockets", entry: sock.UringPages, unconfined: true, only: sending, once: true},
	{name: "uring-sendmsg-zc", program: "sockets", entry: sock.UringMessages, unconfined: true, only: sending, once: true},
	{name: "uring-386", program: "sockets386", entry: sock.Uring, unconfined: true, once: true},
	{name: "own", program: "sockets", entry: sock.Syscall, own: true, options: overLinks},
	{name: "own-to-own", program: "sockets", entry: sock.Syscall, own: true, options: overLinks, victim: ownVictim, once: true},
	{name: "to-own", program: "sockets", entry: sock.Syscall, unconfined: true, victim: ownVictim, only: beyond, once: true},
	{name: "uring-to-own", program: "sockets", entry: sock.UringPages, unconfined: true, victim: ownVictim, only: sending, once: true},
	// As another container of the network, whose address it shares.
	{name: "joiner", program: "sockets", entry: sock.Syscall, unconfined: true, joins: "idle"},
	{name: "joiner-own", program: "sockets", entry: sock.Syscall, own: true, options: overLinks, joins: "idle", idle: []string{"--label", "particle.namespace=own"}, once: true},
	// As the victim, to be taken for somebody else.
	{name: "guest", program: "sockets", entry: sock.Syscall, unconfined: true, joins: "victim-red",
		only: slices.Concat([]string{"control/*", "bind/*-third", "spoof/*", "sniff/*", "change/*", "forge/*", "tenant/*"}, guestRights)},
	// Past particle's runtime, and so with nobody's address.
	{name: "stranger", program: "sockets", entry: sock.Syscall, unconfined: true, joins: "idle", options: pastRuntime, alone: true},
	// "With NET_RAW, which Docker gives to whom it is not told otherwise"
	{name: "stranger-raw", program: "sockets", entry: sock.Syscall, joins: "idle", options: pastRuntime[:2], alone: true, only: []string{"sniff/packet"}},
	{name: "stranger-uring", program: "sockets", entry: sock.Uring, unconfined: true, joins: "idle", options: pastRuntime, alone: true, once: true},
	// What could help to seize more than the own.
	{name: "systempaths", program: "sockets", entry: sock.Syscall, unconfined: true, options: []string{"--security-opt", "systempaths=unconfined"},
		only: []string{"control/*", "change/*", "escape/*", "seize/*"}},
	{name: "host-proc", program: "sockets", entry: sock.Syscall, own: true, options: []string{"-v", "/proc:/host/proc"}, only: seizing},
	{name: "host-cgroup", program: "sockets", entry: sock.Syscall, own: true, options: []string{"-v", "/sys/fs/cgroup:/sys/fs/cgroup", "--cgroupns", "host"}, only: seizing},
	{name: "mounting", program: "sockets", entry: sock.Syscall, own: true, options: []string{"--cap-add", "SYS_ADMIN"}, only: seizing},
}

var seizing = []string{"control/tcp4-*", "seize/*"}

// sending are the attacks for which it matters by which request a ring sends.
var sending = []string{"control/*", "spoof/*", "reach/*", "private/*", "catch/*", "unix/*"}

// beyond are the attacks that could be felt in another namespace.
var beyond = append([]string{"bind/*", "forge/*", "sniff/*", "lure/*", "overhear/*", "steal/*"}, sending...)

// guestRights are what belongs to a container and to those that share its address.
var guestRights = []string{"private/tcp[46]"}

// overLinks are rights over links, which bring a namespace of the container's own.
var overLinks = []string{"--cap-add", "NET_RAW", "--cap-add", "NET_ADMIN"}

// pastRuntime is a runtime that does not know of particle networks.
var pastRuntime = []string{"--runtime", "runc", "--cap-drop", "NET_RAW"}

// named is the manner of a name.
func named(name string) manner {
	return manners[slices.IndexFunc(manners, func(m manner) bool { return m.name == name })]
}

// on says whether an attacker of this manner is to be had on an engine.
func (m manner) on(engine string) bool { return !m.once || isFirst(engine) }

// runs says whether this kernel runs its program.
func (m manner) runs(t *testing.T) bool {
	t.Helper()
	return slices.Contains(socketsPrograms(t), m.program)
}
