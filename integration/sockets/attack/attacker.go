package attack

import (
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
	"time"

	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/integration/sockets/sock"
)

// Ends are the addresses of one party, of both families.
type Ends struct{ Four, Six netip.Addr }

// Scene says who is who.
type Scene struct {
	Self   Ends
	Victim Ends
	Third  Ends // addresses of the network that nobody has
	// Other is a victim on another network of the host.
	Other Ends
	// Private are the IPv6 prefixes, if any, in which each container of the network
	// has a private address, told by the last two bytes.
	Private []netip.Prefix
	// Alone is an attacker that cannot be expected to ask the victim. What it could say
	// counts as heard.
	Alone bool
}

// Result is what became of a case.
type Result struct {
	Case    string `json:"case"`
	Success bool   `json:"success"`
	Errno   string `json:"errno,omitempty"`
	Detail  string `json:"detail,omitempty"`
}

// Case is one attack, or a control.
type Case struct {
	Name string
	run  func(a *attacker) verdict
}

// patience bounds each call of an attack. Where one works, the kernel does it at
// once, between processes of one host; what is dropped takes all of it.
const patience = 250 * time.Millisecond

// verdict is what a case comes to: success, an error, or a token that tells of
// success if the witness has heard it, from a peer that judge finds wrong.
type verdict struct {
	success bool
	err     error
	detail  string
	token   string
	judge   func(peer netip.Addr) bool // nil: hearing it is enough
}

func failed(err error) verdict { return verdict{err: err} }

// outcome is success unless there is an error.
func outcome(err error) verdict { return verdict{success: err == nil, err: err} }

// attacker is what a case uses.
type attacker struct {
	*sock.Kernel
	Scene
	entry string
	ports map[string]uint16 // of the victim's services that never called bind
	nonce string
	name  string // of the case that runs
}

// Cases lists all attacks and controls.
func Cases() []Case {
	return slices.Concat(controlCases(), bindCases(), spoofCases(), spoofPingCases(), forgeCases(), catchCases(),
		stealCases(), lureCases(), squatCases(), straightCases(), privateCases(), scanCases(),
		groupCases(), unixCases(), netlinkCases(), escapeCases(), seizeCases(), tenantCases(), linkCases())
}

// Run tries the named cases, or all of them, by one entry of the kernel, and
// writes a Result as a line of JSON for each. An error means that nothing was
// tried; attacks that fail are results.
func Run(ctx context.Context, out io.Writer, entry string, scene Scene, names ...string) error {
	var answer Answer
	var err error
	if !scene.Alone {
		answer, err = ask(ctx, scene.Victim, Question{Op: "touches"})
	}
	if err != nil {
		return err
	}
	a := &attacker{Scene: scene, entry: entry, ports: answer.Ports, nonce: fmt.Sprintf("%d-%d", os.Getpid(), time.Now().UnixNano())}
	if a.Kernel, err = sock.Open(entry, patience); err != nil {
		return err
	}
	defer a.Close()
	var results []Result
	var verdicts []verdict
	for _, c := range Cases() {
		if len(names) > 0 && !slices.Contains(names, c.Name) {
			continue
		}
		a.name = c.Name
		v := c.run(a)
		a.Reset()
		if a.Alone && v.token != "" {
			v = outcome(v.err)
		}
		results = append(results, Result{Case: c.Name, Success: v.success, Errno: sock.Errno(v.err), Detail: v.detail})
		verdicts = append(verdicts, v)
	}
	if err := a.hearWitness(ctx, results, verdicts); err != nil {
		return err
	}
	encoder := json.NewEncoder(out)
	for _, r := range results {
		if err := encoder.Encode(r); err != nil {
			return err
		}
	}
	return nil
}

// hearWitness completes the results whose success the victim has to tell. What
// was sent over loopback is in the victim's sockets already; it may still have to
// read it, so it is asked until all that is expected has come or time is up. An
// attacker that said nothing to it may have made itself unable to ask.
func (a *attacker) hearWitness(ctx context.Context, results []Result, verdicts []verdict) error {
	if !slices.ContainsFunc(verdicts, func(v verdict) bool { return v.token != "" }) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 4*patience)
	defer cancel()
	tick := time.NewTicker(patience / 2)
	defer tick.Stop()
	for {
		// One last question after the time is up gets time of its own.
		answer, err := ask(context.WithoutCancel(ctx), a.Victim, Question{Op: "touches"})
		if err != nil {
			return err
		}
		missing := false
		for i, v := range verdicts {
			if v.token == "" || results[i].Success {
				continue
			}
			results[i].Success, results[i].Detail = told(v, answer.Touches)
			missing = missing || !results[i].Success
		}
		if !missing {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// told looks for a token among the touches, and whom the victim took for its
// sender.
func told(v verdict, touches []Touch) (success bool, detail string) {
	detail = v.detail
	for _, t := range touches {
		if t.Token != v.token {
			continue
		}
		detail = strings.TrimSpace(fmt.Sprintf("%s touched %s as %s", v.detail, t.Service, t.Peer))
		peer, _ := netip.ParseAddr(t.Peer) // of unix sockets it is none
		if v.judge == nil || v.judge(peer.Unmap()) {
			return true, detail
		}
	}
	return false, detail
}

// ask puts one question to a victim's witness.
func ask(ctx context.Context, victim Ends, q Question) (Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	var answer Answer
	conn, err := new(net.Dialer).DialContext(ctx, "tcp4", netip.AddrPortFrom(victim.Four, portWitness).String())
	if err != nil {
		return answer, fmt.Errorf("the witness: %w", err)
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	if err := errors.Join(conn.SetDeadline(deadline), json.NewEncoder(conn).Encode(q), json.NewDecoder(conn).Decode(&answer)); err != nil {
		return answer, fmt.Errorf("the witness: %w", err)
	}
	return answer, nil
}

func (a *attacker) token() string { return a.name + "#" + a.nonce }

// transport is a kind of socket, and how it names addresses.
type transport struct {
	name                   string
	family, kind, protocol int
	mapped                 bool // IPv4 in IPv6
}

var (
	tcp4      = transport{"tcp4", unix.AF_INET, unix.SOCK_STREAM, 0, false}
	udp4      = transport{"udp4", unix.AF_INET, unix.SOCK_DGRAM, 0, false}
	tcp6      = transport{"tcp6", unix.AF_INET6, unix.SOCK_STREAM, 0, false}
	udp6      = transport{"udp6", unix.AF_INET6, unix.SOCK_DGRAM, 0, false}
	tcpMapped = transport{"tcp-mapped", unix.AF_INET6, unix.SOCK_STREAM, 0, true}
	udpMapped = transport{"udp-mapped", unix.AF_INET6, unix.SOCK_DGRAM, 0, true}
	mptcp4    = transport{"mptcp4", unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP, false}
	mptcp6    = transport{"mptcp6", unix.AF_INET6, unix.SOCK_STREAM, unix.IPPROTO_MPTCP, false}
	ping4     = transport{"ping4", unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP, false}
	ping6     = transport{"ping6", unix.AF_INET6, unix.SOCK_DGRAM, unix.IPPROTO_ICMPV6, false}
)

func (t transport) stream() bool { return t.kind == unix.SOCK_STREAM }

// anyPort is where the victim listens on every address of a kind.
func (t transport) anyPort() uint16 {
	six := t.family == unix.AF_INET6 && !t.mapped
	switch {
	case t.stream() && six:
		return portTCPAny6
	case t.stream():
		return portTCPAny
	case six:
		return portUDPAny6
	default:
		return portUDPAny
	}
}

// pick chooses the address of a party that sockets of this kind use.
func (t transport) pick(e Ends) netip.Addr {
	switch {
	case t.mapped:
		return netip.AddrFrom16(e.Four.As16())
	case t.family == unix.AF_INET6:
		return e.Six
	default:
		return e.Four
	}
}

func (t transport) at(e Ends, port uint16) []byte { return sock.In(t.pick(e), port) }

// socket makes a socket of a kind; for IPv6 alone unless it is for mapped ones.
func (a *attacker) socket(t transport) (int, error) {
	fd, err := a.Socket(t.family, t.kind, t.protocol)
	if err == nil && t.family == unix.AF_INET6 && t.protocol != unix.IPPROTO_ICMPV6 {
		err = unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_V6ONLY, map[bool]int{true: 0, false: 1}[t.mapped])
	}
	return fd, err
}

// say sends the case's token to an address by a fresh socket.
func (a *attacker) say(t transport, to []byte) verdict {
	fd, err := a.socket(t)
	if err != nil {
		return failed(err)
	}
	return a.sayBy(t, fd, to)
}

// sayBy is say by a socket that exists.
func (a *attacker) sayBy(t transport, fd int, to []byte) verdict {
	m := sock.Message{Data: []byte(a.token() + "\n"), To: to}
	if t.stream() {
		if err := a.Connect(fd, to); err != nil {
			return failed(err)
		}
		m.To = nil
	}
	if _, err := a.Send(fd, m); err != nil {
		return failed(err)
	}
	return verdict{token: a.token()}
}

// known are addresses that programs use without asking whose they are.
func known(four, six string) Ends { return Ends{netip.MustParseAddr(four), netip.MustParseAddr(six)} }

func wildcard() Ends { return known("0.0.0.0", "::") }
func loopback() Ends { return known("127.0.0.1", "::1") }

// mistaken tells that the victim took somebody else for the sender.
func (a *attacker) mistaken() func(netip.Addr) bool {
	return func(peer netip.Addr) bool { return peer != a.Self.Four && peer != a.Self.Six }
}

// controlCases must succeed: the victim lives, and neighbours reach what it
// offers them.
func controlCases() []Case {
	var cases []Case
	for _, c := range []struct {
		t    transport
		port uint16
	}{{tcp4, portTCPAny}, {tcp4, portTCPOwn}, {udp4, portUDPAny}, {udp4, portUDPOwn}, {tcp6, portTCPAny6}, {tcp6, portTCPOwn6}, {udp6, portUDPAny6},
		{tcp4, portTCPDual}, {udp4, portUDPDual}, {mptcp4, portTCPAny}} {
		cases = append(cases, Case{fmt.Sprintf("control/%s-%d", c.t.name, c.port), func(a *attacker) verdict {
			return a.say(c.t, c.t.at(a.Victim, c.port))
		}})
	}
	return append(cases,
		Case{"control/tcp4-auto", func(a *attacker) verdict { return a.say(tcp4, tcp4.at(a.Victim, a.ports["tcp-auto"])) }},
		Case{"control/udp4-auto", func(a *attacker) verdict { return a.say(udp4, udp4.at(a.Victim, a.ports["udp-auto"])) }})
}

// IsControl tells cases that must succeed.
func IsControl(name string) bool { return strings.HasPrefix(name, "control/") }
