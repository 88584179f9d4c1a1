package lab

import (
	"os"
	"strings"

	"github.com/particle-net/particle/internal/fault"
)

// mountEntry is one line of a mountinfo file (proc_pid_mountinfo(5)).
type mountEntry struct {
	Root  string // what of the file system is mounted; for a namespace file "net:[4026531840]"
	Point string // where
	Type  string // file system type
	Super string // options of the super block
}

// readMounts parses a mountinfo file.
func readMounts(path string) ([]mountEntry, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, &fault.Error{Op: "read mounts", Err: err}
	}
	var found []mountEntry
	for line := range strings.Lines(string(raw)) {
		// Optional fields before the dash vary in number.
		left, right, ok := strings.Cut(line, " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if !ok || len(l) < 6 || len(r) < 3 {
			continue
		}
		found = append(found, mountEntry{Root: unescapeMount(l[3]), Point: unescapeMount(l[4]), Type: r[0], Super: r[2]})
	}
	return found, nil
}

// unescapeMount undoes the four octal escapes the kernel writes in paths.
func unescapeMount(path string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(path)
}
