package shim

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/particle-net/particle/internal/dockerdir"
	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/internal/runtimeapi"
	"github.com/particle-net/particle/seccomp"
	"github.com/particle-net/particle/topology"
)

// How long the plugin may take. Docker waits for a container's start without a
// limit of its own; the plugin answers from memory, so ten seconds mean that
// something is wrong with it and the person should hear of it.
const (
	placeLimit   = 10 * time.Second
	claimLimit   = 10 * time.Second
	releaseLimit = 2 * time.Second // nobody waits for the answer's content
)

// bundle is a container about to be created.
type bundle struct {
	path  string // of config.json
	spec  []byte
	mode  os.FileMode
	facts seccomp.Facts
	// exposed is what Host.exposure finds.
	exposed *seccomp.Mount
	dockerdir.Container
}

// create puts the container into its tenant namespace, if it has one. What it
// returns confines the container's processes; nil leaves them as they are.
func (h *Host) create(c Call) (*confinement, error) {
	b, ours, err := openBundle(c)
	if err != nil {
		return nil, err
	}
	if !ours {
		return nil, cmp.Or(h.refuseUnknown(c, b), b.disclaim())
	}
	if b.JoinsContainer() {
		return h.createJoiner(c, b)
	}
	networks := b.Attachments()
	if !anyUserDefined(networks) {
		return nil, b.disclaim()
	}
	b.exposed = h.exposure(b)
	reason := b.wantsOwn(networks)
	own := reason != ""
	place, err := h.place(b, networks, own)
	if err != nil || !place.Member {
		return nil, cmp.Or(err, b.disclaim())
	}
	on := "network " + networkLabel(place, networks)
	switch {
	case own != place.Own:
		return nil, fault.New("start container", b.Label(), "the particle plugin does not know containers with a namespace of their own",
			"install the plugin and particle-runtime of one version")
	case own:
		return nil, h.createOwn(c, b, place, networks, on, reason)
	}
	if err := b.checkLabel(refuse(c, b, on, len(networks) > 1)); err != nil {
		return nil, err
	}
	if filepath.Dir(place.Namespace) != h.Namespaces {
		return nil, fault.New("start container", b.Label(), "the particle plugin names the namespace "+place.Namespace+", which is not in "+h.Namespaces,
			"install the plugin and particle-runtime of one version")
	}
	sharing := seccomp.Sharing{
		Namespace: place.Namespace,
		Annotations: saying(map[string]string{
			annotationDir:     b.Dir,
			annotationNetwork: string(place.Network),
			annotationGuard:   guardName(place.Supervised),
		}),
	}
	if source := b.facts.Source(seccomp.ResolvConf); source != "" && filepath.Dir(source) == b.Dir {
		sharing.ResolvConf = filepath.Join(h.Resolv, c.ID)
		if err := h.writeResolvConf(sharing.ResolvConf, source, b.Container, place); err != nil {
			return nil, err
		}
	}
	return b.share(sharing, place.Supervised)
}

// networkLabel names the network for a person. The plugin may not have heard its
// name yet, but the user typed one.
func networkLabel(place runtimeapi.Placement, networks []runtimeapi.NetworkRef) string {
	switch {
	case place.NetworkName != "":
		return place.NetworkName
	case len(networks) == 1:
		return networks[0].Name
	}
	return place.Network.Short()
}

// openBundle reads the bundle and the directory of its container. It is ours to
// look at when Docker made it as a container: containerd keeps bundles at
// NAMESPACE/ID, where Docker's plugins, this project's among them, have the
// namespace plugins.moby. The container's directory proves it; a plugin has
// none.
func openBundle(c Call) (bundle, bool, error) {
	dir := c.Bundle
	if dir == "" {
		dir = "."
	}
	dir, err := filepath.Abs(dir)
	if err != nil || strings.HasPrefix(filepath.Base(filepath.Dir(dir)), "plugins.") {
		return bundle{}, false, nil
	}
	b := bundle{path: filepath.Join(dir, "config.json")}
	info, err := os.Stat(b.path)
	if err == nil {
		b.mode = info.Mode().Perm()
		b.spec, err = os.ReadFile(b.path)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return bundle{}, false, &fault.Error{Op: "read the specification", On: b.path, Err: err}
	}
	if err == nil {
		b.facts, err = seccomp.Inspect(b.spec)
	}
	if err != nil {
		return bundle{}, false, nil // the runtime finds the same and says it better
	}
	var found bool
	b.Container, found, err = dockerdir.Find(c.ID,
		b.facts.Source("/etc/hosts"), b.facts.Source("/etc/hostname"), b.facts.Source(seccomp.ResolvConf))
	return b, found, err
}

func anyUserDefined(networks []runtimeapi.NetworkRef) bool {
	for _, n := range networks {
		if dockerdir.IsUserDefined(n.Name) {
			return true
		}
	}
	return false
}

// place asks the plugin whose container this is. Without the plugin it finds
// out itself, and a particle network's container is refused.
func (h *Host) place(b bundle, networks []runtimeapi.NetworkRef, own bool) (runtimeapi.Placement, error) {
	request := placeRequest(runtimeapi.Place{Container: b.ID, Name: b.Name, Networks: networks, Own: own})
	reply, err := ask(h.Socket, request, placeLimit)
	if errors.Is(err, runtimeapi.ErrUnreachable) {
		own := slices.IndexFunc(networks, h.ownsNetwork)
		if own < 0 {
			return runtimeapi.Placement{}, nil
		}
		if reply, err = h.insist(request, placeLimit); errors.Is(err, runtimeapi.ErrUnreachable) {
			return runtimeapi.Placement{}, startError(b.Label(), "network "+networks[own].Name+" is a particle network", err)
		}
	}
	switch {
	case err != nil:
		return runtimeapi.Placement{}, &fault.Error{Op: "start container", On: b.Label(), Err: err}
	case reply.Place == nil:
		return runtimeapi.Placement{}, fault.New("start container", b.Label(), "the particle plugin does not say where it belongs",
			"install the plugin and particle-runtime of one version")
	}
	return *reply.Place, nil
}

// startError joins a fact to an error of the plugin's, whose remedy stays at
// the end of the line.
func startError(container, fact string, err error) error {
	var f *fault.Error
	if !errors.As(err, &f) {
		f = &fault.Error{Err: err}
	}
	return &fault.Error{Op: "start container", On: container, Err: fmt.Errorf("%s, and %w", fact, f.Err), Fix: f.Fix}
}

// createJoiner confines a container with `--network container:X` if X is in a
// tenant namespace. Docker has put X's process into the path of the network
// namespace. Comparing the namespace itself with ours tells more than following
// X's records would: X may be a joiner too, at any distance.
func (h *Host) createJoiner(c Call, b bundle) (*confinement, error) {
	path, err := h.sameNamespace(b.facts.Network)
	if err != nil {
		return nil, err
	}
	resolv := h.joinedResolvConf(b)
	switch {
	case path == "" && resolv == "":
		return nil, b.disclaim()
	case path == "": // the other has a namespace of its own
		return nil, b.rewrite(seccomp.Separate, seccomp.Sharing{ResolvConf: resolv, Annotations: saying(nil)})
	}
	b.exposed = h.exposure(b)
	if err := refuse(c, b, "the network of the container it joins", false); err != nil {
		return nil, err
	}
	target, err := b.joined()
	if err != nil {
		return nil, err
	}
	supervised, err := h.supervised(c, target)
	if err != nil {
		return nil, err
	}
	sharing := seccomp.Sharing{
		Namespace: path, // one spelling, so that later commands recognise it
		Annotations: saying(map[string]string{
			annotationDir:     b.Dir,
			annotationNetwork: filepath.Base(path),
			annotationJoin:    string(target),
			annotationGuard:   guardName(supervised),
		}),
		ResolvConf: resolv,
	}
	return b.share(sharing, supervised)
}

// joinedResolvConf is the replacement of the resolv.conf that Docker shows a
// joiner, which is the other's. It is empty if there is none.
func (h *Host) joinedResolvConf(b bundle) string {
	source := b.facts.Source(seccomp.ResolvConf)
	resolv := filepath.Join(h.Resolv, filepath.Base(filepath.Dir(source)))
	if _, err := os.Stat(resolv); err != nil || filepath.Dir(filepath.Dir(source)) != filepath.Dir(b.Dir) {
		return ""
	}
	return resolv
}

// refuseUnknown keeps a container out of a tenant namespace that would come
// into it as it is, because Docker's directory of it was not found.
func (h *Host) refuseUnknown(c Call, b bundle) error {
	if path, err := h.sameNamespace(b.facts.Network); path == "" {
		return err
	}
	return fault.New("start container", topology.ContainerID(c.ID).Short(),
		"it joins a container of a particle network, and nothing leads to what Docker knows of it",
		"leave at least one of /etc/hosts, /etc/hostname and /etc/resolv.conf to Docker")
}

// joined is the container whose address a joiner shares. Docker writes the id
// down at `docker create`, but keeps a name or the start of an id as it was
// typed where there was no such container then (adaptSharedNamespaceContainer).
// The files it shows to a joiner lead to one all the same: they lie in the
// directory of the container at the end of the chain.
func (b bundle) joined() (topology.ContainerID, error) {
	all := filepath.Dir(b.Dir)
	_, named, _ := strings.Cut(b.Host.NetworkMode, ":")
	candidates := []string{named}
	for _, file := range []string{"/etc/hosts", "/etc/hostname", seccomp.ResolvConf} {
		if dir := filepath.Dir(b.facts.Source(file)); filepath.Dir(dir) == all {
			candidates = append(candidates, filepath.Base(dir))
		}
	}
	for _, name := range candidates {
		id, err := topology.ParseContainerID(name)
		if err != nil || id == b.ID {
			continue
		}
		if _, err := os.Stat(filepath.Join(all, name)); err == nil {
			return id, nil
		}
	}
	return "", fault.New("start container", b.Label(), "Docker's files do not say which container "+named+" is",
		"create it anew with --network container:ID, the whole id")
}

// sameNamespace returns the file of the tenant namespace that a path leads to,
// or nothing if it leads to none.
func (h *Host) sameNamespace(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	target, err := os.Stat(path)
	var entries []fs.DirEntry
	if err == nil {
		entries, err = os.ReadDir(h.Namespaces)
	}
	if errors.Is(err, fs.ErrNotExist) { // of the path the runtime says it better
		return "", nil
	}
	if err != nil {
		return "", &fault.Error{Op: "look for the tenant namespace of", On: path, Err: err}
	}
	for _, entry := range entries {
		file := filepath.Join(h.Namespaces, entry.Name())
		if info, err := os.Stat(file); err == nil && os.SameFile(info, target) {
			return file, nil
		}
	}
	return "", nil
}

// share writes the edited specification back.
func (b bundle) share(s seccomp.Sharing, supervised bool) (*confinement, error) {
	return &confinement{container: b.ID, supervised: supervised, fresh: true}, b.rewrite(seccomp.Share, s)
}

// disclaim takes out of the specification of another's container what the later commands
// would believe. It is Docker's encoder that wrote the names, as they are.
func (b bundle) disclaim() error {
	if !bytes.Contains(b.spec, []byte(`"`+annotationPrefix)) {
		return nil
	}
	return b.rewrite(seccomp.Separate, seccomp.Sharing{Annotations: saying(nil)})
}

func (b bundle) rewrite(edit func([]byte, seccomp.Sharing) ([]byte, error), s seccomp.Sharing) error {
	spec, err := edit(b.spec, s)
	if err == nil {
		err = writeFile(b.path, spec, b.mode)
	}
	if err != nil {
		return &fault.Error{Op: "start container", On: b.Label(), Err: err}
	}
	return nil
}
