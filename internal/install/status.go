package install

import (
	"context"
	"errors"
	"io/fs"
	"time"

	"github.com/docker/docker/api/types/mount"
	"github.com/docker/docker/client"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/internal/hostpath"
	"github.com/particle-net/particle/internal/runtimeapi"
)

// askTimeout bounds the plugin's answer to a question.
const askTimeout = 20 * time.Second

// clusterTimeout bounds what it does for a cluster, which may take it until its
// own limit for one request.
const clusterTimeout = 60 * time.Second

// Status asks the plugin of the engine what it knows: over its socket if that
// is within reach, otherwise through a helper container on the engine.
func Status(ctx context.Context, api *client.Client) (runtimeapi.Status, error) {
	return ask(ctx, api, helper{command: "status"}, AskPlugin)
}

// Cluster has the plugin of the engine do what is asked, in the same ways.
func Cluster(ctx context.Context, api *client.Client, req runtimeapi.Cluster) (runtimeapi.ClusterReply, error) {
	return ask(ctx, api, helper{command: "cluster", secret: req}, func(ctx context.Context) (runtimeapi.ClusterReply, error) {
		return AskCluster(ctx, req)
	})
}

// ask asks a plugin within reach directly, and others through a helper.
func ask[T any](ctx context.Context, api *client.Client, h helper, direct func(context.Context) (T, error)) (T, error) {
	var answer T
	if isThisMachines(api) {
		answer, err := direct(ctx)
		if err == nil || !outOfReach(err) {
			return answer, err
		}
	}
	plugin, err := findPlugin(ctx, api)
	if err != nil {
		return answer, err
	}
	if plugin == nil {
		return answer, fault.New("ask the plugin", api.DaemonHost(), "particle is not installed on this engine", "run `particle install`")
	}
	image, drop, err := borrowImage(ctx, api)
	if err != nil {
		return answer, err
	}
	defer drop()
	h.network, h.caps = "none", []string{"DAC_OVERRIDE"}
	h.binds = []mount.Mount{{Type: mount.TypeBind, Source: hostpath.RunDir, Target: hostpath.RunDir}}
	return answer, h.run(ctx, api, image, &answer)
}

// isThisMachines tells whether the engine is the one the plugin on this machine
// would belong to. There may be others behind sockets elsewhere.
func isThisMachines(api *client.Client) bool {
	host := api.DaemonHost()
	return host == client.DefaultDockerHost || host == "unix://"+hostpath.DockerSocket
}

// outOfReach tells that the socket is not this user's, or not here: an engine
// behind a unix socket may yet be on another machine, or in a container.
func outOfReach(err error) bool {
	return errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrNotExist)
}

// AskPlugin asks the plugin over its socket on this machine.
func AskPlugin(ctx context.Context) (runtimeapi.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	reply, err := runtimeapi.Call(ctx, hostpath.Socket, runtimeapi.Request{Status: &runtimeapi.Query{}})
	if err != nil {
		return runtimeapi.Status{}, err
	}
	if reply.Status == nil {
		return runtimeapi.Status{}, fault.New("ask the plugin", "", "it answered something else", "install the same version of the plugin and of this program")
	}
	return *reply.Status, nil
}

// AskCluster asks the plugin on this machine to do what is asked.
func AskCluster(ctx context.Context, req runtimeapi.Cluster) (runtimeapi.ClusterReply, error) {
	ctx, cancel := context.WithTimeout(ctx, clusterTimeout)
	defer cancel()
	reply, err := runtimeapi.Call(ctx, hostpath.Socket, runtimeapi.Request{Cluster: &req})
	if err != nil {
		return runtimeapi.ClusterReply{}, err
	}
	if reply.Cluster == nil {
		return runtimeapi.ClusterReply{}, fault.New("ask the plugin", "", "it answered something else", "install the same version of the plugin and of this program")
	}
	return *reply.Cluster, nil
}

// newestImage gives the id of our newest image with a name, empty if there is
// none.
func newestImage(ctx context.Context, api *client.Client) (string, error) {
	list, err := images(ctx, api)
	if err != nil {
		return "", err
	}
	for _, i := range list {
		if named(i) {
			return i.ID, nil
		}
	}
	return "", nil
}
