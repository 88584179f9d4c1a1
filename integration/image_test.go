package integration

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"github.com/rogpeppe/go-internal/testscript"
)

// Images beside the lab's own, made of what the host has.
const (
	socketsImage = "particle/sockets:latest" // integration/sockets, for two architectures
	serversImage = "particle/servers:latest" // servers as the distribution has them
)

// archives are the images' root file systems, made once.
var archives = map[string]func() ([]byte, error){
	socketsImage: sync.OnceValues(socketsArchive),
	serversImage: sync.OnceValues(serversArchive),
}

// load makes one of the images known to the host's engine.
func (b *bed) load(ctx context.Context, image string) error {
	archive, err := archives[image]()
	if err != nil {
		return err
	}
	return b.host.ImportImage(ctx, bytes.NewReader(archive), image, "ENV PATH=/usr/sbin:/usr/bin:/sbin:/bin")
}

// cmdImage: image sockets|servers.
func cmdImage(ts *testscript.TestScript, _ bool, args []string) {
	images := map[string]string{"sockets": socketsImage, "servers": serversImage}
	if len(args) != 1 || images[args[0]] == "" {
		ts.Fatalf("usage: image sockets|servers")
	}
	ts.Check(sessionOf(ts).bed.load(context.Background(), images[args[0]]))
}

// root is a root file system being put together.
type root struct {
	buf  bytes.Buffer
	w    *tar.Writer
	have map[string]bool
}

func newRoot() *root {
	r := &root{have: map[string]bool{}}
	r.w = tar.NewWriter(&r.buf)
	return r
}

// dir makes directories that a container needs.
func (r *root) dir(mode int64, names ...string) error {
	for _, name := range names {
		if err := r.w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: mode}); err != nil {
			return err
		}
	}
	return nil
}

func (r *root) file(name string, mode int64, content []byte) error {
	name = strings.TrimPrefix(name, "/")
	if r.have[name] {
		return nil
	}
	r.have[name] = true
	err := r.w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(content))})
	if err == nil {
		_, err = r.w.Write(content)
	}
	return err
}

// links makes names for a program.
func (r *root) links(target string, names ...string) error {
	for _, name := range names {
		if err := r.w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}); err != nil {
			return err
		}
	}
	return nil
}

// copy takes a file of the machine, under its own name.
func (r *root) copy(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return r.file(path, int64(info.Mode().Perm()), content)
}

// program takes a program with the libraries that ldd(1) says it needs.
func (r *root) program(path string) error {
	if err := r.copy(path); err != nil {
		return err
	}
	out, err := exec.Command("ldd", path).CombinedOutput()
	if err != nil && strings.Contains(string(out), "not a dynamic executable") {
		return nil
	}
	if err != nil {
		return fmt.Errorf("ldd %s: %w: %s", path, err, out)
	}
	for line := range strings.Lines(string(out)) {
		for _, field := range strings.Fields(line) {
			if strings.HasPrefix(field, "/") {
				if err := r.copy(field); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// tree takes the Python files below a directory, and what they load.
func (r *root) tree(dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == "__pycache__" || d.Name() == "test" || strings.HasPrefix(d.Name(), "config-")):
			return fs.SkipDir
		case d.Type().IsRegular() && strings.HasSuffix(path, ".so"):
			return r.program(path)
		case d.Type().IsRegular():
			return r.copy(path)
		}
		return nil
	})
}

func (r *root) bytes() ([]byte, error) {
	err := r.w.Close()
	return r.buf.Bytes(), err
}

// common is what every container needs.
func (r *root) common() error {
	if err := r.dir(0o755, "bin", "etc", "proc", "sys", "dev", "mnt", "root", "run", "srv", "var"); err != nil {
		return err
	}
	if err := r.dir(0o1777, "tmp"); err != nil {
		return err
	}
	for name, content := range map[string]string{
		"etc/passwd":        "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33::/srv:/bin/false\nnobody:x:65534:65534::/:/bin/false\n",
		"etc/group":         "root:x:0:\nwww-data:x:33:\nnogroup:x:65534:\n",
		"etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
	} {
		if err := r.file(name, 0o644, []byte(content)); err != nil {
			return err
		}
	}
	return nil
}

func socketsArchive() ([]byte, error) {
	r := newRoot()
	if err := r.common(); err != nil {
		return nil, err
	}
	for _, name := range []string{"sockets", "sockets386"} {
		if err := r.ours(name); err != nil {
			return nil, err
		}
	}
	return r.bytes()
}

// ours takes one of the project's programs to /bin.
func (r *root) ours(name string) error {
	content, err := os.ReadFile(program(name))
	if err != nil {
		return err
	}
	return r.file("bin/"+name, 0o755, content)
}
