package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sync/errgroup"

	"github.com/particle-net/particle/internal/lab"
)

// cluster makes the lab's hosts a cluster that the first one serves, with options of
// init, and waits until each sees all.
func (b *bed) cluster(ctx context.Context, options ...string) error {
	first, err := b.on("h1")
	if err != nil {
		return err
	}
	if _, err := first.particle(ctx, append([]string{"cluster", "init"}, options...)...); err != nil {
		return err
	}
	token, err := first.particle(ctx, "cluster", "token", "-q")
	if err != nil {
		return err
	}
	return b.each(func(b *bed) error {
		if b.host.Name() != "h1" {
			if _, err := b.particle(ctx, "cluster", "join", first.host.Addr4().String(), "--token", token); err != nil {
				return err
			}
		}
		return b.alive(ctx, len(b.lab.Hosts()))
	})
}

// alive waits until the host sees n hosts that are alive.
func (b *bed) alive(ctx context.Context, n int) error {
	return until(ctx, func() error {
		out, err := b.particle(ctx, "cluster", "status")
		if err == nil && strings.Count(out, "alive") < n {
			err = errors.New(out)
		}
		return err
	})
}

// shares makes a network on the host, and waits until all have it.
func (b *bed) shares(ctx context.Context, network string, options ...string) error {
	args := append([]string{"network", "create", "-d", "particle", "--ipam-driver", "particle"}, options...)
	if _, err := b.docker(ctx, append(args, network)...); err != nil {
		return err
	}
	return b.each(func(b *bed) error {
		return until(ctx, func() error {
			_, err := b.network(ctx, network)
			return err
		})
	})
}

// addresses are a running container's own, as Docker gave them.
func (b *bed) addresses(ctx context.Context, container string) (v4, v6 string, err error) {
	out, err := b.docker(ctx, "inspect", "-f",
		"{{range .NetworkSettings.Networks}}{{.IPAddress}} {{.GlobalIPv6Address}}{{end}}", container)
	v4, v6, _ = strings.Cut(out, " ")
	return v4, v6, err
}

// burst starts n containers that stay, eight at a time.
func (b *bed) burst(ctx context.Context, n int, network string) error {
	var group errgroup.Group
	group.SetLimit(8)
	for range n {
		group.Go(func() error {
			_, err := b.docker(ctx, "run", "-d", "--network", network, lab.TestImage, "probe", "sleep")
			return err
		})
	}
	return group.Wait()
}

// clear removes all containers, one after the other: Docker 20.10 loses count of
// endpoints that go at once.
func (b *bed) clear(ctx context.Context) error {
	all, err := b.docker(ctx, "ps", "-aq")
	for _, id := range strings.Fields(all) {
		_, rm := b.docker(ctx, "rm", "-f", id)
		err = errors.Join(err, rm)
	}
	return err
}

// cmdFor runs a command on several hosts; what it prints is the last one's:
// for h1 h2 do docker ....
func cmdFor(ts *testscript.TestScript, neg bool, args []string) {
	for i, host := range args {
		if host == "do" {
			for _, host := range args[:i] {
				cmdOn(ts, neg, append([]string{host}, args[i+1:]...))
			}
			return
		}
	}
	ts.Fatalf("usage: for HOST... do COMMAND...")
}

// cmdAddress sets variables to a container's addresses: address NAME V4 V6.
func cmdAddress(ts *testscript.TestScript, _ bool, args []string) {
	v4, v6, err := sessionOf(ts).bed.addresses(context.Background(), args[0])
	ts.Check(err)
	ts.Setenv(args[1], v4)
	ts.Setenv(args[2], v6)
}

// cmdBurst starts containers: burst N NETWORK.
func cmdBurst(ts *testscript.TestScript, neg bool, args []string) {
	n, err := strconv.Atoi(args[0])
	ts.Check(err)
	check(ts, neg, sessionOf(ts).bed.burst(context.Background(), n, args[1]))
}

func cmdClear(ts *testscript.TestScript, _ bool, _ []string) {
	ts.Check(sessionOf(ts).bed.clear(context.Background()))
}

// prints runs a command and compares all that it says: PATTERN docker|particle ....
func prints(s *session, args []string) error {
	pattern, err := regexp.Compile("(?m)" + args[0])
	if err != nil {
		return err
	}
	name := programs.cli.Path
	if args[1] == "particle" {
		name = program("particle")
	}
	out, err := s.bed.prepare(context.Background(), name, args[2:]...).CombinedOutput()
	if err == nil && !pattern.Match(out) {
		err = fmt.Errorf("%s does not match:\n%s", args[0], out)
	}
	return err
}

// cmdJoin makes the lab's hosts a cluster that h1 serves: join [--encrypt].
func cmdJoin(ts *testscript.TestScript, _ bool, options []string) {
	ts.Check(sessionOf(ts).bed.cluster(context.Background(), options...))
}

// encrypts says whether the kernel has WireGuard, which it must with
// PARTICLE_REQUIRE=wireguard.
func encrypts() (bool, error) {
	err := exec.Command("unshare", "--net", "ip", "link", "add", "wg0", "type", "wireguard").Run()
	if err != nil && os.Getenv("PARTICLE_REQUIRE") == "wireguard" {
		return false, errors.New("the kernel has no WireGuard, and PARTICLE_REQUIRE asks for it")
	}
	return err == nil, nil
}
