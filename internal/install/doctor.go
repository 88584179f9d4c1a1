package install

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"time"

	"github.com/docker/docker/api/types"
	"github.com/docker/docker/api/types/system"
	"github.com/docker/docker/client"

	"github.com/particle-net/particle/internal/hostpath"
	"github.com/particle-net/particle/internal/hostsetup"
	"github.com/particle-net/particle/internal/report"
	"github.com/particle-net/particle/internal/runtimeapi"
)

// Doctor checks an engine and its host, whether particle is installed there or
// not. It changes nothing that stays: where particle is not installed, an image
// of the running executable is made for the time of the call.
func Doctor(ctx context.Context, api *client.Client) ([]report.Check, error) {
	info, err := engineInfo(ctx, api)
	if err != nil {
		return nil, err
	}
	checks := engineChecks(api, info)
	if report.Failed(checks) {
		return checks, nil // a helper could not run, or not tell anything
	}
	plugin, err := findPlugin(ctx, api)
	if err != nil {
		return nil, err
	}
	image, drop, err := borrowImage(ctx, api)
	if err != nil {
		return nil, err
	}
	defer drop()
	settings := settingsOf(plugin)
	now := registrationOf(info)
	req := probeRequest(info, settings, now.isDefault || !now.registered, plugin != nil && plugin.Enabled)
	if req.Subnets, err = subnetsOf(ctx, api); err != nil {
		return nil, err
	}
	host, err := probe(ctx, api, image, req)
	if err != nil {
		return nil, err
	}
	checks = append(checks, host...)
	checks = append(checks, runtimeCheck(now), pluginCheck(plugin))
	if plugin != nil && plugin.Enabled {
		checks = append(checks, answerChecks(ctx, api)...)
		// What does not answer has been told by then.
		if reply, err := Cluster(ctx, api, runtimeapi.Cluster{Status: &runtimeapi.Query{}}); err == nil && reply.Status != nil {
			checks = append(checks, report.ClusterChecks(*reply.Status, time.Now())...)
		}
	}
	return checks, nil
}

// borrowImage gives an image for helpers, and a function that removes it if it
// was made for this: nothing was installed, or the image was pruned since.
func borrowImage(ctx context.Context, api *client.Client) (string, func(), error) {
	if id, err := newestImage(ctx, api); err != nil || id != "" {
		return id, func() {}, err
	}
	id, err := helperImage(ctx, api)
	return id, func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), tidyTimeout)
		defer cancel()
		_ = removeImages(ctx, api, "") // it would be used and removed by the next installation
	}, err
}

// probe runs both halves of the examination of a host: what its kernel can do,
// in a network namespace of the helper's own, and how it is set up.
func probe(ctx context.Context, api *client.Client, image string, req hostsetup.ProbeRequest) ([]report.Check, error) {
	var kernel, host []report.Check
	err := helper{command: "kernel", network: "none", caps: []string{"SYS_ADMIN", "NET_ADMIN", "NET_RAW"}}.run(ctx, api, image, &kernel)
	if err != nil {
		return nil, err
	}
	err = helper{command: "probe", network: "host", host: true, request: req,
		caps: append(hostCaps(), "SYS_ADMIN", "NET_ADMIN", "NET_RAW")}.run(ctx, api, image, &host)
	return append(kernel, host...), err
}

func probeRequest(info system.Info, settings map[string]string, makeDefault, installed bool) hostsetup.ProbeRequest {
	req := hostsetup.ProbeRequest{DataRoot: info.DockerRootDir, MakeDefault: makeDefault,
		Current: currentRuntime(info), Installed: installed}
	// A setting that cannot be read is reported by the plugin, which refuses it.
	if port, err := strconv.ParseUint(settings["PARTICLE_VXLAN_PORT"], 10, 16); err == nil {
		req.Port = uint16(port)
	}
	if vtep, err := netip.ParseAddr(settings["PARTICLE_VTEP"]); err == nil {
		req.VTEP = vtep
	}
	return req
}

// subnetsOf lists the subnets of particle networks by the networks' names.
func subnetsOf(ctx context.Context, api *client.Client) (map[string][]netip.Prefix, error) {
	networks, err := networksOf(ctx, api)
	all := map[string][]netip.Prefix{}
	for _, n := range networks {
		for _, pool := range n.IPAM.Config {
			if p, err := netip.ParsePrefix(pool.Subnet); err == nil { // none of Docker's is anything else
				all[n.Name] = append(all[n.Name], p)
			}
		}
	}
	return all, err
}

// currentRuntime gives the engine's default runtime.
func currentRuntime(info system.Info) hostsetup.EngineRuntime {
	rt := info.Runtimes[info.DefaultRuntime]
	return hostsetup.EngineRuntime{Name: info.DefaultRuntime, Path: rt.Path, Args: rt.Args, Type: rt.Type}
}

func runtimeCheck(now registration) report.Check {
	c := report.Check{Name: "runtime", Grade: report.OK}
	switch {
	case !now.registered:
		c.Grade, c.Finding, c.Remedy = report.Missing, "dockerd does not know particle-runtime", "run `particle install`"
	case !now.isDefault:
		c.Grade, c.Finding = report.Warn, "registered, but not the default: containers on particle networks need `--runtime particle`"
		c.Remedy = "run `particle install` without --no-default-runtime"
	default:
		c.Finding = "registered, and the default"
	}
	return c
}

func pluginCheck(plugin *types.Plugin) report.Check {
	c := report.Check{Name: "plugin", Grade: report.OK, Finding: hostpath.PluginName + " is enabled"}
	switch {
	case plugin == nil:
		c.Grade, c.Finding, c.Remedy = report.Missing, hostpath.PluginName+" is not there", "run `particle install`"
	case !plugin.Enabled:
		c.Grade, c.Finding = report.Missing, hostpath.PluginName+" is disabled"
		c.Remedy = "run `docker plugin enable " + hostpath.PluginName + "`"
	}
	return c
}

func answerChecks(ctx context.Context, api *client.Client) []report.Check {
	c := report.Check{Name: "answers", Grade: report.OK}
	status, err := Status(ctx, api)
	if err != nil {
		c.Grade, c.Finding = report.Missing, err.Error()
		c.Remedy = "run `docker plugin disable -f " + hostpath.PluginName + "`, then enable it again"
		return []report.Check{c}
	}
	c.Finding = fmt.Sprintf("version %s, networks: %d", status.Version, len(status.Networks))
	var problems int
	for _, n := range status.Networks {
		if n.Problem != "" {
			problems++
		}
	}
	if problems > 0 {
		c.Grade, c.Remedy = report.Warn, "see `particle status`"
		c.Finding += fmt.Sprintf(", %d of them with a problem", problems)
	}
	return append([]report.Check{c}, report.MTUChecks(status)...)
}
