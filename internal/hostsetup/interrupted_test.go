package hostsetup

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/particle-net/particle/internal/hostsetup/daemonjson"
)

// It is installed as the default, and `install --no-default-runtime` is cut off, or fails for
// want of room, after the record and before daemon.json.
func TestCutOffChangeOfDefault(t *testing.T) {
	const original = `{"default-runtime": "nvidia", "runtimes": {"nvidia": {"path": "/usr/bin/nvidia-container-runtime"}}}`
	d := daemon{config: filepath.Join(t.TempDir(), "daemon.json")}
	if err := os.WriteFile(d.config, []byte(original), 0o644); err != nil {
		t.Fatal(err)
	}
	first, err := planConfig(d, record{}, true)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := first.apply(); err != nil {
		t.Fatal(err)
	}
	second, err := planConfig(d, record{Config: first.record}, false) // saved, and no more
	if err != nil {
		t.Fatal(err)
	}
	_, before, err := beforeUs(d.config, record{Config: second.record})
	if err != nil {
		t.Fatal(err)
	}
	if string(before) != original {
		t.Errorf("uninstall would leave %s, want %s", before, original)
	}
}

// An uninstall is cut off after dockerd was handed over, and an install after that when it
// has written its record: the text of the handover is not the administrator's.
func TestCutOffAfterHandover(t *testing.T) {
	d := daemon{config: filepath.Join(t.TempDir(), "daemon.json")}
	handover, err := daemonjson.Handover(nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(d.config, handover, 0o644); err != nil {
		t.Fatal(err)
	}
	second, err := planConfig(d, record{Config: configRecord{Path: d.config, Absent: true, Handover: hashText(handover)}}, true)
	if err != nil {
		t.Fatal(err)
	}
	if _, before, err := beforeUs(d.config, record{Config: second.record}); err != nil || len(before) != 0 {
		t.Errorf("uninstall would leave %q, %v", before, err)
	}
}

// dockerd reads another file than at the installation: each gets its own text back.
func TestConfigurationThatMoved(t *testing.T) {
	texts := map[string]string{"before.json": `{"debug": true}`, "now.json": `{"log-level": "warn"}`}
	files := map[string]string{}
	for name, text := range texts {
		files[name] = filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(files[name], []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var rec record
	for _, name := range []string{"before.json", "now.json"} { // installed, moved by its user, and installed again
		d := daemon{config: files[name]}
		var err error
		if rec, err = rec.at(d.config); err != nil {
			t.Fatal(err)
		}
		plan, err := planConfig(d, rec, true)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := plan.apply(); err != nil {
			t.Fatal(err)
		}
		rec.Config = plan.record
	}
	if _, err := restoreConfig(rec.Config.Path, rec); err != nil {
		t.Fatal(err)
	}
	for name, text := range texts {
		if got, err := os.ReadFile(files[name]); string(got) != text {
			t.Errorf("%s has %s (%v), want %s", name, got, err, text)
		}
	}
}

// A plugin whose settings are all as they come is not no plugin: Install would take those of
// an earlier installation from its record.
func TestEmptySettingsAreTold(t *testing.T) {
	raw, err := json.Marshal(InstallRequest{Settings: map[string]string{}})
	if err != nil {
		t.Fatal(err)
	}
	var got InstallRequest
	if err := json.Unmarshal(raw, &got); err != nil {
		t.Fatal(err)
	}
	if got.Settings == nil {
		t.Errorf("the helper is told of no plugin: %s", raw)
	}
}
