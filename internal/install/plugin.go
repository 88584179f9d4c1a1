package install

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/client"

	"github.com/particle-net/particle"
	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/internal/hostpath"
)

// enableTimeout is how long Docker may try to reach the plugin's socket before
// it gives up, in seconds.
const enableTimeout = 60

// findPlugin gives the managed plugin, or nil.
func findPlugin(ctx context.Context, api *client.Client) (*types.Plugin, error) {
	plugin, _, err := api.PluginInspectWithRaw(ctx, hostpath.PluginName)
	if errdefs.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, &fault.Error{Op: "look for plugin", On: hostpath.PluginName, Err: err}
	}
	return plugin, nil
}

// settingsOf gives what an administrator has set of a plugin, nil if there is
// no plugin.
func settingsOf(plugin *types.Plugin) map[string]string {
	if plugin == nil {
		return nil
	}
	values := map[string]string{}
	for _, entry := range plugin.Settings.Env {
		if name, value, ok := strings.Cut(entry, "="); ok {
			values[name] = value
		}
	}
	for _, env := range plugin.Config.Env {
		if env.Value != nil && values[env.Name] == *env.Value {
			delete(values, env.Name)
		}
	}
	return values
}

// removePlugin stops and removes the plugin. Networks of its driver may be in
// use: their containers go on, and a plugin made later under the same name
// serves them again.
func removePlugin(ctx context.Context, api *client.Client, image string) error {
	if err := settlePlugin(ctx, api, image); err != nil {
		return err
	}
	err := api.PluginDisable(ctx, hostpath.PluginName, types.PluginDisableOptions{Force: true})
	if err != nil && !errdefs.IsNotFound(err) && !strings.Contains(err.Error(), "already disabled") {
		return &fault.Error{Op: "disable plugin", On: hostpath.PluginName, Err: err, Fix: "look at the log of the Docker daemon"}
	}
	err = api.PluginRemove(ctx, hostpath.PluginName, types.PluginRemoveOptions{Force: true})
	if err != nil && !errdefs.IsNotFound(err) {
		return &fault.Error{Op: "remove plugin", On: hostpath.PluginName, Err: err, Fix: "run `docker plugin rm -f " + hostpath.PluginName + "`"}
	}
	return nil
}

// settlePlugin waits for the end of an enabling that is under way, perhaps for a
// command that was killed. Docker calls the plugin disabled meanwhile, removes it
// if asked, and starts it all the same: its process and its files would stay with
// nobody to stop them (seen with 20.10.24).
func settlePlugin(ctx context.Context, api *client.Client, image string) error {
	for deadline := time.Now().Add(enableTimeout * time.Second); ; {
		found, err := findPlugin(ctx, api)
		if err != nil || found == nil || found.Enabled {
			return err
		}
		var busy bool
		err = helper{command: "attended", network: "none", host: true, caps: hostCaps(), request: found.ID}.run(ctx, api, image, &busy)
		if err != nil || !busy {
			return err
		}
		if time.Now().After(deadline) {
			return fault.New("remove plugin", hostpath.PluginName, "Docker says it is disabled, but it runs",
				"restart dockerd and try again")
		}
	}
}

// makePlugin makes the plugin of an image and enables it.
func makePlugin(ctx context.Context, api *client.Client, image string, settings map[string]string) error {
	root, done, err := exportImage(ctx, api, image)
	if err != nil {
		return err
	}
	defer done()
	content := archive(func(w *tar.Writer) error {
		if err := addText(w, "config.json", particle.PluginConfig); err != nil {
			return err
		}
		return graft(w, root, "rootfs")
	})
	defer content.Close()
	if err := api.PluginCreate(ctx, content, types.PluginCreateOptions{RepoName: hostpath.PluginName}); err != nil {
		return &fault.Error{Op: "create plugin", On: hostpath.PluginName, Err: err, Fix: "look at the log of the Docker daemon"}
	}
	if err := setPlugin(ctx, api, settings); err != nil {
		return err
	}
	if err := api.PluginEnable(ctx, hostpath.PluginName, types.PluginEnableOptions{Timeout: enableTimeout}); err != nil {
		return &fault.Error{Op: "enable plugin", On: hostpath.PluginName, Err: err,
			Fix: "look for lines of the plugin in the log of the Docker daemon (`journalctl -u docker`)"}
	}
	return nil
}

func setPlugin(ctx context.Context, api *client.Client, settings map[string]string) error {
	args := make([]string, 0, len(settings))
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		args = append(args, name+"="+settings[name])
	}
	if len(args) == 0 {
		return nil
	}
	if err := api.PluginSet(ctx, hostpath.PluginName, args); err != nil {
		return &fault.Error{Op: "set plugin", On: strings.Join(args, " "), Err: err,
			Fix: "`docker plugin inspect " + hostpath.PluginName + "` lists the settings"}
	}
	return nil
}

// exportImage gives the files of an image as an archive, by way of a container
// that is never started.
func exportImage(ctx context.Context, api *client.Client, image string) (io.Reader, func(), error) {
	made, err := api.ContainerCreate(ctx, &container.Config{Image: image, Labels: map[string]string{helperLabel: "true"}},
		&container.HostConfig{Runtime: helperRuntime, NetworkMode: "none"}, &network.NetworkingConfig{}, nil, "")
	if err != nil {
		return nil, nil, explainHelper("create", "export", err)
	}
	content, err := api.ContainerExport(ctx, made.ID)
	if err != nil {
		removeContainer(ctx, api, made.ID)
		return nil, nil, explainHelper("read files of", "export", err)
	}
	return content, func() {
		_ = content.Close()
		removeContainer(ctx, api, made.ID)
	}, nil
}

// graft copies an archive into another below a directory.
func graft(w *tar.Writer, from io.Reader, dir string) error {
	entries := tar.NewReader(from)
	for {
		header, err := entries.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		switch path.Clean(header.Name) {
		case ".dockerenv": // tells programs that they run in a container, not that a plugin does
			continue
		case "bin/particle": // for containers of the image; Docker would take half a second to compress it
			continue
		}
		header.Name = path.Join(dir, header.Name)
		if header.Typeflag == tar.TypeLink {
			header.Linkname = path.Join(dir, header.Linkname)
		}
		if err := w.WriteHeader(header); err != nil {
			return err
		}
		if _, err := io.Copy(w, entries); err != nil {
			return err
		}
	}
}
