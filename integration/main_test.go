package integration

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/particle-net/particle/internal/lab"
)

// programs are built once for all tests.
var programs struct {
	bin   string // particle, particle-docker-plugin, particle-runtime, particle-lab, probe, sockets, sockets386
	cli   lab.DockerCLI
	disks string // where those of hosts are kept
}

// built is the variable that names the directory of the programs if they are built: a
// virtual machine would take long.
const built = "PARTICLE_BUILT"

// number is how many of something there are: few, or all of them in a soak.
func number(few, all int) int {
	if soak {
		return all
	}
	return few
}

func TestMain(m *testing.M) {
	lab.MaybeInit()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "integration: these tests boot Docker hosts in namespaces; run them as root")
		return 1
	}
	var err error
	if programs.bin = os.Getenv(built); programs.bin == "" {
		if programs.bin, err = os.MkdirTemp("", "particle-integration-"); err == nil {
			defer os.RemoveAll(programs.bin)
			err = build()
		}
	}
	if err == nil {
		programs.cli, err = lab.CLI(context.Background(), os.Stderr)
	}
	if err == nil {
		programs.disks, err = os.MkdirTemp("", "particle-disks-")
		defer os.RemoveAll(programs.disks)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "integration:", err)
		return 1
	}
	return m.Run()
}

func build() error {
	err := compile(runtime.GOARCH, "", "../cmd/particle", "../cmd/particle-docker-plugin", "../cmd/particle-runtime", "../cmd/particle-lab", "./probe", "./sockets")
	if err == nil {
		err = compile("386", "sockets386", "./sockets")
	}
	return err
}

// compile makes static programs under their own names, or one under the given name.
func compile(arch, name string, packages ...string) error {
	cmd := exec.Command("go", append([]string{"build", "-trimpath", "-ldflags=-s -w", "-o", programs.bin + "/" + name}, packages...)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH="+arch)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build for %s: %w\n%s", arch, err, out)
	}
	return nil
}

// engines are the Docker Engines to test on.
func engines() []string {
	if set := os.Getenv("PARTICLE_ENGINES"); set != "" {
		return strings.FieldsFunc(set, func(r rune) bool { return r == ',' || r == ' ' })
	}
	return []string{lab.EngineDebian, lab.EngineCurrent}
}

// isFirst says whether an engine is the one that shows what is not the engine's.
func isFirst(engine string) bool { return engine == engines()[0] }

// lastEngine is the one that can do most.
func lastEngine() string { return engines()[len(engines())-1] }

// eachEngine runs fn as a subtest on every engine, beside each other and beside all
// other tests: when one waits, the others go on. They end after the function that
// calls it.
func eachEngine(t *testing.T, fn func(t *testing.T, engine string)) {
	t.Parallel()
	for _, engine := range engines() {
		t.Run(engine, func(t *testing.T) {
			t.Parallel()
			fn(t, engine)
		})
	}
}

// firstEngine runs fn as a subtest on the first engine, which shows what is the kernel's
// or the store's and not the engine's, and in a soak on each.
func firstEngine(t *testing.T, fn func(t *testing.T, engine string)) {
	if soak {
		eachEngine(t, fn)
		return
	}
	t.Parallel()
	engine := engines()[0]
	t.Run(engine, func(t *testing.T) { fn(t, engine) })
}

func program(name string) string { return filepath.Join(programs.bin, name) }
