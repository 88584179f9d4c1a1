package hostview_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/internal/hostview"
)

func TestText(t *testing.T) {
	for text, want := range map[string]string{
		"open store /host/var/lib/particle/particle.db: open /host/var/lib/particle/particle.db: no space left on device"://
		"open store /var/lib/particle/particle.db: open /var/lib/particle/particle.db: no space left on device",
		"/host/run/particle/live.db":        "/run/particle/live.db",
		"write /host/run: read-only":        "write /run: read-only",
		`open "/host/run/x"`:                `open "/run/x"`,
		"unix:///host/run/docker.sock?":     "unix:///run/docker.sock?",
		"link /host/run/a /host/run/b":      "link /run/a /run/b",
		"open /proc/1/root: denied":         "open /: denied",
		"chroot /proc/1/root":               "chroot /",
		"open /proc/1/root/etc/x":           "open /etc/x",
		"open /proc/1/rootless":             "open /proc/1/rootless",
		"/srv/host/run/x":                   "/srv/host/run/x",
		"./host/run/x":                      "./host/run/x",
		"/host/running":                     "/host/running",
		"/host/var/lib/particle-lab/x":      "/host/var/lib/particle-lab/x",
		"network /host/jobs does not exist": "network /host/jobs does not exist",
		"":                                  "",
	} {
		if got := hostview.Text(text); got != want {
			t.Errorf("%q became %q, want %q", text, got, want)
		}
	}
}

func TestErrorKeepsItsCause(t *testing.T) {
	err := hostview.Error(&fault.Error{Op: "open store", On: "/host/run/particle/live.db", Err: fs.ErrPermission, Fix: "run as root"})
	if want := "open store /run/particle/live.db: permission denied; run as root"; err.Error() != want || !errors.Is(err, fs.ErrPermission) {
		t.Errorf("got %v", err)
	}
	var f *fault.Error
	if !errors.As(err, &f) {
		t.Error("the fault is lost")
	}
	if hostview.Error(nil) != nil {
		t.Error("no error became one")
	}
}

func TestLog(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	log := logrus.New()
	log.SetOutput(file)
	log.SetFormatter(&logrus.TextFormatter{DisableTimestamp: true, DisableColors: true})
	log.AddHook(hostview.Log{})
	entry := log.WithError(errors.New("open /host/run/x")).WithField("path", "/host/run/y")
	entry.Warn("look at /host/run/z")
	raw, err := os.ReadFile(file.Name())
	if want := `level=warning msg="look at /run/z" error="open /run/x" path=/run/y`; err != nil || strings.TrimSpace(string(raw)) != want {
		t.Errorf("got %s, %v, want %s", raw, err, want)
	}
	if entry.Data["path"] != "/host/run/y" {
		t.Error("the caller's entry was changed")
	}
}
