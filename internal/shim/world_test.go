package shim

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/particle-net/particle/internal/lab"
	"github.com/particle-net/particle/internal/runtimeapi"
)

const (
	webID   = "aaaa456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	sideID  = "bbbb456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	network = "4f2a456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
)

// hostVariable makes the test binary a shim on the host that it describes, so
// that the tests see what containerd sees: a process that becomes the runtime.
const hostVariable = "PARTICLE_SHIM_TEST_HOST"

func TestMain(m *testing.M) {
	if raw, ok := os.LookupEnv(hostVariable); ok {
		var h Host
		if err := json.Unmarshal([]byte(raw), &h); err != nil {
			panic(err)
		}
		os.Exit(h.Run(ParseCall(os.Args[1:]), os.Environ()))
	}
	lab.MaybeInit()
	os.Exit(m.Run())
}

// world is a host on disk, with a script in place of runc that tells its
// arguments.
type world struct {
	t    *testing.T
	dir  string
	host Host
}

const fakeRunc = `#!/bin/sh
[ -n "$RUNC_STDERR" ] && echo "$RUNC_STDERR" >&2
if [ -n "$RUNC_PROBE" ]; then [ -e "$RUNC_PROBE" ] && echo probe present || echo probe absent; fi
[ -n "$RUNC_CGROUP" ] && grep ^0:: /proc/self/cgroup
[ -n "$RUNC_FILTERS" ] && grep Seccomp_filters: /proc/self/status
printf '%s\n' "$0" "$@"
exit ${RUNC_EXIT:-0}
`

func newWorld(t *testing.T) *world {
	t.Helper()
	dir := t.TempDir()
	w := &world{t: t, dir: dir, host: Host{
		Config:     filepath.Join(dir, "runtime.json"),
		Namespaces: filepath.Join(dir, "netns"),
		Resolv:     filepath.Join(dir, "resolv"),
		Holder:     filepath.Join(dir, "holder"),
		Index:      filepath.Join(dir, "networks"),
		Docker:     filepath.Join(dir, "docker.sock"),
		ResolvConf: filepath.Join(dir, "host-resolv.conf"),
		Proc:       "/proc",
	}}
	w.write("sbin/runc", fakeRunc)
	if err := os.Chmod(w.path("sbin/runc"), 0o755); err != nil {
		t.Fatal(err)
	}
	w.write("runtime.json", `{"runtime":"`+w.path("sbin/runc")+`","socket":"`+w.path("particle.sock")+`"}`)
	w.write("host-resolv.conf", "nameserver 127.0.0.53\n")
	w.write("netns/"+network, "")
	return w
}

func (w *world) path(name string) string { return filepath.Join(w.dir, name) }

func (w *world) write(name, content string) {
	w.t.Helper()
	path := w.path(name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o640); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) read(name string) string {
	w.t.Helper()
	raw, err := os.ReadFile(w.path(name))
	if err != nil {
		w.t.Fatal(err)
	}
	return string(raw)
}

// container writes what Docker writes: the container's directory and a bundle.
func (w *world) container(id, mode, networks, hostConfig string) {
	w.t.Helper()
	dir := "containers/" + id
	w.write(dir+"/config.v2.json", `{"ID":"`+id+`","Name":"/web","Config":{"Hostname":"w1"},"NetworkSettings":{"Networks":{`+networks+`}}}`)
	if hostConfig != "" {
		hostConfig = "," + hostConfig
	}
	w.write(dir+"/hostconfig.json", `{"NetworkMode":"`+mode+`"`+hostConfig+`}`)
	w.write(dir+"/resolv.conf", "nameserver 10.0.0.2\nnameserver 127.0.0.11\n")
	w.write(dir+"/hosts", "127.0.0.1 localhost\n10.77.0.9 w1\n")
	w.bundle(id, w.spec(id, "", `{"type":"network"}`))
}

// label gives the container a label particle.namespace.
func (w *world) label(id, value string) {
	w.t.Helper()
	file := "containers/" + id + "/config.v2.json"
	w.write(file, strings.Replace(w.read(file), `"Hostname":"w1"`, `"Hostname":"w1","Labels":{"particle.namespace":"`+value+`"}`, 1))
}

func (w *world) bundle(id, spec string) { w.write("moby/"+id+"/config.json", spec) }

// spec is a specification whose files are those of the container with this id.
func (w *world) spec(files, more, namespace string) string {
	mount := func(name string) string {
		return `{"destination":"/etc/` + name + `","source":"` + w.path("containers/"+files+"/"+name) + `"}`
	}
	return `{"x":18446744073709551615,"process":{"capabilities":{"bounding":["CAP_NET_RAW","CAP_KILL"]}},"mounts":[` +
		mount("resolv.conf") + `,` + mount("hostname") + `,` + mount("hosts") + `]` + more +
		`,"linux":{"sysctl":{"net.a":"1"},"namespaces":[` + namespace + `]}}`
}

func (w *world) tenantSpec(id, annotations string) string {
	want := strings.NewReplacer(
		`"CAP_NET_RAW",`, ``,
		`"net.a":"1"`, ``,
		`{"type":"network"}]`, `{"type":"network","path":"`+w.path("netns/"+network)+`"}],"readonlyPaths":["/proc/sys/net"]`,
		w.path("containers/"+id+"/resolv.conf"), w.path("resolv/"+id),
	).Replace(w.spec(id, "", `{"type":"network"}`))
	return strings.TrimSuffix(want, "}") + annotations + "}"
}

// state writes runc's record of a container in the tenant namespace.
func (w *world) state(id string, pid int, start uint64, labels ...string) {
	w.t.Helper()
	raw, err := json.Marshal(map[string]any{
		"id": id, "init_process_pid": pid, "init_process_start": start,
		"config": map[string]any{
			"labels":     append([]string{"bundle=" + w.path("moby/"+id)}, labels...),
			"namespaces": []map[string]string{{"type": "NEWPID"}, {"type": "NEWNET", "path": w.path("netns/" + network)}},
		},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.write("root/"+id+"/state.json", string(raw))
}

func (w *world) owner() []string {
	return []string{annotationDir + "=" + w.path("containers/"+webID), annotationNetwork + "=" + network}
}

func (w *world) joiner() []string {
	return []string{annotationDir + "=" + w.path("containers/"+sideID), annotationNetwork + "=" + network, annotationJoin + "=" + webID}
}

type result struct {
	code           int
	stdout, stderr string
}

// run executes the shim as containerd does.
func (w *world) run(env []string, args ...string) result {
	w.t.Helper()
	raw, err := json.Marshal(w.host)
	if err != nil {
		w.t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		w.t.Fatal(err)
	}
	cmd := exec.Command(self, args...)
	cmd.Env = append(append(os.Environ(), hostVariable+"="+string(raw)), env...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		w.t.Fatal(err)
	}
	return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

func (w *world) create(id string) result {
	w.t.Helper()
	return w.run(nil, "--root", w.path("root"), "--log", w.path("log.json"), "--log-format", "json",
		"create", "--bundle", w.path("moby/"+id), id)
}

// passed checks that the command line reached the runtime as it was.
func (w *world) passed(r result, args ...string) {
	w.t.Helper()
	want := strings.Join(append([]string{w.path("sbin/runc")}, args...), "\n") + "\n"
	if r.code != 0 || !strings.HasSuffix(r.stdout, want) {
		w.t.Fatalf("exit code %d, %s\nruntime got\n%s\nwant\n%s", r.code, r.stderr, r.stdout, want)
	}
}

// logged returns the message containerd would report.
func (w *world) logged() string {
	w.t.Helper()
	var last struct{ Level, Msg, Time string }
	log := w.read("log.json")
	if !strings.HasSuffix(log, "}\n") {
		w.t.Fatalf("log %q does not end a line", log)
	}
	dec := json.NewDecoder(strings.NewReader(log))
	for dec.More() {
		if err := dec.Decode(&last); err != nil {
			w.t.Fatal(err)
		}
	}
	if _, err := time.Parse(time.RFC3339, last.Time); err != nil || last.Level != "error" {
		w.t.Fatalf("log line %+v: %v", last, err)
	}
	return last.Msg
}

// plugin is the other end of the socket, with an answer for each question.
type plugin struct {
	mu      sync.Mutex
	asked   []runtimeapi.Request
	place   runtimeapi.Placement
	claimed *runtimeapi.Addresses
	old     bool // it knows nothing of namespaces of containers' own
	refusal string
}

func (p *plugin) Handle(_ context.Context, req runtimeapi.Request) (runtimeapi.Reply, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked = append(p.asked, req)
	if p.refusal != "" {
		return runtimeapi.Reply{}, errors.New(p.refusal)
	}
	place := p.place
	place.Own = place.Member && !p.old && req.Place != nil && req.Place.Own
	return runtimeapi.Reply{Place: &place, Claim: &runtimeapi.Claimed{Addresses: p.claimed}}, nil
}

// answer changes what it will say.
func (p *plugin) answer(place runtimeapi.Placement, refusal string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.place, p.refusal = place, refusal
}

func (p *plugin) questions() []runtimeapi.Request {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.asked
}

func (w *world) placement() runtimeapi.Placement {
	return runtimeapi.Placement{Member: true, Network: network, NetworkName: "jobs", Namespace: w.path("netns/" + network)}
}

// plugin serves the socket for the rest of the test. Its answer to Place is
// that the container is a member.
func (w *world) plugin() *plugin {
	w.t.Helper()
	p := &plugin{place: w.placement()}
	l, err := runtimeapi.Listen(w.path("particle.sock"))
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- runtimeapi.Serve(ctx, l, p, 5*time.Second) }()
	w.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Error(err)
		}
	})
	return p
}
