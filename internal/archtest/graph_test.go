package archtest_test

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/particle-net/particle"

// node is what go list tells of one package. Names of our own packages are
// relative to the module: "ipam/pool", "" for its root.
type node struct {
	ImportPath   string
	Standard     bool
	Imports      []string
	TestImports  []string
	XTestImports []string
}

// graph is every package of the module and what they depend on, by name.
type graph map[string]node

// root finds the module's directory.
func root(t *testing.T) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		if dir == filepath.Dir(dir) {
			t.Fatal("no go.mod above the working directory")
		}
	}
}

// load asks the go command. It reports packages that do not compile as well:
// rules can be checked on half-finished work.
func load(t *testing.T) graph {
	t.Helper()
	cmd := exec.Command("go", "list", "-e", "-deps",
		"-json=ImportPath,Standard,Imports,TestImports,XTestImports", "./...")
	cmd.Dir = root(t)
	cmd.Env = append(os.Environ(), "GOOS=linux") // all that the product runs on
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	g := graph{}
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var n node
		if err := d.Decode(&n); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("go list: %v", err)
		}
		for _, list := range [][]string{n.Imports, n.TestImports, n.XTestImports} {
			for i := range list {
				list[i] = relative(list[i])
			}
		}
		n.ImportPath = relative(n.ImportPath)
		g[n.ImportPath] = n
	}
	if _, ok := g["internal/archtest"]; !ok {
		t.Fatal("go list does not tell of this package")
	}
	return g
}

func relative(path string) string {
	if path == module {
		return ""
	}
	return strings.TrimPrefix(path, module+"/")
}

// own reports whether a name, not of the standard library, is that of a package
// of the module: other modules begin with a domain.
func own(name string) bool {
	first, _, _ := strings.Cut(name, "/")
	return !strings.Contains(first, ".")
}

// path is the shortest chain of imports from a package to one that is
// forbidden, without the first; nil if there is none. Only imports of the
// package proper count, not of its tests.
func (g graph) path(from string, forbidden func(string) bool) []string {
	via := map[string]string{from: from}
	for queue := []string{from}; len(queue) > 0; queue = queue[1:] {
		for _, to := range g[queue[0]].Imports {
			if _, seen := via[to]; seen {
				continue
			}
			via[to] = queue[0]
			if !forbidden(to) {
				queue = append(queue, to)
				continue
			}
			var chain []string
			for ; to != from; to = via[to] {
				chain = append(chain, to)
			}
			slices.Reverse(chain)
			return chain
		}
	}
	return nil
}
