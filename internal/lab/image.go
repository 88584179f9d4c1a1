package lab

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/client"

	"github.com/particle-net/particle/internal/fault"
)

// TestImage is the image for test containers: busybox and the probe
// (integration/probe), made without a registry.
const TestImage = "particle/test:latest"

// busyboxFile is where Debian's busybox-static installs it.
const busyboxFile = "/bin/busybox"

// LoadImage makes the test image and loads it into the host's engine. The probe is
// compiled from the particle module's source, which has to be at hand: the working
// directory must be inside a checkout.
func LoadImage(ctx context.Context, h *Host) error {
	dir, err := os.MkdirTemp("", "particle-probe-")
	if err != nil {
		return &fault.Error{Op: "build probe", Err: err}
	}
	defer os.RemoveAll(dir)
	probe := filepath.Join(dir, "probe")
	source, err := sourceDir()
	if err != nil {
		return err
	}
	if _, err := goCommand(ctx, source, []string{"CGO_ENABLED=0"}, "build", "-trimpath", "-ldflags=-s -w", "-o", probe, "./integration/probe"); err != nil {
		return err
	}
	return LoadImageWith(ctx, h, probe)
}

// LoadImageWith is LoadImage with a probe that is compiled: a static program, so that it
// runs in any image.
func LoadImageWith(ctx context.Context, h *Host, probe string) error {
	archive, err := testImage(ctx, probe)
	if err != nil {
		return err
	}
	return h.ImportImage(ctx, bytes.NewReader(archive), TestImage, `CMD ["sh"]`, "ENV PATH="+standardPath)
}

// ImportImage makes a root file system archive (tar) an image of the host's engine.
// changes are Dockerfile instructions.
func (h *Host) ImportImage(ctx context.Context, archive io.Reader, ref string, changes ...string) error {
	cli, err := client.NewClientWithOpts(client.WithHost(h.DockerHost()), client.WithAPIVersionNegotiation())
	if err != nil {
		return &fault.Error{Op: "load image", On: ref, Err: err}
	}
	defer cli.Close()
	said, err := cli.ImageImport(ctx, image.ImportSource{Source: archive, SourceName: "-"}, ref, image.ImportOptions{Changes: changes})
	if err != nil {
		return &fault.Error{Op: "load image " + ref, On: "on " + h.name, Err: err}
	}
	defer said.Close()
	text, err := io.ReadAll(said)
	if err == nil && bytes.Contains(text, []byte(`"error"`)) {
		err = fmt.Errorf("%s", bytes.TrimSpace(text))
	}
	if err != nil {
		return &fault.Error{Op: "load image " + ref, On: "on " + h.name, Err: err}
	}
	return nil
}

// testImage builds the image's root file system.
func testImage(ctx context.Context, probe string) ([]byte, error) {
	if err := installPackages(ctx, io.Discard, map[string]string{busyboxFile: "busybox-static"}); err != nil {
		return nil, err
	}
	busybox, err := os.ReadFile(busyboxFile)
	if err != nil {
		return nil, &fault.Error{Op: "read busybox", Err: err}
	}
	applets, err := exec.CommandContext(ctx, busyboxFile, "--list").Output()
	if err != nil {
		return nil, &fault.Error{Op: "list busybox's commands", Err: err}
	}
	program, err := os.ReadFile(probe)
	if err != nil {
		return nil, &fault.Error{Op: "read probe", Err: err}
	}
	t := newTree()
	for _, dir := range []string{"bin", "etc", "root", "usr/bin", "usr/sbin", "sbin", "var", "proc", "sys", "dev", "run"} {
		t.dir(dir, 0o755)
	}
	t.dir("tmp", 0o1777)
	t.dir("var/tmp", 0o1777)
	t.file("bin/busybox", 0o755, busybox)
	for _, name := range strings.Fields(string(applets)) {
		if name != "busybox" {
			t.link("bin/"+name, "/bin/busybox")
		}
	}
	t.file("bin/probe", 0o755, program)
	t.file("etc/passwd", 0o644, []byte("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"))
	t.file("etc/group", 0o644, []byte("root:x:0:\nnogroup:x:65534:\n"))
	t.file("etc/nsswitch.conf", 0o644, []byte("hosts: files dns\n"))
	return t.bytes()
}

// tree writes an archive and remembers the first error.
type tree struct {
	buf bytes.Buffer
	w   *tar.Writer
	err error
}

func newTree() *tree {
	t := &tree{}
	t.w = tar.NewWriter(&t.buf)
	return t
}

func (t *tree) add(h *tar.Header, content []byte) {
	if t.err == nil {
		t.err = t.w.WriteHeader(h)
	}
	if t.err == nil {
		_, t.err = t.w.Write(content)
	}
}

func (t *tree) dir(name string, mode int64) {
	t.add(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: mode}, nil)
}

func (t *tree) file(name string, mode int64, content []byte) {
	t.add(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(content))}, content)
}

func (t *tree) link(name, target string) {
	t.add(&tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}, nil)
}

func (t *tree) bytes() ([]byte, error) {
	if err := t.w.Close(); t.err == nil {
		t.err = err
	}
	if t.err != nil {
		return nil, &fault.Error{Op: "build image", Err: t.err}
	}
	return t.buf.Bytes(), nil
}
