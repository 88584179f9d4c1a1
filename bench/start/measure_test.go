package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/network"

	"github.com/particle-net/particle/internal/lab"
	"github.com/particle-net/particle/internal/netnstest"
)

func TestMain(m *testing.M) {
	lab.MaybeInit()
	os.Exit(m.Run())
}

// The whole program on a real host, with few containers.
func TestMeasure(t *testing.T) {
	netnstest.Require(t, os.Geteuid() == 0, "root, to boot a Docker host")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	o := options{
		plan:   plan{n: 6, c: 3, rounds: 2, report: true, variants: []variant{variantHost, variantNone, variantBridge, variantParticle, variantOwn}},
		engine: lab.EngineDebian,
		lab:    fmt.Sprintf("t-start-%d", os.Getpid()),
	}
	b, err := makeBed(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.remove(context.WithoutCancel(ctx)); err != nil {
			t.Error(err)
		}
		if left, err := lab.Leaks(o.lab); err != nil || len(left) > 0 {
			t.Errorf("left behind: %v, %v", left, err)
		}
	})
	all, err := measure(ctx, b, o.plan, newProgress(os.Stderr, o.rounds))
	if err != nil {
		t.Fatal(err)
	}
	checkFigures(t, o.plan, all)
	checkNothingStays(ctx, t, b)
	r := result{Engine: b.engine, N: o.n, C: o.c, Rounds: o.rounds, Report: true, Figures: all, Summary: summarise(o.variants, all)}
	checkOutput(t, r)
	t.Run("namespaces", func(t *testing.T) { checkNamespaces(ctx, t, b) })
	t.Run("a container that fails", func(t *testing.T) { checkFailure(ctx, t, b, o.plan) })
}

func checkFigures(t *testing.T, p plan, all []figures) {
	t.Helper()
	if len(all) != p.rounds*len(p.variants) {
		t.Fatalf("%d figures, want %d", len(all), p.rounds*len(p.variants))
	}
	for _, f := range all {
		what := fmt.Sprintf("%s in round %d", f.Variant, f.Round)
		if f.Started <= 0 || f.Removed <= 0 || len(f.Containers) != p.n {
			t.Errorf("%s: started %v, removed %v, %d containers", what, f.Started, f.Removed, len(f.Containers))
		}
		for i, one := range f.Containers {
			if one <= 0 || one > f.Started {
				t.Errorf("%s: container %d took %v s of %v", what, i, one, f.Started)
			}
		}
		if f.CPU <= 0 {
			t.Errorf("%s: no CPU time", what)
		}
		if f.Variant.reports() != (len(f.Sources) == p.n) || f.Variant.reports() != (f.Reported >= f.Started) {
			t.Errorf("%s: %d sources, reported after %v s", what, len(f.Sources), f.Reported)
		}
		for _, a := range f.Sources {
			if (f.Variant == variantHost) != a.IsLoopback() {
				t.Errorf("%s: a container reported from %s", what, a)
			}
		}
	}
}

func checkNothingStays(ctx context.Context, t *testing.T, b *bed) {
	t.Helper()
	containers, err := b.api.ContainerList(ctx, container.ListOptions{All: true})
	if err != nil || len(containers) > 0 {
		t.Errorf("%d containers stay, %v", len(containers), err)
	}
	networks, err := b.api.NetworkList(ctx, network.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range networks {
		// One that Docker 20.10 miscounts may stay (see removeNetwork), and says so.
		r := &round{api: b.api, network: n.Name}
		if n.Name != "bridge" && n.Name != "host" && n.Name != "none" && !r.miscounted(ctx, b.api.NetworkRemove(ctx, n.ID)) {
			t.Errorf("network %s stays", n.Name)
		}
	}
}

func checkOutput(t *testing.T, r result) {
	t.Helper()
	var table bytes.Buffer
	if err := r.print(&table); err != nil {
		t.Fatal(err)
	}
	for _, v := range []variant{variantHost, variantNone, variantBridge, variantParticle, variantOwn} {
		if !strings.Contains(table.String(), "\n"+string(v)+" ") {
			t.Errorf("no line for %s in\n%s", v, table.String())
		}
	}
	path := filepath.Join(t.TempDir(), "figures.json")
	if err := r.save(path); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(path)
	var back result
	if err == nil {
		err = json.Unmarshal(raw, &back)
	}
	if err != nil || len(back.Figures) != len(r.Figures) || back.Engine.Version == "" {
		t.Errorf("%d figures of engine %q in the file, %v", len(back.Figures), back.Engine.Version, err)
	}
}

// The variants of particle differ in whose namespace a container has, by whichever
// way it is started.
func checkNamespaces(ctx context.Context, t *testing.T, b *bed) {
	for way, by := range map[string]starter{"api": overAPI{b.api}, "cli": overCLI{b.host.DockerHost()}} {
		for v, want := range map[variant]int64{variantParticle: 1, variantOwn: 0} {
			r := &round{api: b.api, variant: v, prefix: way + "-" + string(v), note: func(text string) { t.Log(text) }}
			if _, err := r.makeNetwork(ctx); err != nil {
				t.Fatal(err)
			}
			s := r.spec(0)
			s.program = []string{"test", "-e", "/sys/class/net/eth0"}
			if err := by.start(ctx, s); err != nil {
				t.Fatal(err)
			}
			done, failed := b.api.ContainerWait(ctx, s.name, container.WaitConditionNotRunning)
			select {
			case end := <-done:
				if end.StatusCode != want {
					t.Errorf("%s: looking for eth0 ends with %d, want %d", r.prefix, end.StatusCode, want)
				}
			case err := <-failed:
				t.Fatal(err)
			}
			if err := errors.Join(r.removeContainer(ctx, s.name), r.removeNetwork(ctx)); err != nil {
				t.Error(err)
			}
		}
	}
}

// A container that ends after its start returned must not pass for a started one.
func checkFailure(ctx context.Context, t *testing.T, b *bed, p plan) {
	r := &round{api: b.api, plan: p, variant: variantBridge, network: "bridge", prefix: "failing"}
	s := spec{name: r.name(0), network: "bridge", program: []string{"sh", "-c", "echo out of order >&2; exit 3"}}
	if err := (overAPI{b.api}).start(ctx, s); err != nil {
		t.Fatal(err)
	}
	done, failed := b.api.ContainerWait(ctx, s.name, container.WaitConditionNotRunning)
	select {
	case <-done:
	case err := <-failed:
		t.Fatal(err)
	}
	if err := r.complaint(ctx); err == nil || !strings.Contains(err.Error(), "out of order") || !strings.Contains(err.Error(), s.name) {
		t.Errorf("complaint %v", err)
	}
	if err := r.removeContainer(ctx, s.name); err != nil {
		t.Error(err)
	}
	if err := r.complaint(ctx); err != nil {
		t.Errorf("complaint without a container: %v", err)
	}
}
