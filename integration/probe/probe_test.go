package main

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/particle-net/particle/internal/lab"
	"github.com/particle-net/particle/internal/netnstest"
)

func TestMain(m *testing.M) {
	lab.MaybeInit()
	os.Exit(m.Run())
}

func TestOwnAddresses(t *testing.T) {
	const hosts = "127.0.0.1 localhost\n# 10.0.0.1 web\n10.0.0.2\tother web.test\n10.0.0.3 web # mine\n2001:db8::3 a web\n10.0.0.3 web\nbroken web\n"
	got, err := hostsEntries(strings.NewReader(hosts), "web")
	if err != nil {
		t.Fatal(err)
	}
	want := []netip.Addr{netip.MustParseAddr("10.0.0.3"), netip.MustParseAddr("2001:db8::3")}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestFlagsMayStandAnywhere(t *testing.T) {
	o, rest, err := parse([]string{"one", "-source", "self", "two", "-n", "3"})
	if err != nil || o.source != "self" || o.n != 3 {
		t.Errorf("got %+v, %v", o, err)
	}
	if diff := cmp.Diff([]string{"one", "two"}, rest); diff != "" {
		t.Error(diff)
	}
}

func TestZoneAnswers(t *testing.T) {
	z, err := parseZone([]string{"Web.test=10.0.0.1", "web.test=2001:db8::1"})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name  string
		kind  uint16
		rcode int
		want  string
	}{
		{"WEB.test.", dns.TypeA, dns.RcodeSuccess, "10.0.0.1"},
		{"web.test.", dns.TypeAAAA, dns.RcodeSuccess, "2001:db8::1"},
		{"web.test.", dns.TypeMX, dns.RcodeSuccess, ""},
		{"db.test.", dns.TypeA, dns.RcodeNameError, ""},
	} {
		reply := z.answer(new(dns.Msg).SetQuestion(c.name, c.kind))
		var got []string
		for _, rr := range reply.Answer {
			got = append(got, strings.TrimPrefix(rr.String(), rr.Header().String()))
		}
		if reply.Rcode != c.rcode || strings.Join(got, " ") != c.want || !reply.Authoritative {
			t.Errorf("%s %s: got %v", c.name, dns.TypeToString[c.kind], reply)
		}
	}
	if _, err := parseZone([]string{"web.test"}); err == nil {
		t.Error("a name without an address is taken")
	}
}

// The commands meet each other in containers on Docker's own bridge.
func TestInContainers(t *testing.T) {
	h := bootHost(t)
	docker := func(args ...string) string {
		t.Helper()
		out, err := h.Exec(t.Context(), append([]string{"docker"}, args...)...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	// start runs a server and returns its address once it listens.
	start := func(args ...string) string {
		t.Helper()
		id := docker(append([]string{"run", "-d", lab.TestImage, "probe"}, args...)...)
		for ctx, tick := t.Context(), time.NewTicker(10*time.Millisecond); ; {
			if _, at, ok := strings.Cut(docker("logs", id), "listening on "); ok {
				tick.Stop()
				return strings.Fields(at)[0]
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				t.Fatal(ctx.Err())
			}
		}
	}
	run := func(args ...string) string {
		t.Helper()
		return docker(append([]string{"run", "--rm", lab.TestImage, "probe"}, args...)...)
	}

	web := start("serve", "-listen", "self:80", "-name", "web")
	if got := run("get", web, "-source", "self"); !strings.HasPrefix(got, "web local="+web+" peer=172.17.0.") {
		t.Errorf("get: %q", got)
	}
	if got, echo := run("udp-send", start("echo", "-listen", "self:7"), "hello"), "hello from 172.17.0."; !strings.HasPrefix(got, echo) {
		t.Errorf("udp-send: %q", got)
	}
	if got := run("lookup", "db.test", "-server", start("dns", "-listen", "self:53", "db.test=10.0.0.1", "db.test=2001:db8::1")); got != "10.0.0.1\n2001:db8::1" {
		t.Errorf("lookup: %q", got)
	}
	if got := run("caps"); !strings.Contains(got, "CapEff:") {
		t.Errorf("caps: %q", got)
	}
	collectTwo(t, docker, start, run)
}

// bootHost boots a host with the test image, for as long as the test runs.
func bootHost(t *testing.T) *lab.Host {
	t.Helper()
	netnstest.Require(t, os.Geteuid() == 0, "root, to boot a Docker host")
	l, err := lab.Up(t.Context(), lab.Options{Name: "t-probe", Replace: true, Tied: true, Progress: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Down(context.Background()); err != nil {
			t.Error(err)
		}
	})
	h := l.Hosts()[0]
	if err := lab.LoadImage(t.Context(), h); err != nil {
		t.Fatal(err)
	}
	return h
}

// collectTwo lets two reporters meet a collector, which then ends.
func collectTwo(t *testing.T, docker func(...string) string, start, run func(...string) string) {
	t.Helper()
	collector := start("collect", "-listen", "self:9", "-n", "2")
	id := docker("ps", "-q", "--latest")
	// A reporter that ended would leave its address to the next one.
	docker("run", "-d", "--name", "stays", lab.TestImage, "sh", "-c", "probe report -to "+collector+" && probe sleep")
	stays := docker("inspect", "-f", "{{.NetworkSettings.IPAddress}}", "stays")
	if got := run("report", "-to", collector); got != "ok" {
		t.Errorf("report: %q", got)
	}
	if code := docker("wait", id); code != "0" {
		t.Errorf("the collector ends with %s", code)
	}
	if out := docker("logs", id); !strings.Contains(out, "\n2 ") || !strings.Contains(out, stays) {
		t.Errorf("the collector says %q, want 2 reporters and %s among them", out, stays)
	}
}

func TestTalkFailsWithItsConnection(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		line := make([]byte, 2)
		_, _ = io.ReadFull(conn, line)
		_, _ = conn.Write(line)
		conn.Close()
	}()
	err = talk(t.Context(), io.Discard, []string{l.Addr().String(), "-timeout", "10s"})
	if err == nil || !strings.Contains(err.Error(), "after 1 answers") {
		t.Errorf("got %v", err)
	}
}

// A datagram that is lost, and one whose echo is late, do not end the talk; a refused
// one does.
func TestTalkByDatagrams(t *testing.T) {
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		defer conn.Close()
		packet := make([]byte, 64)
		var late string
		for i := range 4 {
			n, peer, err := conn.ReadFrom(packet)
			if err != nil {
				return
			}
			if i == 0 {
				late = string(packet[:n])
				continue
			}
			_, _ = conn.WriteTo([]byte(late), peer)
			_, _ = conn.WriteTo(packet[:n], peer)
		}
	}()
	err = talk(t.Context(), io.Discard, []string{conn.LocalAddr().String(), "-udp", "-timeout", "10s"})
	if err == nil || !strings.Contains(err.Error(), "after 3 answers") || !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("got %v", err)
	}
}
