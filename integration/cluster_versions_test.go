//go:build soak

package integration

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/particle-net/particle/internal/lab"
)

// formerVar is the variable that says which version of this repository a cluster is upgraded
// from, as git names it.
const formerVar = "PARTICLE_FORMER"

// TestClusterVersions upgrades a cluster of a former version as docs/operations.md says,
// host by host, while containers come and go: hosts of both versions make networks for each
// other. No connection ends, no address is given out twice, and no host thinks that
// anything was lost.
func TestClusterVersions(t *testing.T) {
	former := buildFormer(t, cmp.Or(os.Getenv(formerVar), "HEAD~20"))
	eachEngine(t, func(t *testing.T, engine string) {
		b, err := newBed(t.Context(), lab.Options{Engine: engine, Hosts: 3, LiveRestore: true}, true)
		closes(t, b, err)
		err = b.each(func(b *bed) error {
			_, err := b.command(t.Context(), filepath.Join(former, "particle"), "install")
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		c := brokenClusterOf(t, b, ownStore{b})
		c.suffer(c.replacements())
		c.believes()
	})
}

// buildFormer makes the programs of a former version, in a directory of their own.
func buildFormer(t *testing.T, revision string) (dir string) {
	t.Helper()
	source, dir := t.TempDir(), t.TempDir()
	script := fmt.Sprintf("git -C .. archive %s | tar -x -C %s && cd %s && go build -trimpath -ldflags='-s -w' -o %s/ ./cmd/particle ./cmd/particle-docker-plugin ./cmd/particle-runtime", revision, source, source, dir)
	if out, err := exec.CommandContext(t.Context(), "sh", "-c", script).CombinedOutput(); err != nil {
		t.Fatalf("build the former version %s: %v\n%s", revision, err, out)
	}
	t.Logf("the former version is %s", revision)
	return dir
}

// replacements are those of the plugin of each host, the store's first.
func (c *brokenCluster) replacements() (all []clusterFault) {
	for i, b := range c.beds {
		all = append(all, clusterFault{name: b.host.Name() + " is upgraded", on: []*bed{b}, strike: func(ctx context.Context) error {
			if _, err := b.particle(ctx, "install"); err != nil {
				return err
			}
			others := append(c.beds[i+1:len(c.beds):len(c.beds)], c.beds[:i+1]...)
			return errors.Join(comesAndGoes(ctx, c.beds), comesAndGoes(ctx, others))
		}})
	}
	return all
}

// believes fails if a host has taken anything for lost, or for unreadable.
func (c *brokenCluster) believes() {
	for _, b := range c.beds {
		log, err := os.ReadFile(b.host.ServiceLog("dockerd"))
		if err != nil {
			c.Error(err)
		}
		for line := range strings.Lines(string(log)) {
			for _, bad := range []string{"were lost, and are kept", "claims are not what this host thought", "two hosts answer", "is left out"} {
				if strings.Contains(line, bad) {
					c.Errorf("%s: %s", b.host.Name(), line)
				}
			}
		}
	}
}
