package install_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/particle-net/particle/internal/hostpath"
	"github.com/particle-net/particle/internal/install"
	"github.com/particle-net/particle/internal/lab"
)

// What an installation that fails takes back is its own: not the program for which it was
// refused, nor the keys that an administrator has put there for it.
func TestFailedInstallTakesNothingOfOthers(t *testing.T) {
	h := boot(t, "inst-undone", lab.EngineDebian, "{}")
	const key = hostpath.StateDir + "/etcd-client/key.pem"
	h.sh(t, "mkdir -p /etc/particle "+hostpath.StateDir+"/etcd-client /usr/local/bin")
	theirs := []string{hostpath.CLIBinary, "/etc/particle/theirs", key}
	for _, file := range theirs {
		h.write(t, file, "theirs")
	}
	for _, c := range []struct {
		with, want string
		settings   map[string]string
	}{
		{"a program of that name", "did not put it there", nil},
		{"a setting that there is not", "NO_SUCH", map[string]string{"NO_SUCH": "1"}},
	} {
		err := install.Run(t.Context(), h.api, install.Options{From: programs, Settings: c.settings}, progress(t))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("with %s: got %v, want an error with %q", c.with, err, c.want)
		}
		for _, file := range theirs {
			if got := h.read(t, file); got != "theirs" {
				t.Errorf("with %s: %s has %q", c.with, file, got)
			}
		}
		if left := h.sh(t, "ls "+hostpath.RuntimeBinary+" "+hostpath.RuntimeConfig+" "+hostpath.StateDir+"/install.json 2>/dev/null || true"); left != "" {
			t.Errorf("with %s there is left: %s", c.with, left)
		}
		h.sh(t, "rm -f "+hostpath.CLIBinary)
		theirs = slices.DeleteFunc(theirs, func(file string) bool { return file == hostpath.CLIBinary })
	}
}

// A setting that was taken back does not come again with the next version, as if nothing
// was known of the plugin's.
func TestSettingTakenBackStaysSo(t *testing.T) {
	h := boot(t, "inst-taken", lab.EngineDebian, "{}")
	for i, set := range []map[string]string{{"PARTICLE_GUARD": "off"}, {"PARTICLE_GUARD": "auto"}, nil} {
		h.install(t, install.Options{Settings: set, NoVerify: true})
		plugin, _, err := h.api.PluginInspectWithRaw(t.Context(), hostpath.PluginName)
		if err != nil {
			t.Fatal(err)
		}
		if off := slices.Contains(plugin.Settings.Env, "PARTICLE_GUARD=off"); off != (i == 0) {
			t.Errorf("after installation %d the plugin has %q", i+1, plugin.Settings.Env)
		}
	}
	h.uninstall(t)
}
