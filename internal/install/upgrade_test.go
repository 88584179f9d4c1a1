package install_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/particle-net/particle"
	"github.com/particle-net/particle/internal/hostpath"
	"github.com/particle-net/particle/internal/install"
	"github.com/particle-net/particle/internal/lab"
)

// An upgrade replaces programs that containers depend on: what they were denied
// before they are denied all the while, by either guard, and nothing of theirs ends.
func TestUpgradeKeepsSettingsAndContainers(t *testing.T) {
	before := olderVersion(t)
	for _, engine := range []string{lab.EngineDebian, lab.EngineCurrent} {
		t.Run(engine, func(t *testing.T) {
			h := boot(t, "inst-up-"+engine, engine, "{}")
			h.install(t, install.Options{From: before, NoVerify: true, Settings: map[string]string{"PARTICLE_READY": "2"}})
			if err := lab.LoadImage(t.Context(), h.Host); err != nil {
				t.Fatal(err)
			}
			h.version(t, olderNumber)
			h.sh(t, "docker network create -d particle --ipam-driver particle --subnet 10.77.0.0/16 jobs")
			h.sh(t, "docker network create -d particle --ipam-driver particle --subnet 10.78.0.0/16 -o particle.guard=seccomp calls")
			h.sh(t, "docker run -d --name web --network jobs "+lab.TestImage+" probe sleep")
			h.sh(t, "docker run -d --name pest --network jobs "+lab.TestImage+" probe pester 10.77.0.2:80")
			h.sh(t, "docker run -d --name gnat --network calls "+lab.TestImage+" probe pester 10.78.0.200:80")
			pids := "docker inspect -f '{{.State.Pid}}' web pest gnat"
			running := h.sh(t, pids)
			h.pestered(t, "pest", "gnat")
			h.install(t, install.Options{})
			h.version(t, particle.Version)
			h.pestered(t, "pest", "gnat")
			if got := h.sh(t, pids); got != running {
				t.Errorf("the containers' processes are %q after the upgrade, and were %q before", got, running)
			}
			h.keptSettings(t)
			h.sh(t, "docker rm -f pest gnat; docker network rm calls")
			h.removedByForce(t)
		})
	}
}

// olderNumber is what a version before this one calls itself.
const olderNumber = "0.0.9"

// olderVersion builds the programs as another version, which differs in its name alone.
func olderVersion(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	source, err := filepath.Abs("../../particle.go")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(source)
	if err != nil {
		t.Fatal(err)
	}
	changed := strings.Replace(string(text), `"`+particle.Version+`"`, `"`+olderNumber+`"`, 1)
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{source: join(dir, "particle.go")}})
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{"particle.go": []byte(changed), "overlay.json": overlay} {
		if err := os.WriteFile(join(dir, name), content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	bin := join(dir, "bin")
	if err := build(bin, "-overlay", join(dir, "overlay.json")); err != nil {
		t.Fatal(err)
	}
	return bin
}

// version fails unless the plugin is of that version.
func (h host) version(t *testing.T, want string) {
	t.Helper()
	status, err := install.Status(t.Context(), h.api)
	if err != nil {
		t.Fatal(err)
	}
	if status.Version != want {
		t.Fatalf("the plugin is of version %s, want %s", status.Version, want)
	}
}

// pestered waits until each of these containers was refused again, and none was
// allowed.
func (h host) pestered(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		said := func() string { return h.sh(t, "docker logs "+name+" 2>&1 | tail -n 1") }
		before := said()
		eventually(t, name+" is refused again", func() bool {
			if now := said(); now != before {
				if !strings.HasPrefix(now, "refused ") {
					t.Fatalf("%s: %s", name, now)
				}
				return true
			}
			return false
		})
	}
}

func (h host) keptSettings(t *testing.T) {
	t.Helper()
	plugin, _, err := h.api.PluginInspectWithRaw(t.Context(), hostpath.PluginName)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(strings.Join(plugin.Settings.Env, " "), "PARTICLE_READY=2") {
		t.Errorf("the plugin's settings after the upgrade are %q", plugin.Settings.Env)
	}
	status, err := install.Status(t.Context(), h.api)
	if err != nil {
		t.Fatal(err)
	}
	if len(status.Networks) != 2 {
		t.Errorf("status after the upgrade is %+v", status.Networks)
	}
}

// removedByForce checks that uninstalling is refused for as long as a network and a
// container are there, unless it is forced.
func (h host) removedByForce(t *testing.T) {
	t.Helper()
	err := install.Remove(t.Context(), h.api, install.RemoveOptions{}, progress(t))
	if err == nil || !strings.Contains(err.Error(), "networks jobs") || !strings.Contains(err.Error(), "containers web") {
		t.Errorf("uninstalling under a running container says %v", err)
	}
	if err := install.Remove(t.Context(), h.api, install.RemoveOptions{Force: true}, progress(t)); err != nil {
		t.Fatal(err)
	}
	if left := h.sh(t, "docker ps -q; docker network ls -q --filter name=jobs; ls -d /run/particle /var/lib/particle 2>/dev/null || true"); left != "" {
		t.Errorf("after a forced removal there is %q", left)
	}
}
