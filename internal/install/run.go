package install

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/docker/docker/api/types"
	"github.com/docker/docker/api/types/system"
	"github.com/docker/docker/client"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/internal/hostpath"
	"github.com/particle-net/particle/internal/hostsetup"
)

// reloadTimeout is how long dockerd may take to load a new configuration. It
// does so at once, unless the machine is very busy.
const reloadTimeout = 30 * time.Second

// Options are the choices of an installation.
type Options struct {
	// From is the directory with the three programs; empty means that of the
	// running executable.
	From string
	// NoDefaultRuntime registers the runtime without making it the default:
	// containers on particle networks then need `--runtime particle`.
	NoDefaultRuntime bool
	// Settings are the plugin's, by the names in config.json. What is not named
	// keeps the value it has.
	Settings map[string]string
	// NoVerify leaves out the final test with a network and a container.
	NoVerify bool
}

// Run installs on the engine, or upgrades or completes what is there. It may be
// called again after any failure, and after having been killed. If it fails or
// ctx ends it takes back what it did, and says in the error what it could not
// take back. While another call of Run or Remove changes the engine it fails.
func Run(ctx context.Context, api *client.Client, opts Options, progress Progress) error {
	i := &installation{api: api, opts: opts, steps: newSteps(progress), unlock: func() {}}
	defer func() { i.unlock() }()
	if err := i.run(ctx); err != nil {
		return i.steps.rollBack(ctx, err)
	}
	return nil
}

// installation is one call of Run.
type installation struct {
	api  *client.Client
	opts Options
	*steps

	unlock func()
	info   system.Info
	image  string // id
	// What was there before.
	oldImage  string
	oldPlugin *types.Plugin
	inUse     bool // networks or containers need what is installed
	settings  map[string]string
}

func (i *installation) run(ctx context.Context) error {
	for _, step := range []struct {
		name string
		do   func(context.Context) (string, error)
	}{
		{"engine", i.checkEngine},
		{"image", i.makeImage},
		{"host", i.checkHost},
		{"runtime", i.registerRuntime},
		{"plugin", i.replacePlugin},
		{"test", i.test},
		{"tidy", i.tidy},
	} {
		if err := i.do(ctx, step.name, step.do); err != nil {
			return err
		}
	}
	return nil
}

func (i *installation) checkEngine(ctx context.Context) (string, error) {
	info, err := engineInfo(ctx, i.api)
	if err != nil {
		return "", err
	}
	i.info = info
	if err := failure(engineChecks(i.api, info)); err != nil {
		return "", err
	}
	if i.opts.From, err = sourceDir(i.opts.From); err != nil {
		return "", err
	}
	if i.unlock, err = takeLock(ctx, i.api, "install"); err != nil {
		return "", err
	}
	if i.oldPlugin, err = findPlugin(ctx, i.api); err != nil {
		return "", err
	}
	if err := sweepHelpers(ctx, i.api); err != nil {
		return "", err
	}
	users, err := findUsers(ctx, i.api)
	if err != nil {
		return "", err
	}
	i.inUse = len(users.networks)+len(users.containers) > 0
	return fmt.Sprintf("Docker %s on %s", info.ServerVersion, info.Name), nil
}

func (i *installation) makeImage(ctx context.Context) (string, error) {
	list, err := images(ctx, i.api)
	if err != nil {
		return "", err
	}
	for _, image := range list {
		if named(image) {
			i.oldImage = image.ID
			break
		}
	}
	i.back("image", func(ctx context.Context) error {
		if i.oldImage != "" {
			// Our name may have moved to the new image.
			if err := i.api.ImageTag(ctx, i.oldImage, imageName); err != nil {
				return err
			}
		}
		return removeImages(ctx, i.api, i.oldImage)
	})
	if err := makeImage(ctx, i.api, i.opts.From, architecture(i.info.Architecture)); err != nil {
		return "", err
	}
	i.image, err = findImage(ctx, i.api, imageName)
	if err == nil && i.image == "" {
		err = fault.New("make image", imageName, "the engine has not kept it", "look at the log of the Docker daemon")
	}
	return imageName, err
}

func (i *installation) checkHost(ctx context.Context) (string, error) {
	checks, err := probe(ctx, i.api, i.image, i.probeRequest())
	if err != nil {
		return "", err
	}
	warnings := "everything needed is there"
	var list []string
	for _, c := range checks {
		if c.Grade != "ok" && !slices.Contains(list, c.Name) {
			list = append(list, c.Name)
		}
	}
	if len(list) > 0 {
		warnings = "see `particle doctor` about " + strings.Join(list, ", ")
	}
	return warnings, failure(checks)
}

func (i *installation) probeRequest() hostsetup.ProbeRequest {
	settings := settingsOf(i.oldPlugin)
	if settings == nil {
		settings = map[string]string{}
	}
	maps.Copy(settings, i.opts.Settings)
	return probeRequest(i.info, settings, !i.opts.NoDefaultRuntime, i.oldPlugin != nil && i.oldPlugin.Enabled)
}

func (i *installation) registerRuntime(ctx context.Context) (string, error) {
	before := registrationOf(i.info)
	i.back("runtime", func(ctx context.Context) error { return i.unregister(ctx, before) })
	inForce := before.registered && before.isDefault == !i.opts.NoDefaultRuntime
	result, err := i.setUp(ctx, i.image, !i.opts.NoDefaultRuntime, inForce)
	if err != nil {
		return "", err
	}
	i.settings = result.Settings
	return fmt.Sprintf("particle-runtime in front of %s, registered in %s", result.Runtime, result.Config), i.awaitRegistration(ctx)
}

// setUp runs an image's own installer on the host.
func (i *installation) setUp(ctx context.Context, image string, makeDefault, inForce bool) (hostsetup.InstallResult, error) {
	var result hostsetup.InstallResult
	err := helper{command: "install", network: "none", host: true, caps: hostCaps(),
		request: hostsetup.InstallRequest{
			DataRoot: i.info.DockerRootDir, Current: currentRuntime(i.info), MakeDefault: makeDefault, InForce: inForce,
			Settings: i.settled(),
		}}.run(ctx, i.api, image, &result)
	return result, err
}

// settled are the settings of the plugin that is there. One that an installation made and
// was cut off from setting has none yet: those on record are to be its.
func (i *installation) settled() map[string]string {
	settings := settingsOf(i.oldPlugin)
	if i.oldPlugin != nil && !i.oldPlugin.Enabled && len(settings) == 0 {
		return nil
	}
	return settings
}

// unregister takes the runtime back. An engine that had an installation before
// gets that one's programs again; otherwise everything goes, unless something
// needs it.
func (i *installation) unregister(ctx context.Context, before registration) error {
	if before.registered && i.oldImage != "" {
		_, err := i.setUp(ctx, i.oldImage, before.isDefault, false)
		return err
	}
	if i.inUse || i.oldPlugin != nil {
		return nil
	}
	_, err := takeOff(ctx, i.api, i.image, i.info.DockerRootDir, true)
	return err
}

// awaitRegistration waits until the engine says that it has loaded what was
// written.
func (i *installation) awaitRegistration(ctx context.Context) error {
	wantDefault := !i.opts.NoDefaultRuntime
	return awaitEngine(ctx, i.api, func(r registration) bool { return r.registered && r.isDefault == wantDefault })
}

// awaitEngine waits until the engine's registration of our runtime is as
// wanted. A reload has no other answer than its effect.
func awaitEngine(ctx context.Context, api *client.Client, wanted func(registration) bool) error {
	ctx, cancel := context.WithTimeout(ctx, reloadTimeout)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		if info, err := engineInfo(ctx, api); err == nil && wanted(registrationOf(info)) {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fault.New("reload dockerd", "", "it has not taken the new configuration",
				"read in its log (`journalctl -u docker`) why, mend that, and try again")
		}
	}
}

func (i *installation) replacePlugin(ctx context.Context) (string, error) {
	if i.settings == nil {
		i.settings = map[string]string{}
	}
	old := maps.Clone(i.settings)
	maps.Copy(i.settings, i.opts.Settings)
	i.back("plugin", func(ctx context.Context) error {
		if err := removePlugin(ctx, i.api, i.image); err != nil || i.oldPlugin == nil {
			return err
		}
		if i.oldImage == "" {
			return fault.New("bring back plugin", hostpath.PluginName, "the image it was made from has been removed",
				"install a release that works; networks and running containers keep until then")
		}
		return makePlugin(ctx, i.api, i.oldImage, old)
	})
	if err := removePlugin(ctx, i.api, i.image); err != nil {
		return "", err
	}
	if err := makePlugin(ctx, i.api, i.image, i.settings); err != nil {
		return "", err
	}
	if i.oldPlugin != nil {
		return hostpath.PluginName + " replaced and enabled", nil
	}
	return hostpath.PluginName + " enabled", nil
}

func (i *installation) test(ctx context.Context) (string, error) {
	if i.opts.NoVerify {
		return "left out", nil
	}
	runtime := ""
	if i.opts.NoDefaultRuntime {
		runtime = hostpath.RuntimeName
	}
	return verify(ctx, i.api, i.image, runtime)
}

// tidy removes what earlier versions have left. The installation is complete by
// then, so that a failure here takes nothing back.
func (i *installation) tidy(ctx context.Context) (string, error) {
	i.undo = nil
	return "nothing is left of earlier versions", removeImages(ctx, i.api, i.image)
}
