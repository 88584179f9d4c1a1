package install

import (
	"archive/tar"
	"context"
	"crypto/rand"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/client"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/internal/process"
)

// lockName is the name of a container that is there while a command changes an
// engine. Names of containers are the one thing that an engine of any version
// gives to one client and refuses to all others; the container is never started.
const lockName = "particle-install-lock"

// lockLabel marks the images that locks are made of.
const lockLabel = "particle.lock"

// Labels of the lock.
const (
	labelHolder  = "particle.lock.holder"  // for people
	labelProcess = "particle.lock.process" // see thisProcess
)

// takeLock keeps all others from changing the engine until unlock is called, which
// may be called even after a failure. A lock whose holder was killed is taken
// over where that can be known, which is on the machine it ran on; elsewhere a
// person has to remove it.
func takeLock(ctx context.Context, api *client.Client, command string) (unlock func(), err error) {
	const tries = 10 // the lock may be given up, or taken, between a look and a try
	for range tries {
		var id string
		if id, err = makeLock(ctx, api, command); err == nil {
			return func() { dropLock(ctx, api, id) }, nil
		}
		// Not found is the image, if somebody gave a lock up just then.
		if !errdefs.IsConflict(err) && !errdefs.IsNotFound(err) {
			break
		}
		if held := breakLock(ctx, api); held != nil {
			return func() {}, held
		}
	}
	return func() {}, &fault.Error{Op: "lock engine", On: api.DaemonHost(), Err: err, Fix: "look at the log of the Docker daemon"}
}

// dropLock gives the lock up. An image cannot quite be removed before its
// container on engines that keep images in containerd.
func dropLock(ctx context.Context, api *client.Client, id string) {
	removeContainer(ctx, api, id)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), tidyTimeout)
	defer cancel()
	list, err := api.ImageList(ctx, image.ListOptions{All: true, Filters: filters.NewArgs(filters.Arg("label", lockLabel))})
	if err != nil {
		return // the next command removes them
	}
	for _, i := range list {
		_, _ = api.ImageRemove(ctx, i.ID, image.RemoveOptions{Force: true}) // likewise
	}
}

// breakLock removes a lock that was left behind. The error says who holds it, if
// it was not.
func breakLock(ctx context.Context, api *client.Client) error {
	found, err := api.ContainerInspect(ctx, lockName)
	switch {
	case errdefs.IsNotFound(err):
		return nil
	case err != nil:
		return &fault.Error{Op: "look at container", On: lockName, Err: err, Fix: "look at the log of the Docker daemon"}
	case !abandoned(found.Config.Labels[labelProcess]):
		holder := found.Config.Labels[labelHolder]
		if holder == "" {
			holder = "somebody has made a container of the name " + lockName
		}
		return fault.New("change engine", api.DaemonHost(), holder,
			"wait until that has ended; if it was cut off, run `docker rm "+lockName+"`")
	}
	// By its id: another one may be doing the same, and have the lock by now.
	err = api.ContainerRemove(ctx, found.ID, container.RemoveOptions{Force: true})
	if err != nil && !errdefs.IsNotFound(err) && !errdefs.IsConflict(err) {
		return &fault.Error{Op: "remove container", On: lockName, Err: err, Fix: "run `docker rm -f " + lockName + "`"}
	}
	return nil
}

// makeLock makes the container, of an image without content.
func makeLock(ctx context.Context, api *client.Client, command string) (id string, err error) {
	name := "particle-lock:" + strings.ToLower(rand.Text()[:8])
	empty := archive(func(*tar.Writer) error { return nil })
	defer empty.Close()
	response, err := api.ImageImport(ctx, image.ImportSource{Source: empty, SourceName: "-"}, name,
		image.ImportOptions{Changes: []string{"LABEL " + lockLabel + "=true"}})
	if err != nil {
		return "", err
	}
	defer response.Close()
	if err := drain(response); err != nil {
		return "", err
	}
	made, err := api.ContainerCreate(ctx,
		&container.Config{Image: name, Cmd: []string{"none"}, Labels: map[string]string{
			labelHolder: describeHolder(command), labelProcess: thisProcess(),
		}},
		&container.HostConfig{Runtime: helperRuntime, NetworkMode: "none"}, &network.NetworkingConfig{}, nil, lockName)
	if err != nil {
		tidy, cancel := context.WithTimeout(context.WithoutCancel(ctx), tidyTimeout)
		defer cancel()
		_, _ = api.ImageRemove(tidy, name, image.RemoveOptions{Force: true}) // else whoever has the lock removes it
	}
	return made.ID, err
}

// describeHolder says who changes the engine, as a sentence.
func describeHolder(command string) string {
	name, host := "somebody", "another machine"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	if h, err := os.Hostname(); err == nil {
		host = h
	}
	return fmt.Sprintf("%s on %s has been running `particle %s` there since %s (process %d)",
		name, host, command, time.Now().UTC().Format("2006-01-02 15:04:05 UTC"), os.Getpid())
}

// thisProcess names this process for all time: by the boot of its machine, its
// pid namespace, its pid and its start. It is empty where the system does not
// tell.
func thisProcess() string {
	space := thisPidSpace()
	start, ok := process.Table{Root: "/proc"}.StartTime(os.Getpid())
	if space == "" || !ok {
		return ""
	}
	return fmt.Sprintf("%s %d %d", space, os.Getpid(), start)
}

// thisPidSpace names the pid namespace of this process.
func thisPidSpace() string {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	var info fs.FileInfo
	if err == nil {
		info, err = os.Stat("/proc/self/ns/pid")
	}
	if err != nil {
		return ""
	}
	inode, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return ""
	}
	return fmt.Sprintf("%s %d", strings.TrimSpace(string(boot)), inode.Ino)
}

// abandoned says whether a process that thisProcess named is gone for certain:
// one of another pid namespace cannot be seen from here.
func abandoned(name string) bool {
	var boot string
	var space, start uint64
	var pid int
	if _, err := fmt.Sscanf(name, "%s %d %d %d", &boot, &space, &pid, &start); err != nil {
		return false
	}
	if fmt.Sprintf("%s %d", boot, space) != thisPidSpace() {
		return false
	}
	now, alive := process.Table{Root: "/proc"}.StartTime(pid)
	return !alive || now != start
}
