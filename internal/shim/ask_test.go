package shim

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/particle-net/particle/internal/runtimeapi"
	"github.com/particle-net/particle/topology"
)

var sameAddr = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

// The requests are written by hand, so they are held against the types: with
// every field set, the decoder the plugin uses finds all of it again. A field
// added to a type is found unset here.
func FuzzRequests(f *testing.F) {
	f.Add("a", "we\"b\\\n\x00<é>", "jobs", uint16(7))
	f.Fuzz(func(t *testing.T, id, name, network string, pid uint16) {
		for _, s := range []*string{&id, &name, &network} {
			*s = "x" + strings.ToValidUTF8(*s, "") // JSON has no other text
		}
		claim := runtimeapi.Claim{
			Container: topology.ContainerID(id), Name: name, Network: topology.NetworkID(network), Pid: int(pid) + 1, Cgroup: "/" + id, Hostname: name,
			Join: topology.ContainerID(network), Own: true, Reason: name,
			Hosts: []runtimeapi.HostLine{{Addr: netip.MustParseAddr("10.0.0.1"), Names: []string{name, id}}, {Addr: netip.MustParseAddr("fe80::1%eth0"), Names: []string{}}},
		}
		place := runtimeapi.Place{Container: topology.ContainerID(id), Name: name, Networks: []runtimeapi.NetworkRef{{Name: network, ID: id}, {Name: name, ID: network}}, Own: true}
		for _, c := range []struct {
			line []byte
			want runtimeapi.Request
		}{
			{placeRequest(place), runtimeapi.Request{Place: &place}},
			{claimRequest(claim), runtimeapi.Request{Claim: &claim}},
			{releaseRequest(claim.Container), runtimeapi.Request{Release: &runtimeapi.Release{Container: claim.Container}}},
		} {
			var got runtimeapi.Request
			if err := json.Unmarshal(c.line, &got); err != nil {
				t.Fatalf("%v: %s", err, c.line)
			}
			if diff := cmp.Diff(c.want, got, sameAddr); diff != "" || strings.Contains(string(c.line), "\n") {
				t.Fatalf("%s: -want +got\n%s", c.line, diff)
			}
			noZero(t, c.want)
		}
	})
}

func TestReadReply(t *testing.T) {
	full := runtimeapi.Reply{Place: &runtimeapi.Placement{
		Member: true, Network: network, NetworkName: `jo"bs`, Namespace: "/run/x", Own: true, Internal: true, Resolver: netip.MustParseAddr("fe80::1"),
	}}
	noZero(t, *full.Place)
	for _, want := range []runtimeapi.Reply{full, {}, {Err: "a <b> \"c\""}, {Place: &runtimeapi.Placement{}}} {
		line, err := json.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		got, err := readReply(append(line, '\n'))
		if diff := cmp.Diff(want, got, sameAddr); err != nil || diff != "" {
			t.Errorf("%s: %v -want +got\n%s", line, err, diff)
		}
	}
	for _, line := range []string{"", "{", `{"place":{"resolver":"x"}}`} {
		if r, err := readReply([]byte(line)); err == nil {
			t.Errorf("%q was read as %+v", line, r)
		}
	}
}

// noZero fails for a message with an empty field, its own or of a message in it:
// a test of a hand-written encoder must set them all to see all of them.
func noZero(t *testing.T, message any) {
	t.Helper()
	raw, err := json.Marshal(message)
	if err != nil {
		t.Fatal(err)
	}
	var fields map[string]any
	if err := json.Unmarshal(raw, &fields); err != nil {
		t.Fatal(err)
	}
	for name, v := range fields {
		if inner, ok := v.(map[string]any); ok {
			noZero(t, inner)
		}
		if v == nil || v == "" || v == false || v == float64(0) {
			t.Fatalf("field %s of %T is not set by the test", name, message)
		}
	}
}

func TestAskGivesUp(t *testing.T) {
	w := newWorld(t)
	l, err := net.Listen("unix", w.path("particle.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	answers := make(chan string, 10)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = bufio.NewReader(conn).ReadString('\n')
			switch answer := <-answers; answer {
			case "silence":
				defer conn.Close() // until the listener closes
			default:
				_, _ = io.WriteString(conn, answer)
				_ = conn.Close()
			}
		}
	}()
	for _, c := range []struct{ answer, want string }{
		{"silence", "no reply in time"},
		{"", "not valid JSON"},
		{`{"place":`, "not valid JSON"},
	} {
		answers <- c.answer
		_, err := ask(w.path("particle.sock"), []byte("{}"), 20*time.Millisecond)
		if !errors.Is(err, runtimeapi.ErrUnreachable) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("answer %q: %v, want %s", c.answer, err, c.want)
		}
	}
	if _, err := ask(w.path("nobody.sock"), []byte("{}"), time.Second); !errors.Is(err, runtimeapi.ErrUnreachable) {
		t.Errorf("nobody listens: %v", err)
	}
}

// A reply longer than the first buffer, in pieces.
func TestAskReadsLongReplies(t *testing.T) {
	w := newWorld(t)
	w.plugin().answer(runtimeapi.Placement{}, strings.Repeat("long ", 5000))
	_, err := ask(w.path("particle.sock"), placeRequest(runtimeapi.Place{}), 5*time.Second)
	if err == nil || len(err.Error()) != 25000 {
		t.Errorf("%v", err)
	}
}

// A plugin that comes back while a container of ours waits serves it.
func TestInsistWaitsForThePlugin(t *testing.T) {
	path := filepath.Join(t.TempDir(), "particle.sock")
	h := &Host{Patience: time.Minute, Settings: Settings{Socket: path}}
	asked := make(chan error, 1)
	go func() {
		_, err := h.insist(releaseRequest("0123456789ab"), time.Minute)
		asked <- err
	}()
	l, err := runtimeapi.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "{}\n"); err != nil {
		t.Fatal(err)
	}
	if err := <-asked; err != nil {
		t.Error(err)
	}
	h.Patience = 0
	l.Close()
	if _, err := h.insist(releaseRequest("0123456789ab"), time.Minute); !errors.Is(err, runtimeapi.ErrUnreachable) {
		t.Errorf("without patience: %v", err)
	}
}
