package lab

import (
	"context"
	"io"
	"path/filepath"
	"strings"

	"github.com/particle-net/particle/internal/fault"
)

// The releases of etcd that a store is tested with, and upgraded through.
const (
	EtcdDebian  = "3.4" // the distribution's etcd-server, with its etcdctl
	Etcd35      = "3.5"
	Etcd36      = "3.6"
	EtcdCurrent = "3.7" // the one that the plugin embeds
)

// FindEtcd returns the path of an etcd server by its release, installing or
// building it if the machine does not have it yet; lines on that go to progress.
func FindEtcd(ctx context.Context, release string, progress io.Writer) (string, error) {
	if release == EtcdDebian {
		const file = "/usr/bin/etcd"
		return file, installPackages(ctx, progress, map[string]string{file: "etcd-server", "/usr/bin/etcdctl": "etcd-client"})
	}
	// The module of this checkout pins the current one.
	module, ok := map[string]string{Etcd35: "etcd35", Etcd36: "etcd36", EtcdCurrent: ".."}[release]
	if !ok {
		return "", fault.New("find etcd", release, "no such release", "use "+EtcdDebian+", "+Etcd35+", "+Etcd36+" or "+EtcdCurrent)
	}
	const server = "go.etcd.io/etcd/server/v3"
	b := bundle{name: "etcd" + strings.ReplaceAll(release, ".", ""), finish: func(string) error { return nil }, programs: []program{
		{name: "etcd", module: module, pkg: server, from: server},
	}}
	dir, err := b.ensure(ctx, progress)
	return filepath.Join(dir, "bin", "etcd"), err
}
