// Package buildcache keeps what tests and labs need and what takes minutes to
// make or to fetch: engines, etcds, kernels. It is all below particle/ in the
// user's cache directory, and may be removed at any time that nothing runs.
package buildcache

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/internal/fault"
)

// Dir returns the directory of one thing under one key, which build fills if it
// is the first to be asked for it. One process builds, others wait; an
// interrupted build leaves nothing that counts.
func Dir(ctx context.Context, name, key string, build func(dir string) error) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", &fault.Error{Op: "find cache", Err: err, Fix: "set HOME or XDG_CACHE_HOME"}
	}
	parent := filepath.Join(cache, "particle", name)
	dir := filepath.Join(parent, key)
	if isDir(dir) {
		return dir, nil
	}
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return "", &fault.Error{Op: "make cache", On: parent, Err: err}
	}
	unlock, err := lockFile(ctx, filepath.Join(parent, "lock"))
	if err != nil {
		return "", err
	}
	defer unlock()
	if isDir(dir) {
		return dir, nil
	}
	tmp, err := os.MkdirTemp(parent, "building-")
	if err != nil {
		return "", &fault.Error{Op: "make cache", On: parent, Err: err}
	}
	defer os.RemoveAll(tmp) // after the rename there is nothing left to remove
	if err := build(tmp); err != nil {
		return "", err
	}
	if err := os.Chmod(tmp, 0o755); err != nil {
		return "", err
	}
	return dir, os.Rename(tmp, dir)
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// lockFile takes a lock that ends with the process.
func lockFile(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, &fault.Error{Op: "lock", On: path, Err: err}
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			f.Close()
			return nil, &fault.Error{Op: "lock", On: path, Err: err}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			f.Close()
			return nil, &fault.Error{Op: "wait for another build", On: path, Err: ctx.Err()}
		}
	}
}
