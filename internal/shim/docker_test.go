package shim

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/particle-net/particle/internal/lab"
	"github.com/particle-net/particle/internal/netnstest"
	"github.com/particle-net/particle/internal/runtimeapi"
)

// Both regimes of Docker: 20.10 prepares the network before `runc create`, the
// current engine after it.
func TestDocker(t *testing.T) {
	netnstest.Require(t, os.Geteuid() == 0, "root")
	for _, name := range []string{lab.EngineDebian, lab.EngineCurrent} {
		t.Run(name, func(t *testing.T) {
			e := newEngine(t, name)
			t.Run("others without the plugin", func(t *testing.T) { e.testOthers(t, "bridge", "plain") })
			t.Run("member without the plugin", e.testNoPlugin)
			e.servePlugin(t)
			t.Run("others", func(t *testing.T) { e.testOthers(t, "bridge", "plain", "none", "host") })
			t.Run("member", e.testMember)
			t.Run("confinement", e.testConfinement)
			t.Run("joiner", e.testJoiner)
			t.Run("own namespace", e.testOwn)
			t.Run("refusals", e.testRefusals)
			t.Run("failed create", e.testFailedCreate)
			t.Run("failed claim", e.testFailedClaim)
		})
	}
}

func (e *engine) testOthers(t *testing.T, networks ...string) {
	for _, network := range networks {
		run := []string{"run", "--rm", "--network", network, lab.TestImage}
		if status := e.docker(t, append(run, "cat", "/proc/self/status")...); !netCaps(t, status) {
			t.Errorf("network %s: Docker's default capabilities were taken", network)
		}
		if code, said := e.fails(t, append(run, "sh", "-c", "exit 7")...); code != 7 || said != "" {
			t.Errorf("network %s: exit code %d, %q", network, code, said)
		}
		if code, _ := e.fails(t, append(run, "/nonexistent")...); code != 127 {
			t.Errorf("network %s: exit code %d of a missing program", network, code)
		}
	}
	id := e.docker(t, "run", "-d", "--init", "--network", "plain", lab.TestImage, "sleep", "600")
	if out := e.docker(t, "exec", id, "sh", "-c", "cat /proc/self/status; echo $0"); !netCaps(t, out) {
		t.Error("exec: Docker's default capabilities were taken")
	}
	if code, _ := e.fails(t, "exec", id, "sh", "-c", "exit 9"); code != 9 {
		t.Errorf("exec: exit code %d", code)
	}
	for _, command := range []string{"pause", "unpause", "stop", "start", "restart", "kill", "rm"} {
		e.docker(t, command, id)
	}
}

func (e *engine) testNoPlugin(t *testing.T) {
	const want = "network jobs is a particle network, and the particle plugin does not answer: "
	// A first start has no network id on disk, a network the index knows.
	e.in(t, "sh", "-c", "echo "+e.jobs+" jobs >/run/particle/networks")
	if _, said := e.fails(t, "run", "--rm", "--network", "jobs", lab.TestImage, "true"); !strings.Contains(said, want) {
		t.Errorf("docker run said %q", said)
	}
}

func (e *engine) testMember(t *testing.T) {
	id := e.docker(t, "run", "-d", "--init", "--network", "jobs", "--name", "member", "--hostname", "own", "--add-host", "zz:10.77.0.99", lab.TestImage, "sleep", "600")
	claim := await(t, e, claimOf(id)).Claim
	address := e.docker(t, "inspect", "-f", "{{.NetworkSettings.Networks.jobs.IPAddress}}", id)
	found := slices.ContainsFunc(claim.Hosts, func(l runtimeapi.HostLine) bool {
		return l.Addr.String() == address && slices.Contains(l.Names, "own")
	})
	if !found || claim.Hostname != "own" || claim.Name != "member" || string(claim.Network) != e.jobs {
		t.Errorf("claim %+v does not have %s for own", claim, address)
	}
	if got := e.docker(t, "inspect", "-f", "{{.State.Pid}}", id); got != strconv.Itoa(claim.Pid) {
		t.Errorf("claim for pid %d, Docker says %s", claim.Pid, got)
	}
	if !strings.HasSuffix(claim.Cgroup, id) {
		t.Errorf("claim for cgroup %q", claim.Cgroup)
	}
	for _, exec := range [][]string{{"exec", id}, {"exec", "--privileged", id}, {"exec", "-u", "nobody", id}} {
		if exec[1] == "--privileged" && e.fullCaps(t) == "" {
			continue
		}
		out := e.docker(t, append(exec, "sh", "-c", "readlink /proc/self/ns/net; cat /proc/self/status")...)
		netns, status, _ := strings.Cut(out, "\n")
		if netns != e.netns(t) || netCaps(t, status) {
			t.Errorf("docker %v: in %s with %s", exec, netns, status)
		}
	}
	if status := e.docker(t, "exec", id, "cat", "/proc/1/status"); netCaps(t, status) {
		t.Errorf("the container's first process has %s", status)
	}
	if conf := e.docker(t, "exec", id, "cat", "/etc/resolv.conf"); strings.Contains(conf, "127.0.0.11") || !strings.Contains(conf, "nameserver") {
		t.Errorf("resolv.conf: %q", conf)
	}
	e.docker(t, "stop", "-t", "1", id)
	await(t, e, releaseOf(id))
	e.noResolvConf(t, id)
	e.docker(t, "start", id)
	await(t, e, claimOf(id))
	e.docker(t, "rm", "-f", id)
	await(t, e, releaseOf(id))
	e.noResolvConf(t, id)
}

// fullCaps is empty where `docker exec --privileged` itself is impossible: the
// runtime must be able to give all capabilities the engine knows.
func (e *engine) fullCaps(t *testing.T) string {
	t.Helper()
	out, err := e.host.Exec(e.ctx, "docker", "run", "--rm", "--privileged", lab.TestImage, "echo", "yes")
	if err != nil {
		t.Logf("this machine starts no privileged container: %v", err)
		return ""
	}
	return out
}

func (e *engine) noResolvConf(t *testing.T, id string) {
	t.Helper()
	if _, err := os.Stat(e.host.Root() + "/run/particle/resolv/" + id); err == nil {
		t.Errorf("resolv.conf of %s is left", id)
	}
}

func (e *engine) testJoiner(t *testing.T) {
	id := e.docker(t, "run", "-d", "--init", "--network", "jobs", lab.TestImage, "sleep", "600")
	first := e.docker(t, "run", "-d", "--init", "--network", "container:"+id, lab.TestImage, "sleep", "600")
	second := e.docker(t, "run", "-d", "--init", "--network", "container:"+first, lab.TestImage, "sleep", "600")
	for _, want := range []struct{ joiner, joined string }{{first, id}, {second, first}} {
		claim := await(t, e, claimOf(want.joiner)).Claim
		if string(claim.Join) != want.joined || string(claim.Network) != e.jobs || !strings.HasSuffix(claim.Cgroup, want.joiner) {
			t.Errorf("claim %+v, want one that joins %s", claim, want.joined)
		}
	}
	e.docker(t, "rm", "-f", second)
	await(t, e, releaseOf(second))
	for _, target := range []string{id, first} {
		out := e.docker(t, "run", "--rm", "--network", "container:"+target, lab.TestImage, "sh", "-c", "readlink /proc/self/ns/net; cat /proc/self/status")
		netns, status, _ := strings.Cut(out, "\n")
		if netns != e.netns(t) || netCaps(t, status) {
			t.Errorf("joined: in %s with %s", netns, status)
		}
		conf := e.docker(t, "run", "--rm", "--network", "container:"+target, lab.TestImage, "cat", "/etc/resolv.conf")
		if want := e.docker(t, "exec", id, "cat", "/etc/resolv.conf"); conf != want {
			t.Errorf("resolv.conf of the joiner is %q, of the other %q", conf, want)
		}
	}
	if status := e.docker(t, "exec", first, "cat", "/proc/self/status"); netCaps(t, status) {
		t.Errorf("exec in a joiner: %s", status)
	}
	_, said := e.fails(t, "run", "--rm", "--cap-add", "NET_ADMIN", "--network", "container:"+id, lab.TestImage, "true")
	if want := "--cap-add NET_ADMIN would let it change or listen in on the network of the container it joins"; !strings.Contains(said, want) {
		t.Errorf("docker run said %q", said)
	}
	unknown := []string{"run", "--rm", "--privileged", "--network", "container:" + id}
	for _, file := range []string{"/etc/hosts", "/etc/hostname", "/etc/resolv.conf"} {
		unknown = append(unknown, "-v", file+":"+file)
	}
	if _, said := e.fails(t, append(unknown, lab.TestImage, "true")...); !strings.Contains(said, "nothing leads to what Docker knows of it") {
		t.Errorf("docker run said %q", said)
	}
	e.docker(t, "rm", "-f", first, id)
	await(t, e, releaseOf(id))
	// A joiner of a stranger keeps what it has.
	id = e.docker(t, "run", "-d", "--init", "--network", "plain", lab.TestImage, "sleep", "600")
	if status := e.docker(t, "run", "--rm", "--network", "container:"+id, lab.TestImage, "cat", "/proc/self/status"); !netCaps(t, status) {
		t.Error("a joiner of another network's container was confined")
	}
	e.docker(t, "rm", "-f", id)
}

// A container with a namespace of its own is as Docker makes it, but is claimed.
func (e *engine) testOwn(t *testing.T) {
	id := e.docker(t, "run", "-d", "--init", "--network", "jobs", "--hostname", "alone", "--cap-add", "NET_ADMIN", "--sysctl", "net.core.somaxconn=100", lab.TestImage, "sleep", "600")
	claim := await(t, e, claimOf(id)).Claim
	if !claim.Own || string(claim.Network) != e.jobs || claim.Hostname != "alone" || e.docker(t, "inspect", "-f", "{{.State.Pid}}", id) != strconv.Itoa(claim.Pid) {
		t.Errorf("claim %+v", claim)
	}
	for _, exec := range [][]string{{"exec", id}, {"exec", "-u", "nobody", id}} {
		out := e.docker(t, append(exec, "sh", "-c", "readlink /proc/self/ns/net; cat /proc/sys/net/core/somaxconn; cat /proc/1/status")...)
		netns, rest, _ := strings.Cut(out, "\n")
		somaxconn, status, _ := strings.Cut(rest, "\n")
		if netns == e.netns(t) || somaxconn != "100" || !netCaps(t, status) {
			t.Errorf("docker %v: %s", exec, out)
		}
	}
	if conf := e.docker(t, "exec", id, "cat", "/etc/resolv.conf"); strings.Contains(conf, "127.0.0.11") || !strings.Contains(conf, "nameserver") {
		t.Errorf("resolv.conf: %q", conf)
	}
	e.docker(t, "stop", "-t", "1", id)
	await(t, e, releaseOf(id))
	e.noResolvConf(t, id)
	e.docker(t, "rm", id)
	id = e.docker(t, "create", "--network", "jobs", lab.TestImage, "true")
	e.docker(t, "network", "connect", "plain", id)
	e.docker(t, "start", id)
	if claim := await(t, e, claimOf(id)).Claim; !claim.Own {
		t.Errorf("claim %+v of a container on two networks", claim)
	}
	await(t, e, releaseOf(id))
	e.docker(t, "rm", "-f", id)
}

func (e *engine) testRefusals(t *testing.T) {
	for flags, want := range map[string]string{
		"--privileged":                    "start container NAME: --privileged would let it change network jobs for all containers there; remove --privileged",
		"--cap-add NET_RAW":               "would let it change or listen in on network jobs, which it shares with other containers; remove it",
		"--cap-add ALL":                   "--cap-add ALL would let it change or listen in on network jobs, which it shares with other containers; add --cap-drop NET_ADMIN --cap-drop NET_RAW",
		"--sysctl net.core.somaxconn=100": "start container NAME: --sysctl net.core.somaxconn would hold for all containers on network jobs; remove it",
		"-p 8080:80":                      "start container NAME: publishing ports (80/tcp) is not possible on network jobs; remove -p",
		"-P":                              "start container NAME: publishing ports is not possible on network jobs; remove -P",
	} {
		shared := []string{"run", "--rm", "--name", "refused", "--network", "jobs", "--label", "particle.namespace=shared"}
		args := append(append(shared, strings.Fields(flags)...), lab.TestImage, "true")
		code, said := e.fails(t, args...)
		if want := strings.Replace(want, "NAME", "refused", 1); !strings.Contains(said, want) {
			t.Errorf("docker run %s: exit code %d, said\n%s\nwant\n%s", flags, code, said, want)
		}
		t.Logf("docker run %s: exit code %d\n%s", flags, code, said)
	}
	id := e.docker(t, "create", "--network", "jobs", "--name", "refused", "--label", "particle.namespace=shared", lab.TestImage, "true")
	e.docker(t, "network", "connect", "plain", id)
	if _, said := e.fails(t, "start", id); !strings.Contains(said, "it is connected to jobs, plain; disconnect it from all but one with `docker network disconnect`") {
		t.Errorf("docker start said %q", said)
	}
	e.docker(t, "network", "disconnect", "plain", id)
	e.docker(t, "start", id)
	await(t, e, releaseOf(id))
	e.docker(t, "rm", "-f", id)
}

// When the runtime fails after the shim has done its part, nothing is left.
func (e *engine) testFailedCreate(t *testing.T) {
	id := e.docker(t, "create", "--network", "jobs", lab.TestImage, "/nonexistent")
	code, said := e.fails(t, "start", "-a", id)
	if !strings.Contains(said, "/nonexistent") {
		t.Errorf("exit code %d, said %q", code, said)
	}
	await(t, e, releaseOf(id))
	e.noResolvConf(t, id)
	e.docker(t, "rm", id)
}

func (e *engine) testFailedClaim(t *testing.T) {
	id := e.docker(t, "create", "--network", "jobs", "--name", "unlucky", lab.TestImage, "true")
	code, said := e.fails(t, "start", "-a", id)
	if want := "start container unlucky: address 10.77.0.9: held by another container; remove that"; !strings.Contains(said, want) {
		t.Errorf("exit code %d, said %q", code, said)
	}
	t.Logf("exit code %d\n%s", code, said)
	pid := await(t, e, claimOf(id)).Claim.Pid
	e.eventually(t, "the container's process ends", func() bool {
		_, err := os.Stat(filepath.Join(e.host.Root(), "proc", strconv.Itoa(pid)))
		return err != nil
	})
	e.noResolvConf(t, id)
	e.docker(t, "rename", id, "lucky")
	e.docker(t, "start", "-a", id)
	await(t, e, releaseOf(id))
	e.docker(t, "rm", id)
}
