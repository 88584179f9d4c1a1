package hostsetup

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// attributes are what a replaced file keeps.
type attributes struct {
	mode     fs.FileMode
	uid, gid int
}

// attributesOf gives those of the file at path, or the given mode and root if
// there is none.
func attributesOf(path string, mode fs.FileMode) (attributes, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return attributes{mode: mode}, nil
	}
	if err != nil {
		return attributes{}, err
	}
	a := attributes{mode: info.Mode().Perm()}
	if sys, ok := info.Sys().(*syscall.Stat_t); ok {
		a.uid, a.gid = int(sys.Uid), int(sys.Gid)
	}
	return a, nil
}

// replace puts content at path so that a reader, or a crash, finds the old file
// or the new one and nothing between.
func replace(path string, content io.Reader, a attributes) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".particle-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = io.Copy(tmp, content)
	if err == nil {
		err = errors.Join(tmp.Chown(a.uid, a.gid), tmp.Chmod(a.mode), tmp.Sync())
	}
	if err := errors.Join(err, tmp.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// sweep removes what an interrupted replace has left beside path.
func sweep(path string) {
	left, err := filepath.Glob(filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".particle-*"))
	if err != nil {
		return
	}
	for _, file := range left {
		_ = os.Remove(file) // it is in nobody's way
	}
}

// overwrite is replace for a file that cannot be renamed over because it is a
// mount point, as single files bound into a container are.
func overwrite(path string, content []byte, a attributes) error {
	err := replace(path, bytes.NewReader(content), a)
	if !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.EXDEV) {
		return err
	}
	return os.WriteFile(path, content, a.mode)
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

func hashOf(r io.Reader) (string, error) {
	h := sha256.New()
	_, err := io.Copy(h, r)
	return hex.EncodeToString(h.Sum(nil)), err
}

func hashText(text []byte) string {
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}
