package install_test

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/network"

	"github.com/particle-net/particle/internal/hostpath"
	"github.com/particle-net/particle/internal/install"
	"github.com/particle-net/particle/internal/lab"
	"github.com/particle-net/particle/internal/report"
)

// ownConfig is a configuration as administrators write it: with tabs, an odd
// order, another runtime, and no line break at its end.
const ownConfig = "{\n\t\"log-driver\" : \"local\",\n\t\"runtimes\": {\n\t\t\"other\": { \"path\": \"/usr/sbin/runc\" }\n\t},\n\t\"live-restore\": false}"

func TestInstallAndUninstallLeaveTheHostAsItWas(t *testing.T) {
	for _, engine := range []string{lab.EngineDebian, lab.EngineCurrent} {
		t.Run(engine, func(t *testing.T) {
			h := boot(t, "inst-"+engine, engine, ownConfig)
			before := h.sh(t, snapshot)
			h.install(t, install.Options{})
			checks, err := install.Doctor(t.Context(), h.api)
			if err != nil {
				t.Fatal(err)
			}
			if report.Failed(checks) {
				t.Errorf("something is missing after installation: %+v", checks)
			}
			h.install(t, install.Options{}) // again, as an upgrade
			if n := strings.Count(h.read(t, "/etc/docker/daemon.json"), `"particle": {`); n != 1 {
				t.Errorf("the runtime is in the configuration %d times after two installations", n)
			}
			h.uninstall(t)
			unchanged(t, before, h.sh(t, snapshot))
			if got := h.read(t, "/etc/docker/daemon.json"); got != ownConfig {
				t.Errorf("the configuration came back as %q", got)
			}
		})
	}
}

func TestHostWithoutConfiguration(t *testing.T) {
	h := boot(t, "inst-bare", lab.EngineDebian, "{}")
	if err := os.Remove(h.Root() + "/etc/docker/daemon.json"); err != nil {
		t.Fatal(err)
	}
	before := h.sh(t, snapshot)
	h.install(t, install.Options{})
	h.uninstall(t)
	unchanged(t, before, h.sh(t, snapshot))
}

func TestUninstallKeepsWhatOthersHaveSetSince(t *testing.T) {
	h := boot(t, "inst-edit", lab.EngineDebian, ownConfig)
	h.install(t, install.Options{NoVerify: true})
	edited := strings.Replace(h.read(t, "/etc/docker/daemon.json"), `"local"`, `"json-file"`, 1)
	h.write(t, "/etc/docker/daemon.json", edited)
	h.install(t, install.Options{NoVerify: true}) // must not take the edited text for its own
	h.uninstall(t)
	want := strings.Replace(ownConfig, `"local"`, `"json-file"`, 1)
	if got := h.read(t, "/etc/docker/daemon.json"); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestUpgradeKeepsSettingsAndContainers(t *testing.T) {
	h := boot(t, "inst-up", lab.EngineDebian, "{}")
	h.install(t, install.Options{NoVerify: true, Settings: map[string]string{"PARTICLE_READY": "2"}})
	if err := lab.LoadImage(t.Context(), h.Host); err != nil {
		t.Fatal(err)
	}
	h.sh(t, "docker network create -d particle --ipam-driver particle jobs")
	h.sh(t, "docker run -d --name web --network jobs "+lab.TestImage+" probe sleep")
	pid := h.sh(t, "docker inspect -f '{{.State.Pid}}' web")
	h.install(t, install.Options{})
	if got := h.sh(t, "docker inspect -f '{{.State.Pid}}' web"); got != pid {
		t.Errorf("the container's process is %s after the upgrade, and was %s before", got, pid)
	}
	h.sh(t, "docker exec web true")
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
	if len(status.Networks) != 1 || len(status.Networks[0].Endpoints) != 1 || status.Networks[0].Endpoints[0].Name != "web" {
		t.Errorf("status after the upgrade is %+v", status.Networks)
	}
	// Uninstalling is refused for as long as these two are there.
	err = install.Remove(t.Context(), h.api, install.RemoveOptions{}, progress(t))
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

func TestNamedRuntimeOnly(t *testing.T) {
	h := boot(t, "inst-named", lab.EngineDebian, `{"default-runtime": "other", "runtimes": {"other": {"path": "runc"}}}`)
	before := h.sh(t, snapshot)
	h.sh(t, "kill -HUP $(cat /run/docker.pid)")
	eventually(t, "dockerd has the other runtime", func() bool {
		info, err := h.api.Info(t.Context())
		return err == nil && info.DefaultRuntime == "other"
	})
	h.install(t, install.Options{NoDefaultRuntime: true})
	info, err := h.api.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if info.DefaultRuntime != "other" || info.Runtimes["particle"].Path != hostpath.RuntimeBinary {
		t.Errorf("the default runtime is %s, ours is %+v", info.DefaultRuntime, info.Runtimes["particle"])
	}
	if got := h.read(t, hostpath.RuntimeConfig); !strings.Contains(got, `"/usr/sbin/runc"`) {
		t.Errorf("the real runtime was not found by dockerd's PATH: %s", got)
	}
	h.uninstall(t)
	unchanged(t, strings.ReplaceAll(before, "\nrunc ", "\nother "), h.sh(t, snapshot))
}

func TestRefusals(t *testing.T) {
	for _, c := range []struct{ name, config, flag, want string }{
		{name: "broken", config: "{\n  \"debug\": true,\n}", want: "line 3"},
		{name: "taken", config: `{"runtimes": {"particle": {"path": "/usr/sbin/runc"}}}`, want: "rename the runtime"},
		{name: "flag", config: "{}", flag: "--default-runtime=runc", want: "--default-runtime runc"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := boot(t, "inst-"+c.name, lab.EngineDebian, "{}")
			if c.flag != "" {
				if err := h.StopDockerd(t.Context()); err != nil {
					t.Fatal(err)
				}
				if err := h.StartDockerd(t.Context(), c.flag); err != nil {
					t.Fatal(err)
				}
			}
			h.write(t, "/etc/docker/daemon.json", c.config)
			before := h.sh(t, snapshot)
			err := install.Run(t.Context(), h.api, install.Options{From: programs}, progress(t))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want an error with %q", err, c.want)
			}
			unchanged(t, before, h.sh(t, snapshot))
		})
	}
}

// A plugin that ends at once must take the whole installation back.
func TestBrokenPluginIsTakenBack(t *testing.T) {
	h := boot(t, "inst-back", lab.EngineDebian, ownConfig)
	before := h.sh(t, snapshot)
	broken := t.TempDir()
	for _, c := range []struct{ name, from string }{
		{"particle", "particle"}, {"particle-runtime", "particle-runtime"}, {"particle-docker-plugin", "particle"},
	} {
		if err := os.Link(join(programs, c.from), join(broken, c.name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := install.Run(t.Context(), h.api, install.Options{From: broken}, progress(t)); err == nil {
		t.Fatal("a plugin that ends at once was installed")
	}
	unchanged(t, before, h.sh(t, snapshot))

	// An upgrade to it must bring the working one back.
	h.install(t, install.Options{NoVerify: true})
	if err := install.Run(t.Context(), h.api, install.Options{From: broken}, progress(t)); err == nil {
		t.Fatal("a plugin that ends at once was installed")
	}
	if _, err := install.Status(t.Context(), h.api); err != nil {
		t.Errorf("the plugin from before does not answer: %v", err)
	}
	h.uninstall(t)
	unchanged(t, before, h.sh(t, snapshot))
}

// killWhen runs the particle command and kills it, with the helper containers
// it has started, as soon as the condition holds.
func (h host) killWhen(t *testing.T, reached func() bool, args ...string) {
	t.Helper()
	cmd := exec.Command(join(programs, "particle"), args...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST="+h.DockerHost())
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	eventually(t, "the moment to kill came", func() bool {
		select {
		case err := <-ended:
			t.Fatalf("it ended before the moment to kill it came: %v\n%s", err, &out)
		default:
		}
		return reached()
	})
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-ended
	h.sh(t, "docker ps -q --filter label=particle.helper | xargs -r docker kill >/dev/null 2>&1 || true")
}

func TestKilledInstallationConverges(t *testing.T) {
	h := boot(t, "inst-kill", lab.EngineDebian, ownConfig)
	before := h.sh(t, snapshot)
	moments := []struct {
		name      string
		withdrawn bool // uninstalled without being completed first
		reached   func() bool
	}{
		{"a helper runs", false, func() bool {
			list, err := h.api.ContainerList(t.Context(), container.ListOptions{})
			return err == nil && len(list) > 0
		}},
		{"the record is written", true, func() bool { return exists(h.Root() + hostpath.StateDir + "/install.json") }},
		{"the first program is there", false, func() bool {
			return exists(h.Root()+hostpath.RuntimeBinary) || exists(h.Root()+hostpath.CLIBinary)
		}},
		{"the configuration is written", true, func() bool {
			return strings.Contains(h.read(t, "/etc/docker/daemon.json"), hostpath.RuntimeBinary)
		}},
		{"the plugin exists", true, func() bool {
			_, _, err := h.api.PluginInspectWithRaw(t.Context(), hostpath.PluginName)
			return err == nil
		}},
		{"the plugin listens", false, func() bool { return exists(h.Root() + hostpath.DriverSocket) }},
		{"the test network exists", false, func() bool {
			list, err := h.api.NetworkList(t.Context(), network.ListOptions{})
			return err == nil && len(list) > 3
		}},
	}
	for _, m := range moments {
		t.Run(m.name, func(t *testing.T) {
			h.killWhen(t, m.reached, "install")
			if !m.withdrawn {
				h.install(t, install.Options{})
			}
			h.uninstall(t)
			unchanged(t, before, h.sh(t, snapshot))
		})
	}
}

func TestKilledRemovalConverges(t *testing.T) {
	h := boot(t, "inst-rm", lab.EngineDebian, ownConfig)
	before := h.sh(t, snapshot)
	for _, m := range []struct {
		name    string
		reached func() bool
	}{
		{"the plugin is gone", func() bool {
			_, _, err := h.api.PluginInspectWithRaw(t.Context(), hostpath.PluginName)
			return err != nil
		}},
		{"dockerd has let go", func() bool {
			info, err := h.api.Info(t.Context())
			return err == nil && info.DefaultRuntime == "runc"
		}},
		{"the programs are gone", func() bool { return !exists(h.Root() + hostpath.RuntimeBinary) }},
	} {
		t.Run(m.name, func(t *testing.T) {
			h.install(t, install.Options{NoVerify: true})
			h.killWhen(t, m.reached, "uninstall")
			h.uninstall(t)
			unchanged(t, before, h.sh(t, snapshot))
		})
	}
}
