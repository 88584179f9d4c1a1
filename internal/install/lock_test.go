package install_test

import (
	"strings"
	"testing"

	"github.com/particle-net/particle/internal/install"
	"github.com/particle-net/particle/internal/lab"
)

func TestOneCommandAtATime(t *testing.T) {
	h := boot(t, "inst-lock", lab.EngineDebian, ownConfig)
	before := h.sh(t, snapshot)
	first := make(chan error, 1)
	refused := map[string]error{}
	go func() {
		// The others come when the first has done its first step.
		first <- install.Run(t.Context(), h.api, install.Options{From: programs, NoVerify: true}, func(s install.Step) {
			if s.Name == "engine" {
				refused["install"] = install.Run(t.Context(), h.api, install.Options{From: programs}, nil)
				refused["uninstall"] = install.Remove(t.Context(), h.api, install.RemoveOptions{Force: true}, nil)
			}
		})
	}()
	if err := <-first; err != nil {
		t.Fatal(err)
	}
	for command, err := range refused {
		for _, want := range []string{"change engine " + h.DockerHost(), "running `particle install` there since", "run `docker rm particle-install-lock`"} {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("a second command, %s: %v; want %q", command, err, want)
			}
		}
	}
	if len(refused) != 2 {
		t.Error("no second command was tried")
	}
	h.uninstall(t)
	unchanged(t, before, h.sh(t, snapshot))
}

// Whether a command on another machine still runs only a person can know.
func TestLockFromAnotherMachine(t *testing.T) {
	h := boot(t, "inst-far", lab.EngineDebian, "{}")
	if err := lab.LoadImage(t.Context(), h.Host); err != nil {
		t.Fatal(err)
	}
	before := h.sh(t, snapshot)
	h.sh(t, "docker create --name particle-install-lock --label 'particle.lock.holder=ann on far has been running `particle install`'"+
		" --label 'particle.lock.process=00000000-0000-0000-0000-000000000000 4026531836 77 12345' "+lab.TestImage+" none")
	for range 2 {
		err := install.Run(t.Context(), h.api, install.Options{From: programs}, nil)
		if err == nil || !strings.Contains(err.Error(), "ann on far has been running `particle install`; wait until that has ended; if it was cut off, run `docker rm particle-install-lock`") {
			t.Fatalf("got %v", err)
		}
	}
	h.sh(t, "docker rm particle-install-lock")
	h.install(t, install.Options{NoVerify: true})
	h.uninstall(t)
	h.sh(t, "docker image inspect "+lab.TestImage)
	unchanged(t, before, h.sh(t, snapshot))
}

// A default runtime with arguments cannot be stood in front of.
func TestRuntimeWithArguments(t *testing.T) {
	h := boot(t, "inst-args", lab.EngineCurrent, `{"default-runtime": "loud", "runtimes": {"loud": {"path": "runc", "runtimeArgs": ["--debug"]}}}`)
	h.sh(t, "kill -HUP $(cat /run/docker.pid)")
	eventually(t, "dockerd has the other runtime", func() bool {
		info, err := h.api.Info(t.Context())
		return err == nil && info.DefaultRuntime == "loud"
	})
	before := h.sh(t, snapshot)
	err := install.Run(t.Context(), h.api, install.Options{From: programs}, progress(t))
	if err == nil || !strings.Contains(err.Error(), "runtimeArgs") || !strings.Contains(err.Error(), "--no-default-runtime") {
		t.Errorf("got %v", err)
	}
	unchanged(t, before, h.sh(t, snapshot))
	h.install(t, install.Options{NoDefaultRuntime: true})
	h.uninstall(t)
	unchanged(t, before, h.sh(t, snapshot))
}
