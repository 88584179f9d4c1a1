package addrguard

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/internal/fault"
)

// Cleanup ends the guard on this host: it removes every pin, and with them the
// programs, and the mounts that Open made. Containers that run are not kept apart
// after it. Nothing there is success. No Guard may be open.
func Cleanup(_ context.Context, opts Options) error {
	dir := filepath.Join(opts.Pins, layout)
	entries, err := os.ReadDir(dir)
	errs := []error{}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, err)
	}
	// Links first: a program must not outlive what it looks things up in.
	for _, e := range entries {
		if isLinkPin(e.Name()) {
			errs = append(errs, detached(filepath.Join(dir, e.Name())))
		}
	}
	for _, e := range entries {
		if !isLinkPin(e.Name()) {
			errs = append(errs, removed(filepath.Join(dir, e.Name())))
		}
	}
	errs = append(errs, removed(dir), unmountOwn(opts.Pins), unmountOwn(opts.Cgroups), removed(opts.Pins))
	if err := errors.Join(errs...); err != nil {
		return &fault.Error{Op: "remove address guard", On: opts.Pins, Err: err,
			Fix: "end processes that use it and repeat, or restart the host"}
	}
	return nil
}

// InForce reports whether programs hang where a guard of this or another version has put
// them since the boot. Open leaves pins of maps also where it fails.
func InForce(pins string) bool {
	all, err := filepath.Glob(filepath.Join(pins, "*", "*"))
	return err == nil && slices.ContainsFunc(all, func(path string) bool { return isLinkPin(filepath.Base(path)) })
}

// detached ends a link. To remove its pin would do, but some moments later.
func detached(path string) error {
	pinned, err := link.LoadPinnedLink(path, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer pinned.Close()
	err = pinned.Detach()
	if errors.Is(err, link.ErrNotSupported) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOLINK) {
		err = nil // no kind to detach, or detached with its target
	}
	return errors.Join(err, removed(path))
}

// removed removes a file or an empty directory; one that is used otherwise stays.
func removed(path string) error {
	err := os.Remove(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EBUSY) {
		return nil
	}
	return err
}
