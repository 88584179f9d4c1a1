package main

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/particle-net/particle/internal/netnstest"
)

func TestMain(m *testing.M) { os.Exit(netnstest.Main(m)) }

// Each row checks by itself that the last endpoint can be used.
func TestEveryRowConnects(t *testing.T) {
	netnstest.New(t) // or skip
	p := plan{sizes: []int{1, 3}, rounds: 2, limits: limits{moved: 1, inPlace: 3, published: 3, branches: 3}}
	r := newReport(p)
	if err := r.fill(p); err != nil {
		t.Fatal(err)
	}
	for _, way := range rows(p.limits) {
		for _, n := range p.sizes {
			c, ok := r.cell(way.Name, n)
			if ok != (n <= way.limit) || ok && len(c.Times) != p.rounds {
				t.Errorf("%s at %d endpoints: %v", way.Name, n, c.Times)
			}
		}
	}
	var text bytes.Buffer
	r.print(&text)
	if !strings.Contains(text.String(), ownRow) {
		t.Error(text.String())
	}
}
