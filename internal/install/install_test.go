package install_test

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/particle-net/particle"
	"github.com/particle-net/particle/internal/hostpath"
	"github.com/particle-net/particle/internal/install"
	"github.com/particle-net/particle/internal/lab"
	"github.com/particle-net/particle/internal/netnstest"
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
			if left, err := install.LeavesDefault(t.Context(), h.api); err != nil || left {
				t.Errorf("an upgrade would not make it the default runtime again: %v", err)
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
	if left, err := install.LeavesDefault(t.Context(), h.api); err != nil || !left {
		t.Errorf("an upgrade would not leave the default runtime: %v", err)
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

// An engine on another machine is reached through ssh and nothing else.
func TestOverSSH(t *testing.T) {
	h := bootAlone(t, "inst-ssh", lab.EngineDebian, "{}")
	netnstest.RequireTool(t, "docker")
	// The ssh of this test goes to no other machine; it runs the command that
	// ssh would run there, with the host's engine.
	bin := t.TempDir()
	script := "#!/bin/sh\nexec docker --host " + h.DockerHost() + " system dial-stdio\n"
	if err := os.WriteFile(join(bin, "ssh"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	t.Setenv("DOCKER_HOST", "ssh://operator@h1.example")
	api, err := install.Connect()
	if err != nil {
		t.Fatal(err)
	}
	defer api.Close()
	if install.Local(api) {
		t.Error("an engine reached by ssh counts as local")
	}
	far := host{Host: h.Host, api: api}
	before := h.sh(t, snapshot)
	far.install(t, install.Options{NoVerify: true})
	status, err := install.Status(t.Context(), api)
	if err != nil {
		t.Fatal(err)
	}
	if status.Version == "" || status.Underlay.VTEP != h.Addr4().String() {
		t.Errorf("status is %+v", status)
	}
	// The image may be pruned; asking still works, and leaves none.
	h.sh(t, "docker image prune -af")
	if out, err := exec.Command(join(programs, "particle"), "status").CombinedOutput(); err != nil {
		t.Errorf("status without the image: %v\n%s", err, out)
	}
	if left := h.sh(t, "docker image ls -aq"); left != "" {
		t.Errorf("asking for the status has left images: %s", left)
	}
	if out, err := exec.Command(join(programs, "particle"), "uninstall").CombinedOutput(); err != nil {
		t.Errorf("uninstalling without the image: %v\n%s", err, out)
	}
	unchanged(t, before, h.sh(t, snapshot))
}

func TestInstallationOutlivesAReboot(t *testing.T) {
	h := boot(t, "inst-boot", lab.EngineDebian, "{}")
	h.install(t, install.Options{NoVerify: true})
	if err := h.Reboot(t.Context()); err != nil {
		t.Fatal(err)
	}
	checks, err := install.Doctor(t.Context(), h.api)
	if err != nil {
		t.Fatal(err)
	}
	if report.Failed(checks) {
		t.Errorf("something is missing after a reboot: %+v", checks)
	}
}

// A dockerd that started while ours was the default runtime runs the plugins of
// others with it, and needs it to stop them.
func TestUninstallWaitsForOtherPlugins(t *testing.T) {
	h := boot(t, "inst-other", lab.EngineDebian, "{}")
	h.install(t, install.Options{NoVerify: true})
	if err := h.Reboot(t.Context()); err != nil {
		t.Fatal(err)
	}
	plugin := t.TempDir()
	if err := os.MkdirAll(join(plugin, "rootfs/bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(join(programs, "particle-docker-plugin"), join(plugin, "rootfs/bin/particle-docker-plugin")); err != nil {
		t.Fatal(err)
	}
	// A second copy of our plugin, under another name and in a place of its own.
	config := strings.NewReplacer(`"source": "/run"`, `"source": "/srv"`, `"source": "/var/lib/particle"`, `"source": "/srv"`).
		Replace(string(particle.PluginConfig))
	if err := os.WriteFile(join(plugin, "config.json"), []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"plugin", "create", "somebody/else", plugin}, {"plugin", "enable", "somebody/else"}} {
		if out, err := h.command("docker", args...).CombinedOutput(); err != nil {
			t.Fatalf("docker %v: %v\n%s", args, err, out)
		}
	}
	err := install.Remove(t.Context(), h.api, install.RemoveOptions{}, progress(t))
	if err == nil || !strings.Contains(err.Error(), "somebody/else") {
		t.Fatalf("uninstalling under another plugin says %v", err)
	}
	h.sh(t, "docker plugin disable somebody/else")
	var told bool
	err = install.Remove(t.Context(), h.api, install.RemoveOptions{}, func(s install.Step) {
		told = told || strings.Contains(s.Detail, "restart dockerd")
	})
	if err != nil || !told {
		t.Fatalf("uninstalling: %v; it said that dockerd is to be restarted: %v", err, told)
	}
	if err := h.Reboot(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.sh(t, "docker plugin enable somebody/else && docker plugin disable somebody/else")
}

// Where an installation is refused there is nothing to take away, and that is said.
func TestUninstallWhereMountsArePrivate(t *testing.T) {
	h := boot(t, "inst-private", lab.EngineDebian, "{}")
	h.sh(t, "mount --make-rprivate /run && mount --make-rprivate /")
	before := h.sh(t, snapshot)
	if err := install.Run(t.Context(), h.api, install.Options{From: programs}, nil); err == nil || !strings.Contains(err.Error(), "--make-rshared") {
		t.Errorf("installed where mounts are private: %v", err)
	}
	if out, err := h.command(join(programs, "particle"), "uninstall", "--yes").CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	unchanged(t, before, h.sh(t, snapshot))
}

func TestDoctorNamesWhatIsMissing(t *testing.T) {
	h := boot(t, "inst-doc", lab.EngineDebian, `{"debug": oops}`)
	if err := lab.LoadImage(t.Context(), h.Host); err != nil {
		t.Fatal(err)
	}
	h.sh(t, "docker run -d --network host "+lab.TestImage+" probe echo -listen 0.0.0.0:4789")
	h.sh(t, "mount --make-rprivate /run")
	h.sh(t, "mount --bind /usr/local/bin /usr/local/bin; mount -o remount,bind,noexec /usr/local/bin")
	before := h.sh(t, snapshot)
	cmd := h.command(join(programs, "particle"), "doctor")
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("it ended with %v", err)
	}
	for _, want := range []string{"missing  dockerd", "line 1", "missing  VXLAN port", "(probe)", "missing  mounts", "--make-rshared /run",
		"missing  programs", "noexec",
		"missing  runtime", "missing  plugin", "ok       tunnels"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("%q is not in\n%s", want, out)
		}
	}
	unchanged(t, before, h.sh(t, snapshot))
}
