package install_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/network"

	"github.com/particle-net/particle/internal/hostpath"
	"github.com/particle-net/particle/internal/install"
	"github.com/particle-net/particle/internal/lab"
)

// killWhen runs the particle command and kills it, with the helper containers
// it has started, as soon as the condition holds.
func (h host) killWhen(t *testing.T, reached func() bool, args ...string) {
	t.Helper()
	cmd := h.command(join(programs, "particle"), args...)
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
