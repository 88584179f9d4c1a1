package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/client"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/internal/lab"
)

// spec is one container to start.
type spec struct {
	name     string
	network  string
	runtime  string // "" is the engine's default
	label    string // KEY=VALUE, or ""
	program  []string
	hostname string // "" is Docker's choice
	hosts    []string
}

// starter starts containers. It is safe for concurrent use.
type starter interface {
	// start does what `docker run -d` does, and returns when it would.
	start(ctx context.Context, s spec) error
}

// overAPI starts containers through the API alone: what is measured is the engine.
type overAPI struct{ api *client.Client }

func (a overAPI) start(ctx context.Context, s spec) error {
	err := createContainer(ctx, a.api, s)
	if err == nil {
		err = a.api.ContainerStart(ctx, s.name, container.StartOptions{})
	}
	if err != nil {
		return &fault.Error{Op: "start container", On: s.name, Err: err}
	}
	return nil
}

func createContainer(ctx context.Context, api *client.Client, s spec) error {
	labels := map[string]string{}
	if key, value, ok := strings.Cut(s.label, "="); ok {
		labels[key] = value
	}
	_, err := api.ContainerCreate(ctx,
		&container.Config{Image: lab.TestImage, Cmd: s.program, Hostname: s.hostname, Labels: labels},
		&container.HostConfig{NetworkMode: container.NetworkMode(s.network), Runtime: s.runtime, ExtraHosts: s.hosts},
		nil, nil, s.name)
	return err
}

// overCLI forks one docker command per container.
type overCLI struct{ dockerHost string }

func (c overCLI) start(ctx context.Context, s spec) error {
	args := []string{"run", "-d", "--name", s.name, "--network", s.network}
	if s.runtime != "" {
		args = append(args, "--runtime", s.runtime)
	}
	if s.label != "" {
		args = append(args, "--label", s.label)
	}
	if s.hostname != "" {
		args = append(args, "--hostname", s.hostname)
	}
	for _, h := range s.hosts {
		args = append(args, "--add-host", h)
	}
	cmd := exec.CommandContext(ctx, "docker", append(append(args, lab.TestImage), s.program...)...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST="+c.dockerHost)
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Run(); err != nil {
		return &fault.Error{Op: "start container", On: s.name, Err: fmt.Errorf("%w: %s", err, strings.TrimSpace(said.String()))}
	}
	return nil
}
