package runtimeapi_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/particle-net/particle/internal/runtimeapi"
)

// answer is a Handler made of a function.
type answer func(context.Context, runtimeapi.Request) (runtimeapi.Reply, error)

func (a answer) Handle(ctx context.Context, r runtimeapi.Request) (runtimeapi.Reply, error) {
	return a(ctx, r)
}

// serve answers on a socket until the test ends, and checks that it ends then.
func serve(t *testing.T, limit time.Duration, h answer) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "particle.sock")
	l, err := runtimeapi.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- runtimeapi.Serve(ctx, l, h, limit) }()
	t.Cleanup(func() {
		stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the socket is still there: %v", err)
		}
	})
	return path
}

func TestCallsInParallel(t *testing.T) {
	path := serve(t, time.Minute, func(_ context.Context, r runtimeapi.Request) (runtimeapi.Reply, error) {
		return runtimeapi.Reply{Place: &runtimeapi.Placement{Member: true, NetworkName: r.Place.Name}}, nil
	})
	var calls sync.WaitGroup
	for range 50 {
		calls.Go(func() {
			name := strings.Repeat("x", 10_000)
			reply, err := runtimeapi.Call(t.Context(), path, runtimeapi.Request{Place: &runtimeapi.Place{Name: name}})
			if err != nil || reply.Place == nil || reply.Place.NetworkName != name {
				t.Errorf("%v", err)
			}
		})
	}
	calls.Wait()
}

func TestErrorsArriveAsTheyAre(t *testing.T) {
	path := serve(t, time.Minute, func(context.Context, runtimeapi.Request) (runtimeapi.Reply, error) {
		return runtimeapi.Reply{}, errors.New("no room; make some")
	})
	_, err := runtimeapi.Call(t.Context(), path, runtimeapi.Request{Status: &runtimeapi.Query{}})
	if err == nil || err.Error() != "no room; make some" || errors.Is(err, runtimeapi.ErrUnreachable) {
		t.Errorf("got %v", err)
	}
}

func TestNobodyThere(t *testing.T) {
	dir := t.TempDir()
	stale := filepath.Join(dir, "stale.sock")
	l, err := net.Listen("unix", stale)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	for _, path := range []string{filepath.Join(dir, "absent.sock"), stale} {
		_, err := runtimeapi.Call(t.Context(), path, runtimeapi.Request{})
		if !errors.Is(err, runtimeapi.ErrUnreachable) || !strings.Contains(err.Error(), "docker plugin") {
			t.Errorf("%s: %v", path, err)
		}
	}
	// A stale socket does not keep the next plugin from listening.
	next, err := runtimeapi.Listen(stale)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(stale)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v: anybody may ask", info.Mode(), err)
	}
	next.Close()
}

// A frozen plugin holds a caller up no longer than the caller will wait.
func TestCallerStopsWaiting(t *testing.T) {
	release := make(chan struct{})
	path := serve(t, time.Minute, func(context.Context, runtimeapi.Request) (runtimeapi.Reply, error) {
		<-release
		return runtimeapi.Reply{}, nil
	})
	t.Cleanup(func() { close(release) })
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := runtimeapi.Call(ctx, path, runtimeapi.Request{}); !errors.Is(err, runtimeapi.ErrUnreachable) {
		t.Errorf("got %v", err)
	}
}

func TestHandlerIsBounded(t *testing.T) {
	path := serve(t, 20*time.Millisecond, func(ctx context.Context, _ runtimeapi.Request) (runtimeapi.Reply, error) {
		<-ctx.Done()
		return runtimeapi.Reply{}, ctx.Err()
	})
	if _, err := runtimeapi.Call(t.Context(), path, runtimeapi.Request{}); err == nil || !strings.Contains(err.Error(), "deadline") {
		t.Errorf("got %v", err)
	}
}

func TestNonsenseIsAnswered(t *testing.T) {
	path := serve(t, time.Minute, func(context.Context, runtimeapi.Request) (runtimeapi.Reply, error) {
		t.Error("nonsense reached the handler")
		return runtimeapi.Reply{}, nil
	})
	for name, text := range map[string]string{"no JSON": "hello\n", "too long": strings.Repeat("x", 2<<20) + "\n"} {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(conn, text) // the server may hang up before all is written
		reply, _ := io.ReadAll(conn)
		if name == "no JSON" && !strings.HasPrefix(string(reply), `{"err":"`) {
			t.Errorf("%s: %q", name, reply)
		}
		conn.Close()
	}
}
