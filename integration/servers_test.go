package integration

import (
	"errors"
	"path/filepath"

	"github.com/particle-net/particle/internal/fault"
)

// serversArchive has the servers of testdata/servers.txtar, as the distribution
// builds them, and what they need.
func serversArchive() ([]byte, error) {
	r := newRoot()
	steps := []func() error{
		r.common,
		func() error { return r.dir(0o755, "var/lib", "var/lib/nginx", "var/log", "var/log/nginx") },
		func() error { return r.ours("probe") },
		func() error { return r.copy("/bin/busybox") },
		func() error { return r.links("/bin/busybox", "bin/sh", "bin/grep", "bin/wget") },
		func() error { return r.program("/usr/sbin/nginx") },
		func() error { return r.program("/usr/bin/redis-server") },
		func() error { return r.program("/usr/bin/redis-cli") },
		func() error { return r.program("/usr/bin/python3") },
		r.python,
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return nil, &fault.Error{Op: "build image", On: serversImage, Err: err, Fix: "run make packages, which installs the servers"}
		}
	}
	return r.bytes()
}

// python takes the library that the interpreter expects beside itself.
func (r *root) python() error {
	found, err := filepath.Glob("/usr/lib/python3.*/http/server.py")
	if err != nil {
		return err
	}
	if len(found) == 0 {
		return errors.New("no library of Python below /usr/lib")
	}
	for _, file := range found {
		if err := r.tree(filepath.Dir(filepath.Dir(file))); err != nil {
			return err
		}
	}
	return nil
}
