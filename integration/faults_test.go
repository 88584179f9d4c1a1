package integration

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/particle-net/particle/internal/hostpath"
	"github.com/particle-net/particle/internal/lab"
)

// assassin stands between dockerd and the plugin and kills the plugin at one
// call: before it was received, or when it was done and not yet answered.
type assassin struct {
	bed      *bed
	method   string
	answered bool // kill after the work, before the answer
	struck   chan struct{}
	once     sync.Once
}

// ambush puts the assassin in the place of the plugin's socket. The plugin takes
// the place back when Docker has started it again. It is restarted once before,
// because Docker keeps connections open and would not come by.
func ambush(ctx context.Context, b *bed, method string, answered bool) (*assassin, func(), error) {
	if err := b.restartPlugin(ctx); err != nil {
		return nil, nil, err
	}
	a := &assassin{bed: b, method: method, answered: answered, struck: make(chan struct{})}
	front := b.host.Root() + hostpath.DriverSocket
	back := front + ".real"
	if err := os.Rename(front, back); err != nil {
		return nil, nil, err
	}
	l, err := net.Listen("unix", front)
	if err != nil {
		return nil, nil, err
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	server := &http.Server{Handler: a.handler(back)}
	go server.Serve(l)
	return a, func() { server.Close(); os.Remove(back) }, nil
}

func (a *assassin) handler(back string) http.Handler {
	forward := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: "plugin"})
	forward.Transport = &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", back)
	}}
	forward.ModifyResponse = func(resp *http.Response) error {
		if a.answered && strings.HasSuffix(resp.Request.URL.Path, a.method) {
			return a.strike(resp.Request.Context())
		}
		return nil
	}
	forward.ErrorHandler = func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) }
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !a.answered && strings.HasSuffix(r.URL.Path, a.method) {
			_ = a.strike(r.Context()) // only says that it did
		}
		forward.ServeHTTP(w, r)
	})
}

var errStruck = errors.New("the plugin was killed")

func (a *assassin) strike(ctx context.Context) error {
	a.once.Do(func() {
		if err := a.bed.signalPlugin(context.WithoutCancel(ctx), syscall.SIGKILL); err == nil {
			close(a.struck)
		}
	})
	return errStruck
}

// restartPlugin kills the plugin and waits for Docker to start it again.
func (b *bed) restartPlugin(ctx context.Context) error {
	registered := b.registrations()
	if err := b.signalPlugin(ctx, syscall.SIGKILL); err != nil {
		return err
	}
	return b.registeredAfter(ctx, registered)
}

// registrations counts how often dockerd has asked a newly started plugin for
// its capabilities, from the engine's log.
func (b *bed) registrations() int {
	log, err := os.ReadFile(b.host.ServiceLog("dockerd"))
	if err != nil {
		return 0
	}
	return strings.Count(string(log), "call=NetworkDriver.GetCapabilities")
}

// registeredAfter waits until dockerd has registered the plugin once more. A
// plugin that ends before that, within half a second of its start, is not
// started again by Docker.
func (b *bed) registeredAfter(ctx context.Context, before int) error {
	return until(ctx, func() error {
		if b.registrations() == before {
			return errors.New("Docker has not started the plugin again")
		}
		return nil
	})
}

// TestKillAtEveryCall kills the plugin before and after the work of each call
// that Docker makes, on a second engine after it. What lives keeps its connection, the next container starts,
// and nothing is left.
func TestKillAtEveryCall(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		ctx := t.Context()
		b := newTestBed(t, lab.Options{Engine: engine})
		b.must(t, "network", "create", "-d", "particle", "--ipam-driver", "particle", "--subnet", "10.77.0.0/16", "jobs")
		b.must(t, "run", "-d", "--name", "lives", "--network", "jobs", "--ip", "10.77.0.250", lab.TestImage, "probe", "serve", "-listen", "self:80", "-name", "lives")
		cycle := []string{"run", "--rm", "--network", "jobs", lab.TestImage, "true"}
		create := []string{"network", "create", "-d", "particle", "--ipam-driver", "particle", "--subnet", "10.77.0.0/16", "brief"}
		remove := []string{"network", "rm", "brief"}
		for _, c := range []struct {
			method   string
			commands [][]string
		}{
			{"IpamDriver.RequestAddress", [][]string{cycle}},
			{"NetworkDriver.CreateEndpoint", [][]string{cycle}},
			{"NetworkDriver.Join", [][]string{cycle}},
			{"NetworkDriver.EndpointOperInfo", [][]string{cycle}},
			{"NetworkDriver.Leave", [][]string{cycle}},
			{"NetworkDriver.DeleteEndpoint", [][]string{cycle}},
			{"IpamDriver.ReleaseAddress", [][]string{cycle}},
			{"IpamDriver.RequestPool", [][]string{create, remove}},
			{"NetworkDriver.CreateNetwork", [][]string{create, remove}},
			{"IpamDriver.ReleasePool", [][]string{create, remove}},
			{"NetworkDriver.DeleteNetwork", [][]string{create, remove}},
		} {
			for _, answered := range []bool{false, true} {
				if !answered && !isFirst(engine) && !soak {
					continue // what the plugin had no time for, it had on no engine
				}
				name := fmt.Sprintf("%s answered=%v", c.method, answered)
				a, done, err := ambush(ctx, b, c.method, answered)
				if err != nil {
					t.Fatal(name, err)
				}
				registered := b.registrations()
				for _, command := range c.commands {
					// It may fail: its plugin was killed. What counts is what comes after.
					if out, err := b.docker(ctx, command...); err != nil {
						t.Log(name, out, err)
					}
				}
				select {
				case <-a.struck:
				default:
					t.Errorf("%s: Docker never made the call", name)
				}
				done()
				if err := b.registeredAfter(ctx, registered); err != nil {
					t.Fatal(name, err)
				}
				if err := until(ctx, func() error { _, err := b.docker(ctx, cycle...); return err }); err != nil {
					t.Fatalf("%s: the next container does not start: %v", name, err)
				}
				b.must(t, "exec", "lives", "probe", "get", "10.77.0.250:80", "-source", "self")
			}
		}
		b.must(t, "rm", "-f", "lives")
		b.mustCome(t, "nothing of containers left", func() error { return b.clean(ctx) })
		b.mustCome(t, "the short networks gone", func() error {
			status, err := b.status(ctx)
			if err == nil && len(status.Networks) != 1 {
				err = fmt.Errorf("networks: %+v", status.Networks)
			}
			return err
		})
		if out := b.must(t, "network", "ls", "-q", "-f", "name=brief"); out != "" {
			t.Errorf("Docker still lists the short network: %s", out)
		}
	})
}

// TestManyCycles starts and ends containers until a leak of one in a hundred would show,
// or in a soak of one in hundreds.
func TestManyCycles(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		ctx := t.Context()
		b := newTestBed(t, lab.Options{Engine: engine})
		b.must(t, "network", "create", "-d", "particle", "--ipam-driver", "particle", "--subnet", "10.77.0.0/16", "jobs")
		b.must(t, "run", "--rm", "--network", "jobs", lab.TestImage, "true")
		before := b.census(t)
		work := make(chan int)
		var workers sync.WaitGroup
		for range 4 {
			workers.Go(func() {
				for i := range work {
					if out, err := b.docker(ctx, "run", "--rm", "--network", "jobs", lab.TestImage, "probe", "addr"); err != nil {
						t.Errorf("cycle %d: %v %s", i, err, out)
					}
				}
			})
		}
		for i := range number(150, 1000) {
			work <- i
		}
		close(work)
		workers.Wait()
		b.mustCome(t, "nothing of containers left", func() error { return b.clean(ctx) })
		b.mustCome(t, "the host as before", func() error {
			return b.census(t).within(before)
		})
	})
}

// census counts what a host holds.
type census struct{ Mounts, Links, Files, Descriptors int }

// within says whether nothing has become more. It may become less: Docker up to
// 27 clears sandbox keys away a minute late.
func (c census) within(before census) error {
	if c.Mounts > before.Mounts || c.Links > before.Links || c.Files > before.Files || c.Descriptors > before.Descriptors {
		return fmt.Errorf("before: %+v, now: %+v", before, c)
	}
	return nil
}

func (b *bed) census(t *testing.T) census {
	t.Helper()
	count := func(command string) int {
		t.Helper()
		out, err := b.host.Exec(t.Context(), "sh", "-c", command)
		if err != nil {
			t.Fatal(err)
		}
		return len(strings.Fields(out))
	}
	pid, err := b.pluginPid()
	if err != nil {
		t.Fatal(err)
	}
	return census{
		Mounts: count("cut -d' ' -f5 /proc/self/mountinfo"),
		Links:  count("ls /sys/class/net; for n in /run/particle/netns/*; do nsenter --net=$n cat /proc/net/dev | grep -o '^ *[a-z0-9]*:'; done"),
		Files:  count("find /run/particle /var/lib/particle /run/docker/netns -type f"),
		// Sockets come and go with the connections that Docker keeps open.
		Descriptors: count(fmt.Sprintf("for f in /proc/%d/fd/*; do readlink $f; done | grep -v socket:", pid)),
	}
}

// newTestBed is newBed for a Go test.
func newTestBed(t *testing.T, o lab.Options) *bed {
	t.Helper()
	b, err := newBed(t.Context(), o, false)
	closes(t, b, err)
	return b
}

// closes has a bed go when the test ends, which fails if it was not made.
func closes(t *testing.T, b *bed, err error) {
	t.Helper()
	if b != nil {
		t.Cleanup(func() {
			if err := b.close(); err != nil {
				t.Error(err)
			}
		})
	}
	if err != nil {
		t.Fatal(err)
	}
}

// must runs a docker command that has to succeed.
func (b *bed) must(t *testing.T, args ...string) string {
	t.Helper()
	out, err := b.docker(t.Context(), args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// mustCome waits for something that has to become true.
func (b *bed) mustCome(t *testing.T, what string, try func() error) {
	t.Helper()
	if err := until(t.Context(), try); err != nil {
		t.Errorf("%s: %v", what, err)
	}
}
