package install

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"

	"github.com/docker/cli/cli/connhelper"
	"github.com/docker/docker/api/types/system"
	"github.com/docker/docker/api/types/versions"
	"github.com/docker/docker/client"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/internal/hostpath"
	"github.com/particle-net/particle/internal/report"
)

// leastAPI is Docker 20.10's, the oldest the project is tested with.
const leastAPI = "1.41"

// Connect prepares a client of the engine that DOCKER_HOST names (unix://,
// tcp:// or ssh://, with DOCKER_TLS_VERIFY and DOCKER_CERT_PATH as for the
// docker command), or of the local one. It does not connect yet.
func Connect() (*client.Client, error) {
	host := os.Getenv(client.EnvOverrideHost)
	options := []client.Opt{client.FromEnv, client.WithAPIVersionNegotiation()}
	helper, err := connhelper.GetConnectionHelper(host)
	if err != nil {
		return nil, &fault.Error{Op: "connect to Docker", On: host, Err: err, Fix: "set DOCKER_HOST to ssh://USER@HOST"}
	}
	if helper != nil {
		options = []client.Opt{
			client.WithHTTPClient(&http.Client{Transport: &http.Transport{DialContext: helper.Dialer}}),
			client.WithHost(helper.Host), client.WithDialContext(helper.Dialer), client.WithAPIVersionNegotiation(),
		}
	}
	api, err := client.NewClientWithOpts(options...)
	if err != nil {
		return nil, &fault.Error{Op: "connect to Docker", On: host, Err: err,
			Fix: "set DOCKER_HOST to unix://PATH, tcp://HOST:PORT or ssh://USER@HOST"}
	}
	return api, nil
}

// Local tells whether the client's engine is on this machine.
func Local(api *client.Client) bool { return strings.HasPrefix(api.DaemonHost(), "unix://") }

// engineInfo asks the engine about itself.
func engineInfo(ctx context.Context, api *client.Client) (system.Info, error) {
	info, err := api.Info(ctx)
	if err != nil {
		return info, &fault.Error{Op: "ask Docker", On: api.DaemonHost(), Err: err,
			Fix: "start Docker, set DOCKER_HOST, or run this as a user who may use it"}
	}
	return info, nil
}

// architectures maps the kernel's names to Go's.
func architecture(machine string) string {
	switch machine {
	case "x86_64":
		return "amd64"
	case "aarch64":
		return "arm64"
	case "armv6l", "armv7l":
		return "arm"
	case "i686":
		return "386"
	default:
		return machine
	}
}

// engineChecks are what the API alone can tell.
func engineChecks(api *client.Client, info system.Info) []report.Check {
	version := report.Check{Name: "Docker", Grade: report.OK,
		Finding: fmt.Sprintf("%s, API %s", info.ServerVersion, api.ClientVersion())}
	if versions.LessThan(api.ClientVersion(), leastAPI) {
		version.Grade, version.Remedy = report.Missing, "upgrade to Docker 20.10 or later"
	}
	platform := report.Check{Name: "platform", Grade: report.OK,
		Finding: fmt.Sprintf("%s, %s, Linux %s", info.OperatingSystem, architecture(info.Architecture), info.KernelVersion)}
	if info.OSType != "linux" {
		platform.Grade, platform.Finding, platform.Remedy = report.Missing, "a "+info.OSType+" engine", "use an engine that runs Linux containers"
	}
	cgroups := report.Check{Name: "cgroups", Grade: report.OK,
		Finding: fmt.Sprintf("version %s, driver %s", orDash(info.CgroupVersion), orDash(info.CgroupDriver))}
	restore := report.Check{Name: "live restore", Grade: report.OK, Finding: "off: containers stop when dockerd stops"}
	if info.LiveRestoreEnabled {
		restore.Finding = "on: containers outlive a restart of dockerd"
	}
	return []report.Check{version, platform, namespaces(info), cgroups, restore}
}

func namespaces(info system.Info) report.Check {
	c := report.Check{Name: "privileges", Grade: report.OK, Finding: "dockerd is root, and so is root in containers"}
	has := func(name string) bool {
		return slices.ContainsFunc(info.SecurityOptions, func(o string) bool {
			return strings.HasPrefix(o, "name="+name)
		})
	}
	switch {
	case has("rootless"):
		c.Grade, c.Finding = report.Missing, "a rootless engine, which cannot reach the host's network"
		c.Remedy = "use an engine that runs as root"
	case has("userns"):
		c.Grade, c.Finding = report.Missing, "userns-remap is on, so containers cannot join a namespace of the host's"
		c.Remedy = "remove userns-remap from dockerd's configuration and restart it"
	}
	return c
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// registration tells how the engine knows our runtime.
type registration struct {
	registered bool
	isDefault  bool
}

func registrationOf(info system.Info) registration {
	rt, found := info.Runtimes[hostpath.RuntimeName]
	return registration{
		registered: found && rt.Path == hostpath.RuntimeBinary,
		isDefault:  info.DefaultRuntime == hostpath.RuntimeName,
	}
}

// LeavesDefault tells whether an installation on the engine has left its default runtime
// as it was, as an upgrade then does, too.
func LeavesDefault(ctx context.Context, api *client.Client) (bool, error) {
	info, err := engineInfo(ctx, api)
	now := registrationOf(info)
	return now.registered && !now.isDefault, err
}

// failure turns the missing things among the checks into one error, nil if
// there are none.
func failure(checks []report.Check) error {
	var findings, remedies []string
	for _, c := range checks {
		if c.Grade == report.Missing {
			findings = append(findings, c.Name+": "+c.Finding)
			remedies = append(remedies, c.Remedy)
		}
	}
	if len(findings) == 0 {
		return nil
	}
	return fault.New("check the host", "", strings.Join(findings, "; "), strings.Join(remedies, "; "))
}
