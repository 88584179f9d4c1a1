package install

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/mount"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/client"
	"github.com/docker/docker/pkg/stdcopy"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/internal/hostsetup"
)

// helperLabel marks what must not outlive a command: helper containers, and the
// network of the final test.
const helperLabel = "particle.helper"

// helperRuntime is one that every engine has; the default one may be ours, half
// installed.
const helperRuntime = "runc"

// helperTimeout bounds the work of a helper container, which takes a second or
// two on a host that is not busy.
const helperTimeout = 3 * time.Minute

// tidyTimeout bounds what is done after the command's own context has ended.
const tidyTimeout = 2 * time.Minute

// helper is a container to be run for one hidden subcommand.
type helper struct {
	command string
	request any      // marshalled as the command's argument; none if nil
	secret  any      // marshalled to its standard input, where no inspection finds it; none if nil
	caps    []string // beyond none at all
	network string   // "none" or "host"
	host    bool     // gets the host's root directory and process ids
	// shared makes mounts and unmounts under /run reach the host.
	shared bool
	binds  []mount.Mount
}

// hostCaps let a helper find dockerd's files and write wherever root may.
func hostCaps() []string {
	return []string{"SYS_CHROOT", "SYS_PTRACE", "DAC_OVERRIDE", "CHOWN", "FOWNER"}
}

func (h helper) config(image string) (*container.Config, *container.HostConfig, error) {
	command := []string{"host-setup", h.command}
	if h.request != nil {
		raw, err := json.Marshal(h.request)
		if err != nil {
			return nil, nil, err
		}
		command = append(command, string(raw))
	}
	host := &container.HostConfig{
		AutoRemove: true, Runtime: helperRuntime, NetworkMode: container.NetworkMode(h.network),
		CapDrop: []string{"ALL"}, CapAdd: h.caps,
		LogConfig: container.LogConfig{Type: "none"}, Mounts: h.binds,
	}
	// AppArmor's and SELinux's profiles for containers forbid mounting, and
	// reaching the host's files and sockets.
	host.SecurityOpt = []string{"apparmor=unconfined", "label=disable"}
	if h.host {
		host.PidMode = "host"
		host.Mounts = append(host.Mounts, mount.Mount{Type: mount.TypeBind, Source: "/", Target: hostsetup.HostRoot})
	}
	if h.shared {
		host.Mounts = append(host.Mounts, mount.Mount{Type: mount.TypeBind, Source: "/run", Target: hostsetup.HostRoot + "/run",
			BindOptions: &mount.BindOptions{Propagation: mount.PropagationRShared}})
	}
	reads := h.secret != nil
	return &container.Config{Image: image, Cmd: command, AttachStdout: true, AttachStderr: true,
		AttachStdin: reads, OpenStdin: reads, StdinOnce: reads,
		Labels: map[string]string{helperLabel: "true"}}, host, nil
}

// run runs the helper to its end and reads its result, which may be nil. What
// the helper says on its standard error is the error.
func (h helper) run(ctx context.Context, api *client.Client, image string, result any) error {
	ctx, cancel := context.WithTimeoutCause(ctx, helperTimeout, errHelperSlow)
	defer cancel()
	config, host, err := h.config(image)
	if err != nil {
		return err
	}
	made, err := api.ContainerCreate(ctx, config, host, &network.NetworkingConfig{}, nil, "")
	if err != nil {
		return explainHelper("create", h.command, err)
	}
	defer removeContainer(ctx, api, made.ID)
	attached, err := api.ContainerAttach(ctx, made.ID, container.AttachOptions{Stream: true, Stdin: h.secret != nil, Stdout: true, Stderr: true})
	if err != nil {
		return explainHelper("attach to", h.command, err)
	}
	defer attached.Close()
	exit, failed := api.ContainerWait(ctx, made.ID, container.WaitConditionNextExit)
	if err := api.ContainerStart(ctx, made.ID, container.StartOptions{}); err != nil {
		return explainHelper("start", h.command, err)
	}
	stop := context.AfterFunc(ctx, attached.Close)
	defer stop()
	if h.secret != nil {
		if err := errors.Join(json.NewEncoder(attached.Conn).Encode(h.secret), attached.CloseWrite()); err != nil {
			return explainHelper("write to", h.command, err)
		}
	}
	var stdout, stderr bytes.Buffer
	if _, err := stdcopy.StdCopy(&stdout, &stderr, attached.Reader); err != nil && ctx.Err() == nil {
		return explainHelper("read from", h.command, err)
	}
	select {
	case err := <-failed:
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return explainHelper("wait for", h.command, err)
	case status := <-exit:
		if status.StatusCode != 0 {
			return errors.New(strings.TrimPrefix(strings.TrimSpace(stderr.String()), "particle: ")) // main says it again
		}
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(stdout.Bytes(), result); err != nil {
		return explainHelper("understand", h.command, err)
	}
	return nil
}

// errHelperSlow is the cause when a helper does not come to its end.
var errHelperSlow = errors.New("it did not end in time")

func explainHelper(op, command string, err error) error {
	return &fault.Error{Op: op + " helper container", On: command, Err: err, Fix: "look at the log of the Docker daemon"}
}

// removeContainer removes a container even if ctx has ended, and returns when it
// is gone: Docker removes one that ended by itself some time after its end, and
// refuses to be told so meanwhile.
func removeContainer(ctx context.Context, api *client.Client, id string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), tidyTimeout)
	defer cancel()
	err := api.ContainerRemove(ctx, id, container.RemoveOptions{Force: true, RemoveVolumes: true})
	if !errdefs.IsConflict(err) {
		return
	}
	gone, failed := api.ContainerWait(ctx, id, container.WaitConditionRemoved)
	select {
	case <-gone:
	case <-failed: // gone before we asked; or nothing more can be done
	}
}

// sweepHelpers removes what a command that was cut off has left.
func sweepHelpers(ctx context.Context, api *client.Client) error {
	ours := filters.NewArgs(filters.Arg("label", helperLabel))
	containers, err := api.ContainerList(ctx, container.ListOptions{All: true, Filters: ours})
	if err != nil {
		return &fault.Error{Op: "list containers", Err: err}
	}
	var problems []error
	for _, c := range containers {
		err := api.ContainerRemove(ctx, c.ID, container.RemoveOptions{Force: true, RemoveVolumes: true})
		if err != nil && !errdefs.IsNotFound(err) && !errdefs.IsConflict(err) {
			problems = append(problems, &fault.Error{Op: "remove helper container", On: c.ID, Err: err})
		}
	}
	networks, err := api.NetworkList(ctx, network.ListOptions{Filters: ours})
	if err != nil {
		return &fault.Error{Op: "list networks", Err: err}
	}
	for _, n := range networks {
		if err := api.NetworkRemove(ctx, n.ID); err != nil && !errdefs.IsNotFound(err) {
			problems = append(problems, &fault.Error{Op: "remove network", On: n.Name, Err: err})
		}
	}
	return errors.Join(problems...)
}
