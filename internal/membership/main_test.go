package membership_test

import (
	"context"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/particle-net/particle/control/server"
	"github.com/particle-net/particle/internal/membership"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == server.Argument {
		server.Run()
	}
	os.Setenv("GORACE", "atexit_sleep_ms=0") // a server that is told to end would wait a second
	os.Exit(m.Run())
}

// host is a Docker host as far as membership goes.
type host struct {
	*membership.Membership
	t    *testing.T
	opts membership.Options
}

// newHost makes a host with an address of its own on the loopback link.
func newHost(t *testing.T, name, addr string, port uint16) *host {
	t.Helper()
	log := logrus.New()
	log.SetOutput(io.Discard)
	if testing.Verbose() {
		log.SetOutput(os.Stderr)
	}
	h := &host{t: t, opts: membership.Options{
		StateDir: filepath.Join(t.TempDir(), name), Name: name, Port: port, Version: "1.0",
		Address: func(context.Context) (netip.Addr, error) { return netip.ParseAddr(addr) },
		Command: []string{os.Args[0], server.Argument}, Log: logrus.NewEntry(log).WithField("host", name),
	}}
	h.start()
	t.Cleanup(func() { _ = h.Close() })
	return h
}

// start is the start of the host's plugin.
func (h *host) start() {
	h.t.Helper()
	var err error
	if h.Membership, err = membership.Open(h.opts); err != nil {
		h.t.Fatal(err)
	}
}

// restart ends the plugin and starts it again.
func (h *host) restart() {
	h.t.Helper()
	if err := h.Close(); err != nil {
		h.t.Fatal(err)
	}
	h.start()
}

// connection waits for the next one.
func (h *host) connection() *membership.Connection {
	h.t.Helper()
	select {
	case c := <-h.Connections():
		return c
	case <-h.t.Context().Done():
	case <-time.After(30 * time.Second):
	}
	h.t.Fatal("no connection was delivered")
	return nil
}

func (h *host) init() membership.Made {
	h.t.Helper()
	made, err := h.Init(h.t.Context(), membership.InitOptions{})
	if err != nil {
		h.t.Fatal(err)
	}
	return made
}

func (h *host) join(made membership.Made, serve bool) membership.Joined {
	h.t.Helper()
	joined, err := h.Join(h.t.Context(), membership.JoinOptions{Server: made.Address, Token: made.Token, Serve: serve})
	if err != nil {
		h.t.Fatal(err)
	}
	return joined
}

// endpoints waits for a connection with so many.
func (h *host) endpoints(n int) *membership.Connection {
	h.t.Helper()
	for {
		if c := h.connection(); c != nil && len(c.Endpoints) == n {
			return c
		}
	}
}

// refused expects an error with all of the texts.
func refused(t *testing.T, err error, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("got %v, want an error with %q", err, text)
		}
	}
}

// eventually waits for a condition that others bring about.
func eventually(t *testing.T, what string, met func() bool) {
	t.Helper()
	limit := time.After(40 * time.Second)
	for !met() {
		select {
		case <-limit:
			t.Fatal("did not come: " + what)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// works tells whether the store answers through a connection.
func works(t *testing.T, c *membership.Connection) error {
	t.Helper()
	client, err := server.Dial(server.Target{Endpoints: c.Endpoints, TLS: c.TLS, User: c.User, Password: c.Password})
	if err != nil {
		return err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	_, err = client.Register().Hosts(ctx)
	return err
}
