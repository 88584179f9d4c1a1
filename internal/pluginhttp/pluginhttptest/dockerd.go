// Package pluginhttptest calls a plugin server as dockerd does, for tests.
package pluginhttptest

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/particle-net/particle/internal/pluginhttp"
)

// Dockerd is the calling side of one plugin socket.
type Dockerd struct {
	t      testing.TB
	client *http.Client
}

// New serves what register adds to a server, on a real unix socket.
func New(t testing.TB, register func(*pluginhttp.Server)) *Dockerd {
	t.Helper()
	log := logrus.New()
	log.SetOutput(io.Discard)
	server, err := pluginhttp.NewServer([]string{"NetworkDriver", "IpamDriver"}, time.Minute, logrus.NewEntry(log))
	if err != nil {
		t.Fatal(err)
	}
	register(server)
	path := filepath.Join(t.TempDir(), "plugin.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
		if err := server.Drain(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return &Dockerd{t: t, client: &http.Client{Transport: transport}}
}

// Call posts a body as dockerd's plugin client does, and returns the status
// and the answer.
func (d *Dockerd) Call(method, body string) (int, string) {
	d.t.Helper()
	req, err := http.NewRequestWithContext(d.t.Context(), http.MethodPost, "http://plugin/"+method, strings.NewReader(body))
	if err != nil {
		d.t.Fatal(err)
	}
	req.Header.Set("Accept", "application/vnd.docker.plugins.v1.2+json")
	resp, err := d.client.Do(req)
	if err != nil {
		d.t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		d.t.Fatal(err)
	}
	return resp.StatusCode, string(bytes.TrimSpace(answer))
}
