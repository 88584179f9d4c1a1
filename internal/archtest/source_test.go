package archtest_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Beyond these lengths a reader loses the thread. They are meant as a fence,
// not as a goal: functions of 60 lines and files of 400 are long already.
const (
	maxFile     = 450 // lines
	maxTestFile = 600 // tables and scripts read more easily than code
	maxFunc     = 100 // lines, tests left out
)

// calls lists what no file but a test may call.
var calls = map[string]string{
	"time.Sleep":   "wait for the condition itself, or on a timer and ctx.Done(), so that a shutdown need not wait",
	"context.TODO": "take ctx from the caller: work without one cannot be ended",
}

// source is one parsed Go file.
type source struct {
	name string // relative to the module, with slashes
	file *ast.File
	set  *token.FileSet
}

func (s source) isTest() bool { return strings.HasSuffix(s.name, "_test.go") }

func (s source) lines(n ast.Node) int {
	return s.set.Position(n.End()).Line - s.set.Position(n.Pos()).Line + 1
}

// parse reads a file, or text in its stead if src is not nil.
func parse(t *testing.T, dir, name string, src any) source {
	t.Helper()
	s := source{name: name, set: token.NewFileSet()}
	var err error
	s.file, err = parser.ParseFile(s.set, filepath.Join(dir, filepath.FromSlash(name)), src, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// sources parses every Go file of the module, whatever its build constraints,
// except generated ones.
func sources(t *testing.T) []source {
	t.Helper()
	dir := root(t)
	var out []source
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if path != dir && skipped(path, d.Name()) {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") || strings.HasPrefix(d.Name(), ".") {
			return nil
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		if s := parse(t, dir, filepath.ToSlash(name), nil); !ast.IsGenerated(s.file) {
			out = append(out, s)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// skipped tells the folders that the go command passes over too.
func skipped(path, name string) bool {
	_, err := os.Stat(filepath.Join(path, "go.mod"))
	return err == nil || name == "testdata" || name == "vendor" || name[0] == '.' || name[0] == '_'
}

// faults lists what is wrong with one file.
func (s source) faults() []string {
	var out []string
	limit := maxFile
	if s.isTest() {
		limit = maxTestFile
	}
	if n := s.set.File(s.file.Pos()).LineCount(); n > limit {
		out = append(out, fmt.Sprintf("%s has %d lines; split it at its nouns, into files of at most %d", s.name, n, limit))
	}
	if s.isTest() {
		return out
	}
	for _, d := range s.file.Decls {
		if f, ok := d.(*ast.FuncDecl); ok && s.lines(f) > maxFunc {
			out = append(out, fmt.Sprintf("%s: %s has %d lines; give its parts names, so that none has more than %d", s.set.Position(f.Pos()), f.Name.Name, s.lines(f), maxFunc))
		}
	}
	ast.Inspect(s.file, func(n ast.Node) bool {
		sel, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		if x, ok := sel.X.(*ast.Ident); ok {
			name := s.imported(x.Name) + "." + sel.Sel.Name
			if why, banned := calls[name]; banned {
				out = append(out, fmt.Sprintf("%s: %s; %s", s.set.Position(sel.Pos()), name, why))
			}
		}
		return true
	})
	return out
}

// imported is the path of the package that a file calls by the given name, if
// its last element or an alias is that name.
func (s source) imported(as string) string {
	for _, i := range s.file.Imports {
		path := strings.Trim(i.Path.Value, `"`)
		if i.Name != nil && i.Name.Name == as || i.Name == nil && path[strings.LastIndex(path, "/")+1:] == as {
			return path
		}
	}
	return ""
}

// undocumented lists the packages without a package comment. A comment that
// only a test has does not count where there is code.
func undocumented(files []source) []string {
	found := map[string]bool{}
	code := map[string]bool{}
	for _, s := range files {
		dir := filepath.ToSlash(filepath.Dir(s.name))
		code[dir] = code[dir] || !s.isTest()
		found[dir] = found[dir] || s.file.Doc != nil && !s.isTest() && !onlyDirectives(s.file.Doc)
	}
	var out []string
	for dir, documented := range found {
		if !documented && code[dir] {
			out = append(out, dir)
		}
	}
	slices.Sort(out)
	return out
}

func onlyDirectives(doc *ast.CommentGroup) bool { return strings.TrimSpace(doc.Text()) == "" }

func TestSource(t *testing.T) {
	files := sources(t)
	for _, s := range files {
		for _, f := range s.faults() {
			t.Error(f)
		}
	}
	for _, dir := range undocumented(files) {
		t.Errorf("package %s has no package comment; tell its model and invariants in a doc.go, before the package clause", dir)
	}
}

func TestSourceRulesForbid(t *testing.T) {
	long := strings.Repeat("\n", maxFunc)
	for _, c := range []struct {
		name, file, text, fault string
	}{
		{"sleep", "a.go", "package a\nimport \"time\"\nfunc f() { time.Sleep(1) }", "time.Sleep"},
		{"sleep under another name", "a.go", "package a\nimport clock \"time\"\nvar wait = clock.Sleep", "time.Sleep"},
		{"another's Sleep", "a.go", "package a\nfunc f(time interface{ Sleep(int) }) { time.Sleep(1) }", ""},
		{"sleep in a test", "a_test.go", "package a\nimport \"time\"\nfunc f() { time.Sleep(1) }", ""},
		{"no context", "a.go", "package a\nimport \"context\"\nvar c = context.TODO()", "context.TODO"},
		{"file at the limit", "a.go", "package a\n" + strings.Repeat("\n", maxFile-1), ""},
		{"file beyond the limit", "a.go", "package a\n" + strings.Repeat("\n", maxFile), "451 lines"},
		{"test file beyond the limit", "a_test.go", "package a\n" + strings.Repeat("\n", maxTestFile), "601 lines"},
		{"function at the limit", "a.go", "package a\nfunc f() {" + long[1:] + "}", ""},
		{"function beyond the limit", "a.go", "package a\nfunc f() {" + long + "}", "f has 101 lines"},
		{"test function beyond the limit", "a_test.go", "package a\nfunc f() {" + long + "}", ""},
	} {
		got := strings.Join(parse(t, "", c.file, c.text).faults(), "; ")
		if (got == "") != (c.fault == "") || !strings.Contains(got, c.fault) {
			t.Errorf("%s: faults %q, want one with %q", c.name, got, c.fault)
		}
	}
	files := []source{
		parse(t, "", "a/a.go", "package a"),
		parse(t, "", "a/a_test.go", "// Package a has a comment in the wrong place.\npackage a"),
		parse(t, "", "b/b.go", "//go:build linux\n\n//go:generate true\npackage b"),
		parse(t, "", "c/c.go", "package c"),
		parse(t, "", "c/doc.go", "// Package c has a comment.\npackage c"),
		parse(t, "", "d/d_test.go", "package d"),
	}
	if got := undocumented(files); !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("undocumented packages: %v, want a and b", got)
	}
}
