package addrguard

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// lock keeps others from changing what is attached, in this process and in any. Where
// the pins are gone, they are there again when it returns.
func (g *Guard) lock(ctx context.Context) (unlock func(), err error) {
	unlock, err = g.flock(ctx)
	if err != nil {
		return nil, err
	}
	if err := g.restore(); err != nil {
		unlock()
		return nil, err
	}
	return unlock, nil
}

// restore pins and attaches again what went with the pins' file system, which somebody
// has unmounted: programs hang nowhere then, and containers are kept apart by nothing.
// The maps are still this process's, so it is known who was admitted. Devices get theirs
// by the next Protect. The pins' lock is held.
func (g *Guard) restore() error {
	if g.core == nil { // Open has not loaded any yet
		return nil
	}
	if _, err := os.Lstat(filepath.Join(g.dir, guardMapContainers)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, p := range []*part{g.core, g.unix, g.device} {
		if err := g.pinMaps(p); err != nil {
			return err
		}
	}
	g.mu.Lock()
	clear(g.anchors)
	clear(g.leaving)
	g.mu.Unlock()
	clear(g.branches)
	return g.takeOver()
}

// pinMaps pins those of a part's maps that are to be, and are not.
func (g *Guard) pinMaps(p *part) error {
	if p == nil {
		return nil
	}
	for name, m := range p.Maps {
		path := filepath.Join(g.dir, name)
		if _, err := os.Lstat(path); err == nil || p.spec.Maps[name].Pinning != ebpf.PinByName {
			continue
		}
		bare, err := m.Clone() // the map itself takes itself for pinned
		if err != nil {
			return fmt.Errorf("pin map %s: %w", name, err)
		}
		if err := errors.Join(bare.Pin(path), bare.Close()); err != nil {
			return fmt.Errorf("pin map %s: %w", name, err)
		}
	}
	return nil
}

// flock takes the lock of the pins' directory, which it makes if it is gone.
func (g *Guard) flock(ctx context.Context) (unlock func(), err error) {
	dir, err := os.Open(g.dir)
	if errors.Is(err, fs.ErrNotExist) && g.core != nil {
		if err := g.remount(); err != nil {
			return nil, err
		}
		dir, err = os.Open(g.dir)
	}
	if err != nil {
		return nil, err
	}
	const again = 2 * time.Millisecond // attaching one anchor takes about half a millisecond
	for {
		err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = dir.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			_ = dir.Close()
			return nil, &fs.PathError{Op: "flock", Path: g.dir, Err: err}
		}
		select {
		case <-ctx.Done():
			_ = dir.Close()
			return nil, fmt.Errorf("wait for another process to change the guard: %w", context.Cause(ctx))
		case <-time.After(again):
		}
	}
}

// remount makes the directory of the pins.
func (g *Guard) remount() error {
	g.mu.Lock() // two would mount one on the other
	defer g.mu.Unlock()
	if err := mountBPF(g.opts.Pins); err != nil {
		return err
	}
	return os.MkdirAll(g.dir, 0o700)
}

// errNoTarget is the cause when what a link hangs on is gone.
var errNoTarget = errors.New("its target is gone")

// ensure makes the pinned link run prog. A link that is there gets the program in
// place of the one it has; otherwise attach makes it. errNoTarget if the link is
// there but its target is not; the pin is removed then.
func (g *Guard) ensure(name string, prog *ebpf.Program, attach func() (link.Link, error)) error {
	path := filepath.Join(g.dir, name)
	pinned, err := link.LoadPinnedLink(path, nil)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return g.pin(path, attach)
	case err != nil:
		return fmt.Errorf("open link %s: %w", name, err)
	}
	defer pinned.Close()
	err = pinned.Update(prog)
	if errors.Is(err, unix.ENOLINK) {
		return errors.Join(errNoTarget, os.Remove(path))
	}
	if err != nil {
		return fmt.Errorf("replace program of link %s: %w", name, err)
	}
	return nil
}

func (g *Guard) pin(path string, attach func() (link.Link, error)) error {
	made, err := attach()
	if err != nil {
		return fmt.Errorf("attach %s: %w", filepath.Base(path), err)
	}
	defer made.Close()
	if err := made.Pin(path); err != nil {
		return fmt.Errorf("pin %s: %w", filepath.Base(path), err)
	}
	return nil
}

// pins lists the names of what is pinned.
func (g *Guard) pins() ([]string, error) {
	entries, err := os.ReadDir(g.dir)
	if err != nil {
		return nil, err
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, nil
}

// unpin removes a pin; gone is success. A link that is pinned nowhere else is
// detached by it.
func (g *Guard) unpin(name string) error {
	if err := os.Remove(filepath.Join(g.dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// isLinkPin tells links from maps by their names.
func isLinkPin(name string) bool { return strings.Contains(name, "-") }
