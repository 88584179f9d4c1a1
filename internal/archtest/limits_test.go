package archtest_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// unpinned are the limits that no test shows, by their first words, and why.
var unpinned = map[string]string{
	"A plugin that ends within":            "it is Docker's, and shows only in how long it waits",
	"What is answered for connect":         "it takes the right moment, which a test cannot wait for; that bind has none, internal/holder shows",
	"VXLAN between hosts is neither":       "RFC 7348 has neither; whose packets are taken has its test in overlay",
	"Rootless Docker and userns-remap are": "no lab host is one; that userns-remap is refused has its test in internal/shim",
}

// TestLimitsArePinned finds the first words of each line of docs/limits.md, behind a
// quotation mark, in some test: what a user reads of is seen to be so, and a limit
// that is overcome goes from the document with its test. Lines begin differently, so
// that no test of the one stands for the other's.
func TestLimitsArePinned(t *testing.T) {
	limits, err := os.ReadFile(filepath.Join(root(t), "docs", "limits.md"))
	if err != nil {
		t.Fatal(err)
	}
	tests, seen := testTexts(t), map[string]bool{}
	for line := range strings.Lines(string(limits)) {
		words, ok := firstWords(line)
		if !ok {
			continue
		}
		if seen[words] {
			t.Errorf("docs/limits.md: two lines begin with %q", words)
		}
		seen[words] = true
		reason, excused := unpinned[words]
		switch pinned := strings.Contains(tests, `"`+words); {
		case pinned && excused:
			t.Errorf("docs/limits.md: %q is excused (%s), but a test says it", words, reason)
		case !pinned && !excused:
			t.Errorf("docs/limits.md: no test says %q; show it by one that quotes these words, or say in this file why none can", words)
		}
	}
	for words := range unpinned {
		if !seen[words] {
			t.Errorf("docs/limits.md does not say %q any more", words)
		}
	}
}

// firstWords are five of a table's row or of a list's item.
func firstWords(line string) (words string, ok bool) {
	text, ok := strings.CutPrefix(line, "- ")
	if !ok {
		if text, ok = strings.CutPrefix(line, "| "); !ok || strings.HasPrefix(text, "what |") {
			return "", false
		}
	}
	fields := strings.Fields(text)
	return strings.TrimRight(strings.Join(fields[:min(5, len(fields))], " "), ".,:;"), true
}

// testTexts are all tests but those of this package.
func testTexts(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	err := filepath.WalkDir(root(t), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() && (d.Name() == "archtest" || d.Name() == ".git") {
			if err == nil {
				err = fs.SkipDir
			}
			return err
		}
		if !strings.HasSuffix(path, "_test.go") && !strings.HasSuffix(path, ".txtar") {
			return nil
		}
		text, err := os.ReadFile(path)
		all.Write(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all.String()
}
