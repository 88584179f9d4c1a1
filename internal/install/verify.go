package install

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/client"
	"github.com/docker/docker/pkg/stdcopy"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/internal/hostpath"
	"github.com/particle-net/particle/internal/hostsetup"
)

// verifyTimeout bounds the test: with a driver that does not answer, Docker
// itself would wait for minutes.
const verifyTimeout = 90 * time.Second

// verify makes a network, runs a container on it, and compares what the
// container knows of its address with what Docker says. It leaves nothing.
func verify(ctx context.Context, api *client.Client, image, runtime string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, verifyTimeout)
	defer cancel()
	name := "particle-test-" + strings.ToLower(rand.Text()[:8])
	// It is this host's alone: whether a cluster's store answers is not the question.
	made, err := api.NetworkCreate(ctx, name, network.CreateOptions{Driver: hostpath.DriverName, Options: map[string]string{"particle.scope": "local"},
		IPAM: &network.IPAM{Driver: hostpath.DriverName}, Labels: map[string]string{helperLabel: "true"}})
	if err != nil {
		return "", &fault.Error{Op: "create test network", On: name, Err: err, Fix: "look at the log of the Docker daemon"}
	}
	addr, err := verifyContainer(ctx, api, image, runtime, name)
	if failed := removeNetwork(ctx, api, made.ID, name); err == nil {
		err = failed
	}
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("a container on a new network got and used %s", addr), nil
}

func removeNetwork(ctx context.Context, api *client.Client, id, name string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), tidyTimeout)
	defer cancel()
	if err := api.NetworkRemove(ctx, id); err != nil {
		return &fault.Error{Op: "remove test network", On: name, Err: err, Fix: "run `docker network rm " + name + "`"}
	}
	return nil
}

func verifyContainer(ctx context.Context, api *client.Client, image, runtime, network string) (netip.Addr, error) {
	made, err := api.ContainerCreate(ctx,
		&container.Config{Image: image, Cmd: []string{"host-setup", "selftest"}, OpenStdin: true, StdinOnce: true,
			AttachStdin: true, AttachStdout: true, AttachStderr: true, Labels: map[string]string{helperLabel: "true"}},
		&container.HostConfig{Runtime: runtime, NetworkMode: container.NetworkMode(network),
			LogConfig: container.LogConfig{Type: "none"}}, nil, nil, "")
	if err != nil {
		return netip.Addr{}, explainHelper("create", "selftest", err)
	}
	defer removeContainer(ctx, api, made.ID)
	attached, err := api.ContainerAttach(ctx, made.ID, container.AttachOptions{Stream: true, Stdin: true, Stdout: true, Stderr: true})
	if err != nil {
		return netip.Addr{}, explainHelper("attach to", "selftest", err)
	}
	defer attached.Close()
	if err := api.ContainerStart(ctx, made.ID, container.StartOptions{}); err != nil {
		return netip.Addr{}, &fault.Error{Op: "start test container", On: "on network " + network, Err: err,
			Fix: "look at the log of the Docker daemon"}
	}
	stop := context.AfterFunc(ctx, attached.Close)
	defer stop()
	said, err := firstLine(attached.Reader)
	if err != nil {
		return netip.Addr{}, &fault.Error{Op: "test container", On: "on network " + network, Err: err,
			Fix: "look at the log of the Docker daemon"}
	}
	return compare(ctx, api, made.ID, network, said)
}

// firstLine reads the result of the self test, or its error.
func firstLine(stream io.Reader) (hostsetup.SelftestResult, error) {
	out, in := io.Pipe()
	var problem strings.Builder
	go func() {
		_, err := stdcopy.StdCopy(in, &problem, stream)
		if err == nil {
			err = io.EOF
		}
		in.CloseWithError(err)
	}()
	var result hostsetup.SelftestResult
	err := json.NewDecoder(out).Decode(&result)
	if err != nil && problem.Len() > 0 {
		err = fmt.Errorf("%s", strings.TrimSpace(problem.String()))
	}
	return result, err
}

// compare holds the container's own view against Docker's.
func compare(ctx context.Context, api *client.Client, id, network string, said hostsetup.SelftestResult) (netip.Addr, error) {
	seen, err := api.ContainerInspect(ctx, id)
	if err != nil {
		return netip.Addr{}, explainHelper("inspect", "selftest", err)
	}
	endpoint := seen.NetworkSettings.Networks[network]
	if endpoint == nil {
		return netip.Addr{}, fault.New("test container", "on network "+network, "Docker does not know it there", "look at the log of the Docker daemon")
	}
	addr, err := netip.ParseAddr(endpoint.IPAddress)
	if err != nil || !slices.Contains(said.Addrs, addr) {
		return netip.Addr{}, fault.New("test container", "on network "+network,
			fmt.Sprintf("Docker says its address is %q, and itself says %v", endpoint.IPAddress, said.Addrs),
			"look at the log of the Docker daemon")
	}
	return addr, nil
}
