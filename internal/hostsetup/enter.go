package hostsetup

import (
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/internal/fault"
)

// HostRoot is where a helper container has the host's root directory.
const HostRoot = "/host"

// imageDir is where the image has the programs; see the Dockerfile.
const imageDir = "/bin"

// Programs are the files that installation puts on the host, open for reading.
type Programs struct {
	Runtime, CLI *os.File
}

// OpenPrograms opens the image's programs. It must come before Enter.
func OpenPrograms() (Programs, error) {
	var p Programs
	var err error
	if p.Runtime, err = os.Open(filepath.Join(imageDir, "particle-runtime")); err != nil {
		return Programs{}, &fault.Error{Op: "open program", Err: err, Fix: "install again, to make the image anew"}
	}
	if p.CLI, err = os.Open(filepath.Join(imageDir, "particle")); err != nil {
		return Programs{}, &fault.Error{Op: "open program", Err: err, Fix: "install again, to make the image anew"}
	}
	return p, nil
}

// Enter makes the host's root directory this process's own. It cannot be undone.
func Enter() error {
	err := unix.Chroot(HostRoot)
	if err == nil {
		err = os.Chdir("/")
	}
	if err != nil {
		return &fault.Error{Op: "enter host", On: HostRoot, Err: err, Fix: "run this through `particle install`"}
	}
	return nil
}

// same reports whether the file at path has the content of r.
func same(path string, r *os.File) bool {
	have, err := os.Open(path)
	if err != nil {
		return false
	}
	defer have.Close()
	a, errA := digest(have)
	b, errB := digest(r)
	return errA == nil && errB == nil && a == b
}

// digest reads a file from its beginning.
func digest(f *os.File) (string, error) {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return "", err
	}
	return hashOf(f)
}
