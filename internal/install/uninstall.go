package install

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/client"
	"golang.org/x/sync/errgroup"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/internal/hostpath"
	"github.com/particle-net/particle/internal/hostsetup"
)

// RemoveOptions are the choices of an uninstallation.
type RemoveOptions struct {
	// Force goes on although networks or containers need what is removed: the
	// containers are stopped and the networks removed where Docker lets them go. Of a
	// cluster the host takes its leave before that, whatever it is to the others.
	Force bool
}

// users are what would not work after an uninstallation.
type users struct {
	networks   []network.Summary
	containers []container.Summary // made for our runtime
}

// networksOf lists the networks whose driver or IPAM driver is particle.
func networksOf(ctx context.Context, api *client.Client) (ours []network.Summary, err error) {
	networks, err := api.NetworkList(ctx, network.ListOptions{})
	if err != nil {
		return nil, &fault.Error{Op: "list networks", Err: err}
	}
	for _, n := range networks {
		if n.Driver == hostpath.DriverName || n.IPAM.Driver == hostpath.DriverName ||
			n.Driver == hostpath.PluginName || n.IPAM.Driver == hostpath.PluginName {
			ours = append(ours, n)
		}
	}
	return ours, nil
}

// findUsers lists them. Docker records the default runtime's name in every
// container made while it was the default, so containers on no network of ours
// are among them.
func findUsers(ctx context.Context, api *client.Client) (users, error) {
	var u users
	var err error
	if u.networks, err = networksOf(ctx, api); err != nil {
		return u, err
	}
	containers, err := api.ContainerList(ctx, container.ListOptions{All: true})
	if err != nil {
		return u, &fault.Error{Op: "list containers", Err: err}
	}
	ours := make([]bool, len(containers))
	var inspections errgroup.Group
	inspections.SetLimit(8)
	for i, c := range containers {
		inspections.Go(func() error {
			found, err := api.ContainerInspect(ctx, c.ID)
			if err != nil && !errdefs.IsNotFound(err) {
				return &fault.Error{Op: "inspect container", On: c.ID, Err: err}
			}
			ours[i] = err == nil && found.HostConfig != nil && found.HostConfig.Runtime == hostpath.RuntimeName
			return nil
		})
	}
	if err := inspections.Wait(); err != nil {
		return u, err
	}
	for i, c := range containers {
		if ours[i] {
			u.containers = append(u.containers, c)
		}
	}
	return u, nil
}

func (u users) describe() string {
	var parts []string
	if len(u.networks) > 0 {
		parts = append(parts, "networks "+strings.Join(networkNames(u.networks), ", "))
	}
	if len(u.containers) > 0 {
		parts = append(parts, "containers "+strings.Join(containerNames(u.containers), ", "))
	}
	return strings.Join(parts, "; ")
}

func networkNames(list []network.Summary) []string {
	names := make([]string, 0, len(list))
	for _, n := range list {
		names = append(names, n.Name)
	}
	slices.Sort(names)
	return names
}

func containerNames(list []container.Summary) []string {
	names := make([]string, 0, len(list))
	for _, c := range list {
		name := c.ID[:12]
		if len(c.Names) > 0 {
			name = strings.TrimPrefix(c.Names[0], "/")
		}
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Remove takes the project off the engine: the plugin, the runtime's entry in
// the daemon's configuration, the files, the images, and what the kernel holds
// for the networks. It may be called again after any failure. While another call
// of Run or Remove changes the engine it fails.
func Remove(ctx context.Context, api *client.Client, opts RemoveOptions, progress Progress) error {
	s := newSteps(progress)
	u := &removal{api: api, opts: opts, unlock: func() {}, giveBack: func() {}}
	defer func() {
		u.giveBack()
		u.unlock()
	}()
	for _, step := range []struct {
		name string
		do   func(context.Context) (string, error)
	}{
		{"check", u.check},
		{"users", u.stopContainers},
		{"cluster", u.leave},
		{"networks", u.removeNetworks},
		{"plugin", u.plugin},
		{"host", u.host},
		{"image", u.images},
	} {
		if err := s.do(ctx, step.name, step.do); err != nil {
			return err
		}
	}
	return nil
}

// removal is one call of Remove.
type removal struct {
	api      *client.Client
	opts     RemoveOptions
	unlock   func()
	giveBack func() // the image
	dataRoot string
	hostName string // the engine's name for its own
	image    string
	users    users
	cluster  standing
	// bootedWithUs says that dockerd runs plugins with our runtime.
	bootedWithUs bool
}

func (r *removal) check(ctx context.Context) (string, error) {
	info, err := engineInfo(ctx, r.api)
	if err != nil {
		return "", err
	}
	r.dataRoot, r.hostName = info.DockerRootDir, info.Name
	if r.unlock, err = takeLock(ctx, r.api, "uninstall"); err != nil {
		return "", err
	}
	if err := sweepHelpers(ctx, r.api); err != nil {
		return "", err
	}
	if r.image, r.giveBack, err = borrowImage(ctx, r.api); err != nil {
		return "", err
	}
	// Before the networks: who removed these while the host is in a cluster would remove
	// them from all its hosts.
	if r.cluster = r.findCluster(ctx); !r.opts.Force {
		if err := r.cluster.refuse(); err != nil {
			return "", err
		}
	}
	if r.users, err = findUsers(ctx, r.api); err != nil {
		return "", err
	}
	if needed := r.users.describe(); needed != "" && !r.opts.Force {
		return "", fault.New("uninstall", "", "still needed by "+needed,
			"remove these first, or pass --force; containers among them cannot be started again afterwards, only made anew")
	}
	if err := r.checkPlugins(ctx); err != nil && !r.opts.Force {
		return "", err
	}
	return fmt.Sprintf("Docker %s on %s", info.ServerVersion, info.Name), nil
}

// checkPlugins looks for other plugins that run through particle-runtime: a
// dockerd runs plugins with the runtime that was the default one when it started
// (daemon/daemon.go, createPluginExec), and stops each with the one it was
// started with. No reload changes that.
func (r *removal) checkPlugins(ctx context.Context) error {
	var ids []string
	err := helper{command: "survivors", network: "none", host: true, caps: hostCaps()}.run(ctx, r.api, r.image, &ids)
	if err != nil {
		return err
	}
	plugins, err := r.api.PluginList(ctx, filters.NewArgs())
	if err != nil {
		return &fault.Error{Op: "list plugins", Err: err}
	}
	var names []string
	for _, p := range plugins {
		switch {
		case !p.Enabled || !slices.Contains(ids, p.ID):
		case p.Name == hostpath.PluginName:
			r.bootedWithUs = true
		default:
			names = append(names, p.Name)
		}
	}
	if len(names) == 0 {
		return nil
	}
	return fault.New("uninstall", "", "particle-runtime runs the plugins "+strings.Join(names, ", "),
		"disable these with `docker plugin disable`, uninstall, restart dockerd, and enable them again")
}

// stopContainers stops those that need us, which only a forced removal comes across.
// One that went on running could not be stopped once its runtime is gone.
func (r *removal) stopContainers(ctx context.Context) (string, error) {
	for _, c := range r.users.containers {
		if err := r.api.ContainerStop(ctx, c.ID, container.StopOptions{}); err != nil && !errdefs.IsNotFound(err) {
			return "", &fault.Error{Op: "stop container", On: c.ID[:12], Err: err, Fix: "stop it and uninstall again"}
		}
	}
	if len(r.users.containers) == 0 {
		return "none", nil
	}
	return "stopped " + strings.Join(containerNames(r.users.containers), ", ") + ", which cannot be started again", nil
}

// removeNetworks removes ours, unless the host is in its cluster still: they would go
// from the others, too.
func (r *removal) removeNetworks(ctx context.Context) (string, error) {
	var left []string
	for _, n := range r.users.networks {
		if r.cluster.in() || !r.removeNetwork(ctx, n.ID) {
			left = append(left, n.Name)
		}
	}
	switch {
	case len(r.users.networks) == 0:
		return "none", nil
	case len(left) > 0:
		return "Docker keeps the networks " + strings.Join(left, ", ") + ", which work no more", nil
	}
	return "removed " + strings.Join(networkNames(r.users.networks), ", "), nil
}

// removeNetwork says whether a network is gone. On a host that has left its cluster
// the plugin may be at removing it, too.
func (r *removal) removeNetwork(ctx context.Context, id string) bool {
	err := r.api.NetworkRemove(ctx, id)
	if err != nil && !errdefs.IsNotFound(err) {
		_, err = r.api.NetworkInspect(ctx, id, network.InspectOptions{})
		return errdefs.IsNotFound(err)
	}
	return true
}

func (r *removal) plugin(ctx context.Context) (string, error) {
	found, err := findPlugin(ctx, r.api)
	if err != nil {
		return "", err
	}
	if found == nil {
		return "was not there", nil
	}
	return "disabled and removed", removePlugin(ctx, r.api, r.image)
}

func (r *removal) host(ctx context.Context) (string, error) {
	result, err := takeOff(ctx, r.api, r.image, r.dataRoot, false)
	if err != nil {
		return "", err
	}
	done := "dockerd's configuration is as it was before, files and kernel state are removed"
	if !result.Exact {
		done = "our settings are taken out of dockerd's configuration, which others had changed since; files and kernel state are removed"
	}
	if r.bootedWithUs {
		done += "; restart dockerd before you enable a plugin, for until then it starts them with particle-runtime"
	}
	return done, nil
}

func (r *removal) images(ctx context.Context) (string, error) {
	if err := removeImages(ctx, r.api, ""); err != nil {
		return "", err
	}
	return "removed", nil
}

// takeOff takes the runtime out of the daemon's configuration and removes
// everything from the host; to undo an installation, what that has made. The plugin must
// be gone.
func takeOff(ctx context.Context, api *client.Client, image, dataRoot string, undo bool) (hostsetup.RemoveResult, error) {
	var result hostsetup.RemoveResult
	info, err := engineInfo(ctx, api)
	if err != nil {
		return result, err
	}
	now := registrationOf(info)
	err = helper{command: "unregister", network: "none", host: true, caps: hostCaps(),
		request: hostsetup.UnregisterRequest{DataRoot: dataRoot, InForce: now.registered || now.isDefault},
	}.run(ctx, api, image, nil)
	if err == nil {
		err = awaitEngine(ctx, api, func(r registration) bool { return !r.registered && !r.isDefault })
	}
	if err != nil {
		return result, err
	}
	// The kernel's state first: what it is made of is named in the files.
	remove := helper{command: "remove", network: "host", host: true, shared: true,
		caps:    append(hostCaps(), "SYS_ADMIN", "NET_ADMIN", "NET_RAW"),
		request: hostsetup.RemoveRequest{DataRoot: dataRoot, Undo: undo}}
	err = remove.run(ctx, api, image, &result)
	if err != nil && strings.Contains(err.Error(), "it is not a shared mount") {
		// Docker mounts nothing for a container there that the host would see, nor did it
		// for the plugin.
		remove.shared = false
		err = remove.run(ctx, api, image, &result)
	}
	return result, err
}

// helperImage finds an image to run helpers in: the installed one, or else one
// made of the running executable.
func helperImage(ctx context.Context, api *client.Client) (string, error) {
	if id, err := newestImage(ctx, api); err != nil || id != "" {
		return id, err
	}
	self, err := os.Executable()
	if err == nil {
		self, err = filepath.EvalSymlinks(self)
	}
	if err != nil {
		return "", &fault.Error{Op: "find own executable", Err: err}
	}
	info, err := engineInfo(ctx, api)
	if err != nil {
		return "", err
	}
	if err := checkProgram(self, architecture(info.Architecture)); err != nil {
		return "", err
	}
	if err := importImage(ctx, api, imageName, map[string]string{"particle": self}); err != nil {
		return "", err
	}
	id, err := findImage(ctx, api, imageName)
	if err == nil && id == "" {
		err = fault.New("make image", imageName, "the engine has not kept it", "look at the log of the Docker daemon")
	}
	return id, err
}
