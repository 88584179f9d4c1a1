package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/internal/fault"
)

const dockerdService = "dockerd"

// Host is a node with its own root, cgroups and Docker Engine.
type Host struct {
	*Node
}

// DockerHost is the value of DOCKER_HOST by which the machine reaches the host's
// Docker Engine. It stays the same over reboots.
func (h *Host) DockerHost() string { return "unix://" + h.DockerSocket() }

// DockerSocket is the machine's path of the Docker API socket.
func (h *Host) DockerSocket() string { return filepath.Join(h.dir(), dirShare, dockerSocket) }

// Addr4 is the host's underlay address.
func (h *Host) Addr4() netip.Addr { return addr4(h.index) }

// Addr6 is the host's IPv6 underlay address.
func (h *Host) Addr6() netip.Addr { return addr6(h.index) }

// StartDockerd starts the engine with extra flags and waits until it answers. It
// reads the host's /etc/docker/daemon.json; the lab itself sets by flag only the
// sockets, so that every other key of that file may be used.
func (h *Host) StartDockerd(ctx context.Context, flags ...string) error {
	return h.StartDockerdBy(ctx, nil, flags...)
}

// StartDockerdBy is StartDockerd by a program of the host's, which has the engine's
// command line for its last arguments.
func (h *Host) StartDockerdBy(ctx context.Context, starter []string, flags ...string) error {
	argv := slices.Concat(starter, []string{h.lab.engine().dockerd(),
		"-H", "unix:///run/" + dockerSocket,
		"-H", "unix://" + filepath.Join(shareInside, dockerSocket)}, flags)
	// A driver given by environment does not clash with a storage-driver key in daemon.json.
	env := append(h.environ(), "DOCKER_DRIVER=overlay2")
	// The engine gives its containerd 15 s, which is not enough where all is emulated and
	// read for the first time; on machines systemd starts it again (Restart=always).
	for tries := 3; ; tries-- {
		if _, err := h.control(ctx, controlRequest{Op: "start", Name: dockerdService, Argv: argv, Env: env}); err != nil {
			return err
		}
		err := h.WaitDockerd(ctx)
		if err == nil || tries == 1 || !h.logged("timeout waiting for containerd to start") {
			return err
		}
	}
}

// WaitDockerd waits until the running engine answers, and returns its last words
// when it ends instead.
func (h *Host) WaitDockerd(ctx context.Context) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if h.ping(ctx) == nil {
			return nil
		}
		reply, err := h.control(ctx, controlRequest{Op: "status", Name: dockerdService})
		if err != nil {
			return err
		}
		if !reply.Running {
			return &fault.Error{Op: "start dockerd", On: h.name, Err: fmt.Errorf("it ended (%s): %s", reply.Status, h.lastWords()),
				Fix: "look into " + h.ServiceLog(dockerdService)}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return &fault.Error{Op: "wait for dockerd", On: h.name, Err: ctx.Err(), Fix: "look into " + h.ServiceLog(dockerdService)}
		}
	}
}

func (h *Host) ping(ctx context.Context) error {
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", h.DockerSocket())
		},
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker/_ping", nil)
	if err != nil {
		return err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

// lastWords is the end of the engine's log.
func (h *Host) lastWords() string {
	raw, err := os.ReadFile(h.ServiceLog(dockerdService))
	if err != nil {
		return err.Error()
	}
	lines := bytes.Split(bytes.TrimSpace(raw), []byte("\n"))
	return string(bytes.Join(lines[max(0, len(lines)-3):], []byte(" | ")))
}

// logged reports whether the engine has said something.
func (h *Host) logged(text string) bool {
	raw, err := os.ReadFile(h.ServiceLog(dockerdService))
	return err == nil && bytes.Contains(raw, []byte(text))
}

// KillDockerd ends the engine as a crash does (SIGKILL) and waits until it is gone.
// Containers survive it when the engine runs with live-restore and is started again.
func (h *Host) KillDockerd(ctx context.Context) error {
	_, err := h.StopService(ctx, dockerdService, unix.SIGKILL)
	return err
}

// StopDockerd ends the engine in order (SIGTERM) and waits until it is gone.
func (h *Host) StopDockerd(ctx context.Context) error {
	_, err := h.StopService(ctx, dockerdService, unix.SIGTERM)
	return err
}

// Reboot pulls the plug and boots again: everything that ran on the host is gone,
// as are /run, /tmp, cgroups, links and rules; what was on disk is there. flags are
// dockerd's. A cut underlay is healed. Nothing else may use the host meanwhile.
func (h *Host) Reboot(ctx context.Context, flags ...string) error {
	return h.bootAgain(ctx, false, flags)
}

// Replace puts another machine in the host's place: with its name and addresses, and
// with nothing else on its disk than at the host's first boot. Nothing else may use
// the host meanwhile.
func (h *Host) Replace(ctx context.Context) error {
	return h.bootAgain(ctx, true, nil)
}

func (h *Host) bootAgain(ctx context.Context, emptyDisk bool, flags []string) error {
	unlock, err := lockLab(ctx, h.lab.name, false)
	if err != nil {
		return err
	}
	defer unlock()
	if err := h.PowerOff(ctx); err != nil {
		return err
	}
	spec, err := readBootSpec(filepath.Join(h.dir(), bootSpecFile))
	if err != nil {
		return err
	}
	if spec.FirstBoot = emptyDisk; emptyDisk {
		spec.Disk = false
		for _, name := range append([]string{dirWork}, onDisk...) {
			if err := removeDir(ctx, filepath.Join(h.dir(), name)); err != nil {
				return err
			}
		}
	}
	return h.powerOn(ctx, spec, flags)
}

// PowerOff ends everything that runs on the host at once. [Host.Reboot] brings it
// back.
func (h *Host) PowerOff(ctx context.Context) error {
	if err := h.lab.nodeState(h.name).Init.kill(ctx); err != nil {
		return err
	}
	if err := removeCgroups(ctx, h.lab.cgroups(), filepath.Join(h.lab.name, h.name)); err != nil {
		return err
	}
	tmp := filepath.Join(h.dir(), dirTmp)
	if err := os.RemoveAll(tmp); err != nil {
		return &fault.Error{Op: "empty", On: tmp, Err: err}
	}
	return nil
}

// powerOn boots the host from its spec up to an engine that answers.
func (h *Host) powerOn(ctx context.Context, spec bootSpec, flags []string) error {
	for _, name := range []string{dirUpper, dirWork, dirRoot, dirData, dirContainerd, dirTmp, dirShare} {
		if err := os.MkdirAll(filepath.Join(h.dir(), name), 0o711); err != nil {
			return &fault.Error{Op: "make directory", On: name, Err: err}
		}
	}
	if err := os.Chmod(filepath.Join(h.dir(), dirTmp), 0o1777|os.ModeSticky); err != nil {
		return err
	}
	// The root of the overlay takes the mode of its upper directory.
	if err := os.Chmod(filepath.Join(h.dir(), dirUpper), 0o755); err != nil {
		return err
	}
	if err := makeCgroups(h.lab.cgroups(), h.lab.name, h.name); err != nil {
		return err
	}
	if err := h.boot(ctx, spec); err != nil {
		return err
	}
	if err := h.wire(); err != nil {
		return err
	}
	return h.StartDockerd(ctx, flags...)
}

// identity is what a host writes at its first boot.
func (h *Host) identity(o Options) (map[string]string, error) {
	config, err := daemonConfig(o)
	if err != nil {
		return nil, err
	}
	var hosts strings.Builder
	hosts.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
	for _, other := range h.lab.hosts {
		fmt.Fprintf(&hosts, "%s\t%s\n%s\t%s\n", other.Addr4(), other.name, other.Addr6(), other.name)
	}
	return map[string]string{
		"/etc/hostname":    h.name + "\n",
		"/etc/hosts":       hosts.String(),
		"/etc/resolv.conf": "nameserver " + InternetAddr4 + "\noptions timeout:1 attempts:1\n",
		"/etc/machine-id":  fmt.Sprintf("%032x\n", h.lab.created().UnixNano()+int64(h.index)),
		daemonJSON:         config,
	}, nil
}
