package integration

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/particle-net/particle/internal/lab"
	"github.com/particle-net/particle/internal/vm"
)

func TestScripts(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		left := &findings{}
		// After the scripts, which run as parallel subtests.
		t.Cleanup(func() {
			for _, err := range left.errs {
				t.Error(err)
			}
		})
		testscript.Run(t, testscript.Params{
			Files:               scripts(t),
			RequireUniqueNames:  true,
			RequireExplicitExec: true,
			Setup: func(env *testscript.Env) error {
				env.Setenv("ENGINE", engine)
				env.Values[bedKey{}] = &session{engine: engine, left: left}
				return nil
			},
			Condition: func(name string) (bool, error) {
				switch name {
				case "wireguard":
					return encrypts()
				case "systemd":
					return os.Getenv(initVar) == "systemd", nil
				case "second": // the first engine has shown what is not the engine's
					return !isFirst(engine) && !soak, nil
				case "earlier": // the last one shows it, and what it alone can do
					return engine != lastEngine() && !soak, nil
				default:
					return name == engine, nil
				}
			},
			Cmds: map[string]func(*testscript.TestScript, bool, []string){
				"lab":        cmdLab,
				"on":         cmdOn,
				"underlay":   cmdUnderlay,
				"join":       cmdJoin,
				"mesh":       cmdMesh,
				"forge":      cmdForge,
				"for":        cmdFor,
				"follow":     cmdFollow,
				"address":    cmdAddress,
				"burst":      cmdBurst,
				"clear":      cmdClear,
				"docker":     cmdDocker,
				"particle":   cmdParticle,
				"host":       onNode(func(s *session) *lab.Node { return s.bed.host.Node }),
				"internet":   onNode(func(s *session) *lab.Node { return s.bed.lab.Internet() }),
				"serve":      cmdServe,
				"eventually": cmdEventually,
				"dockerd":    cmdDockerd,
				"plugin":     cmdPlugin,
				"reboot":     cmdReboot,
				"power":      cmdPower,
				"etcd":       cmdEtcd,
				"settle":     cmdSettle,
				"clean":      cmdClean,
				"put":        cmdPut,
				"take":       cmdTake,
				"same":       cmdSame,
				"image":      cmdImage,
				"creators":   cmdCreators,
			},
		})
	})
}

// scripts are those of testdata, and in a virtual machine those that change the whole
// machine, such as its clock.
func scripts(t *testing.T) []string {
	t.Helper()
	machine, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("testdata/*.txtar")
	if machine == vm.Hostname && err == nil {
		var more []string
		more, err = filepath.Glob("testdata/vm/*.txtar")
		files = append(files, more...)
	}
	if err != nil {
		t.Fatal(err)
	}
	return files
}

type bedKey struct{}

// session is the state of one script.
type session struct {
	engine string
	bed    *bed
	left   *findings
	etcd   *externalEtcd // nil before `etcd start`
}

// findings are what labs left behind. A script is over by then, so it cannot
// fail any more.
type findings struct {
	mu   sync.Mutex
	errs []error
}

func (f *findings) add(script string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err != nil {
		f.errs = append(f.errs, fmt.Errorf("%s: %w", script, err))
	}
}

func sessionOf(ts *testscript.TestScript) *session { return ts.Value(bedKey{}).(*session) }

// check fails the script unless err is as the leading ! says.
func check(ts *testscript.TestScript, neg bool, err error) {
	switch {
	case neg && err == nil:
		ts.Fatalf("unexpected success")
	case !neg && err != nil:
		ts.Fatalf("%v", err)
	}
}

// cmdLab boots hosts: lab [plain] [live-restore] [systemd] [HOSTS].
func cmdLab(ts *testscript.TestScript, _ bool, args []string) {
	s := sessionOf(ts)
	o, plain := lab.Options{Engine: s.engine}, false
	for _, arg := range args {
		switch arg {
		case "plain":
			plain = true
		case "live-restore":
			o.LiveRestore = true
		case "systemd":
			o.Systemd = true
		default:
			n, err := strconv.Atoi(arg)
			if err != nil {
				ts.Fatalf("usage: lab [plain] [live-restore] [systemd] [HOSTS]")
			}
			o.Hosts = n
		}
	}
	b, err := newBed(context.Background(), o, plain)
	if b != nil {
		s.bed = b
		ts.Defer(func() { s.left.add(ts.Name(), b.close()) })
	}
	ts.Check(err)
	for i, host := range b.lab.Hosts() {
		ts.Setenv(fmt.Sprintf("HOST%d", i+1), host.Addr4().String())
		ts.Setenv(fmt.Sprintf("HOST%dSIX", i+1), host.Addr6().String())
	}
	ts.Setenv("BIN", programs.bin)
	use(ts, b)
}

// use lets the commands that follow speak to the bed's host.
func use(ts *testscript.TestScript, b *bed) {
	sessionOf(ts).bed = b
	for _, pair := range b.environ() {
		key, value, _ := strings.Cut(pair, "=")
		ts.Setenv(key, value)
	}
	ts.Setenv("HOST", b.host.Addr4().String())
}

// cmdOn chooses the host: on h2. With a command after it, only that is run there:
// on h2 docker ps.
func cmdOn(ts *testscript.TestScript, neg bool, args []string) {
	before := sessionOf(ts).bed
	b, err := before.on(args[0])
	ts.Check(err)
	use(ts, b)
	if len(args) == 1 {
		return
	}
	defer use(ts, before)
	commands := map[string]func(*testscript.TestScript, bool, []string){
		"docker": cmdDocker, "particle": cmdParticle, "eventually": cmdEventually, "plugin": cmdPlugin, "dockerd": cmdDockerd,
		"underlay": cmdUnderlay, "clean": cmdClean, "reboot": cmdReboot, "power": cmdPower, "etcd": cmdEtcd, "settle": cmdSettle, "clear": cmdClear, "put": cmdPut, "take": cmdTake, "host": onNode(func(s *session) *lab.Node { return s.bed.host.Node }),
	}
	do := commands[args[1]]
	if do == nil {
		ts.Fatalf("usage: on HOST [docker|particle|eventually|plugin|dockerd|underlay|clean|reboot|power|etcd|settle|clear|put|take|host ...]")
	}
	do(ts, neg, args[2:])
}

// cmdUnderlay: underlay cut|heal.
func cmdUnderlay(ts *testscript.TestScript, _ bool, args []string) {
	host := sessionOf(ts).bed.host
	switch args[0] {
	case "cut":
		ts.Check(host.Cut())
	case "heal":
		ts.Check(host.Heal())
	default:
		ts.Fatalf("usage: underlay cut|heal")
	}
}

func cmdDocker(ts *testscript.TestScript, neg bool, args []string) {
	check(ts, neg, ts.Exec(programs.cli.Path, args...))
}

func cmdParticle(ts *testscript.TestScript, neg bool, args []string) {
	check(ts, neg, ts.Exec(program("particle"), args...))
}

func onNode(node func(*session) *lab.Node) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, neg bool, args []string) {
		s := sessionOf(ts)
		check(ts, neg, within(ts, s, node(s), args))
	}
}

// within runs a command on a machine of the lab.
func within(ts *testscript.TestScript, s *session, node *lab.Node, args []string) error {
	in := []string{"exec", "--name", s.bed.lab.Name(), node.Name(), "--"}
	return ts.Exec(program("particle-lab"), append(in, args...)...)
}

// cmdServe starts a program that stays: serve host|internet NAME CMD...
func cmdServe(ts *testscript.TestScript, _ bool, args []string) {
	s := sessionOf(ts)
	node, probe := s.bed.lab.Internet(), program("probe") // it has the machine's files
	if args[0] == "host" {
		node, probe = s.bed.host.Node, "/usr/local/bin/probe"
		ts.Check(s.bed.host.CopyIn(program("probe"), probe))
	}
	ts.Check(node.StartService(context.Background(), args[1], append([]string{probe}, args[2:]...)...))
}

// cmdEventually repeats a command of ours until it succeeds:
// [!] eventually docker|particle|host|clean ... or eventually matches PATTERN docker|particle ....
func cmdEventually(ts *testscript.TestScript, neg bool, args []string) {
	s := sessionOf(ts)
	commands := map[string]func() error{
		"docker":   func() error { return ts.Exec(programs.cli.Path, args[1:]...) },
		"particle": func() error { return ts.Exec(program("particle"), args[1:]...) },
		"host":     func() error { return within(ts, s, s.bed.host.Node, args[1:]) },
		"clean":    func() error { return s.bed.clean(context.Background()) },
		"matches":  func() error { return prints(s, args[1:]) },
	}
	command := commands[args[0]]
	if command == nil || (neg && args[0] == "clean") {
		ts.Fatalf("usage: [!] eventually docker|particle|host|clean ...")
	}
	ts.Check(until(context.Background(), func() error {
		err := command()
		if neg && err == nil {
			return fmt.Errorf("%s still succeeds", strings.Join(args, " "))
		}
		if neg {
			return nil
		}
		return err
	}))
}

// cmdDockerd: dockerd kill|stop|start|restart [flags], or dockerd deny bpf|notify|bpf,notify,
// which starts it again where the kernel denies that to it and to all it starts.
func cmdDockerd(ts *testscript.TestScript, _ bool, args []string) {
	ctx, host := context.Background(), sessionOf(ts).bed.host
	switch args[0] {
	case "kill":
		ts.Check(host.KillDockerd(ctx))
	case "stop":
		ts.Check(host.StopDockerd(ctx))
	case "start":
		ts.Check(host.StartDockerd(ctx, args[1:]...))
	case "restart":
		ts.Check(host.StopDockerd(ctx))
		ts.Check(host.StartDockerd(ctx, args[1:]...))
	case "deny":
		const probe = "/usr/local/bin/probe"
		ts.Check(host.CopyIn(program("probe"), probe))
		ts.Check(host.StopDockerd(ctx))
		ts.Check(host.StartDockerdBy(ctx, append([]string{probe}, args...)))
	default:
		ts.Fatalf("usage: dockerd kill|stop|start|restart [flags], dockerd deny bpf|notify|bpf,notify")
	}
}

// cmdPlugin: plugin kill|freeze|thaw.
func cmdPlugin(ts *testscript.TestScript, neg bool, args []string) {
	signals := map[string]syscall.Signal{"kill": syscall.SIGKILL, "freeze": syscall.SIGSTOP, "thaw": syscall.SIGCONT}
	check(ts, neg, sessionOf(ts).bed.signalPlugin(context.Background(), signals[args[0]]))
}

func cmdReboot(ts *testscript.TestScript, _ bool, _ []string) {
	ts.Check(sessionOf(ts).bed.host.Reboot(context.Background()))
}

func cmdClean(ts *testscript.TestScript, neg bool, _ []string) {
	check(ts, neg, sessionOf(ts).bed.clean(context.Background()))
}

// cmdPut writes a file of the script on the host: put FILE PATH.
func cmdPut(ts *testscript.TestScript, _ bool, args []string) {
	ts.Check(os.WriteFile(sessionOf(ts).bed.host.Root()+args[1], []byte(ts.ReadFile(args[0])), 0o644))
}

// cmdTake keeps a file of the host for the script: take PATH FILE.
func cmdTake(ts *testscript.TestScript, _ bool, args []string) {
	content, err := os.ReadFile(sessionOf(ts).bed.host.Root() + args[0])
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), content, 0o600))
}

// cmdSame compares a file on the host with one of the script, byte for byte.
func cmdSame(ts *testscript.TestScript, neg bool, args []string) {
	s := sessionOf(ts)
	have, err := os.ReadFile(s.bed.host.Root() + args[0])
	ts.Check(err)
	if want := ts.ReadFile(args[1]); string(have) != want {
		check(ts, neg, fmt.Errorf("%s differs:\n%s\nwant:\n%s", args[0], have, want))
	}
}
