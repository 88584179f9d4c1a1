package lab

import (
	"io"
	"os"
	"path/filepath"

	"github.com/particle-net/particle/internal/fault"
)

// CopyIn copies a file of the machine into the host, keeping its mode. It replaces
// what was there by a rename, so that a running program may be replaced. Missing
// directories are made.
func (h *Host) CopyIn(source, target string) error {
	if err := copyFile(source, filepath.Join(h.Root(), target)); err != nil {
		return &fault.Error{Op: "copy " + source + " to " + h.name, On: target, Err: err}
	}
	return nil
}

func copyFile(source, target string) error {
	in, err := os.Open(source)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return err
	}
	tmp := target + ".new"
	out, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, info.Mode().Perm())
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	if closeErr := out.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		// The umask took bits from the mode at creation.
		err = os.Chmod(tmp, info.Mode().Perm())
	}
	if err == nil {
		err = os.Rename(tmp, target)
	}
	if err != nil {
		os.Remove(tmp)
	}
	return err
}
