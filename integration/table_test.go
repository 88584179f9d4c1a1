package integration

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/particle-net/particle/integration/sockets/table"
	"github.com/particle-net/particle/internal/lab"
)

// differences are the socket calls whose answer is another one in a particle
// network than in a network namespace of the container's own.
var differences = []concession{}

// TestSocketTable does the same with sockets in a container of a Docker bridge
// and in one of a particle network, and compares what the kernel says.
func TestSocketTable(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		b := newTestBed(t, lab.Options{Engine: engine})
		if err := b.load(t.Context(), socketsImage); err != nil {
			t.Fatal(err)
		}
		b.must(t, "network", "create", "--ipv6", "--subnet", "10.66.0.0/16", "--subnet", "fd00:66::/64", "bridged")
		b.must(t, "network", "create", "-d", "particle", "--ipam-driver", "particle", "--ipv6", "--subnet", "10.77.0.0/16", "--subnet", "fd00:77::/64", "shared")
		bridged := b.table(t, "bridged", "sockets")
		if diff := cmp.Diff(bridged, b.table(t, "bridged", "sockets")); diff != "" {
			t.Errorf("two runs in equal containers differ:\n%s", diff)
		}
		used := map[string]bool{}
		for _, program := range []string{"sockets", "sockets386"} {
			shared := b.table(t, "shared", program)
			for i, name := range table.Names() {
				if shared[i] == bridged[i] {
					continue
				}
				c, allowed := find(differences, name)
				used[c.phrase] = true
				if !allowed {
					t.Errorf("%s of %s:\n\town namespace  %s\n\tshared         %s", name, program, bridged[i], shared[i])
				}
			}
		}
		documented(t, differences, used)
	})
}

// table runs the table on a network, beside a victim, and returns its lines in
// order. The victim stays for the next run.
func (b *bed) table(t *testing.T, network, program string) []string {
	t.Helper()
	if out, err := b.docker(t.Context(), "inspect", "-f", "{{.State.Running}}", "victim-"+network); err != nil || out != "true" {
		b.victim(t, network)
	}
	four, six, _ := strings.Cut(b.must(t, "inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{.GlobalIPv6Address}}{{end}}", "victim-"+network), " ")
	out := b.must(t, "run", "--rm", "--network", network, socketsImage, program, "table", "-peer", four, "-peer6", six)
	var lines []string
	for text := range strings.Lines(out) {
		var line table.Line
		if err := json.Unmarshal([]byte(text), &line); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		lines = append(lines, fmt.Sprintf("%s %s %q", line.Result, line.Errno, line.Seen))
	}
	if len(lines) != len(table.Names()) {
		t.Fatalf("%d lines of %d cases", len(lines), len(table.Names()))
	}
	return lines
}
