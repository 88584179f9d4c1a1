package lab

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/particle-net/particle/internal/buildcache"
	"github.com/particle-net/particle/internal/fault"
)

// program is one binary built from a module of tools/, which pins its version.
type program struct {
	name    string // of the binary
	module  string // directory below tools/
	pkg     string // main package
	from    string // module whose version is the program's
	version string // variable the version is written to; "" if the program knows it
	flags   []string
}

// bundle is a set of programs built and cached together.
type bundle struct {
	name     string // directory in the cache
	programs []program
	packages map[string]string // Debian packages the build needs, by a file of each
	finish   func(dir string) error
}

// engineBundle is the current engine. dockerd built as a dependency reports its
// version as "library-import" unless told otherwise.
func engineBundle() bundle {
	const moby, containerd = "github.com/moby/moby/v2", "github.com/containerd/containerd/v2"
	return bundle{name: "engine", finish: finishEngine, packages: map[string]string{
		"/usr/include/seccomp.h": "libseccomp-dev", "/usr/bin/gcc": "gcc", tiniFile: "tini",
	}, programs: []program{
		{name: "dockerd", module: "dockerd", pkg: moby + "/cmd/dockerd", from: moby, version: moby + "/dockerversion.Version"},
		{name: "docker-proxy", module: "dockerd", pkg: moby + "/cmd/docker-proxy", from: moby, version: moby + "/dockerversion.Version"},
		{name: "containerd", module: "containerd", pkg: containerd + "/cmd/containerd", from: containerd, version: containerd + "/version.Version"},
		{name: "containerd-shim-runc-v2", module: "containerd", pkg: containerd + "/cmd/containerd-shim-runc-v2", from: containerd, version: containerd + "/version.Version"},
		{name: "runc", module: "runc", pkg: "github.com/opencontainers/runc", from: "github.com/opencontainers/runc", flags: []string{"-tags=seccomp"}},
	}}
}

// cliBundle is the docker command and its compose plugin.
func cliBundle() bundle {
	const cli, compose = "github.com/docker/cli", "github.com/docker/compose/v2"
	return bundle{name: "cli", finish: finishCLI, programs: []program{
		{name: "docker", module: "cli", pkg: cli + "/cmd/docker", from: cli, version: cli + "/cli/version.Version"},
		{name: "docker-compose", module: "compose", pkg: compose + "/cmd", from: compose, version: compose + "/internal.Version"},
	}}
}

// ensure returns the bundle's directory with the programs in bin, building them
// if this is the first time with these pins.
func (b bundle) ensure(ctx context.Context, progress io.Writer) (string, error) {
	source, err := sourceDir()
	if err != nil {
		return "", err
	}
	key, err := b.key(source)
	if err != nil {
		return "", err
	}
	return buildcache.Dir(ctx, b.name, key, func(dir string) error {
		if err := installPackages(ctx, progress, b.packages); err != nil {
			return err
		}
		if err := b.build(ctx, progress, source, dir); err != nil {
			return err
		}
		return b.finish(dir)
	})
}

// key names a build by its pins and flags.
func (b bundle) key(source string) (string, error) {
	sum := sha256.New()
	for _, p := range b.programs {
		fmt.Fprintf(sum, "%s %s %s\n", p.name, p.pkg, p.flags)
		for _, file := range []string{"go.mod", "go.sum"} {
			raw, err := os.ReadFile(filepath.Join(source, "tools", p.module, file))
			if err != nil {
				return "", &fault.Error{Op: "read pins of", On: p.name, Err: err}
			}
			sum.Write(raw)
		}
	}
	return fmt.Sprintf("%x", sum.Sum(nil)[:8]), nil
}

// build compiles the programs into dir/bin.
func (b bundle) build(ctx context.Context, progress io.Writer, source, dir string) error {
	fmt.Fprintf(progress, "building the %s from Go modules, once; this takes minutes\n", b.name)
	for _, p := range b.programs {
		begun := time.Now()
		module := filepath.Join(source, "tools", p.module)
		version, err := goCommand(ctx, module, nil, "list", "-m", "-f", "{{.Version}}", p.from)
		if err != nil {
			return err
		}
		version = strings.TrimSuffix(strings.TrimPrefix(version, "v"), "+incompatible")
		fmt.Fprintf(progress, "  %s %s ...\n", p.name, version)
		link := "-ldflags=-s -w"
		if p.version != "" {
			link += " -X " + p.version + "=" + version
		}
		// Two compilers at a time: dockerd's largest packages take a gigabyte each.
		argv := append([]string{"build", "-p", "2", "-trimpath", link, "-o", filepath.Join(dir, "bin", p.name)}, p.flags...)
		// runc needs cgo, whatever the caller builds with.
		if _, err := goCommand(ctx, module, []string{"CGO_ENABLED=1"}, append(argv, p.pkg)...); err != nil {
			return err
		}
		fmt.Fprintf(progress, "  %s built (%.0f s)\n", p.name, time.Since(begun).Seconds())
	}
	return nil
}
