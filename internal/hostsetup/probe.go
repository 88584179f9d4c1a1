package hostsetup

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/internal/hostpath"
	"github.com/particle-net/particle/internal/report"
	"github.com/particle-net/particle/overlay"
	"github.com/particle-net/particle/topology"
)

// ProbeRequest is what Probe is asked for.
type ProbeRequest struct {
	DataRoot    string `json:"dataRoot"`
	MakeDefault bool   `json:"makeDefault"` // the runtime is or shall be the default one
	Current     EngineRuntime
	Port        uint16     `json:"port"`          // of VXLAN; 0 means topology.VXLANPort
	VTEP        netip.Addr `json:"vtep,omitzero"` // as set; invalid if it is to be found
	// Installed says that the plugin runs, so that what it holds is not taken
	// for somebody else's.
	Installed bool `json:"installed"`
	// Subnets are those of particle networks, by the networks' names.
	Subnets map[string][]netip.Prefix `json:"subnets,omitempty"`
}

// Probe looks at the host as it is, from its network namespace and its process
// ids. It changes nothing.
func Probe(ctx context.Context, req ProbeRequest) []report.Check {
	if req.Port == 0 {
		req.Port = topology.VXLANPort
	}
	checks := daemonChecks(req)
	checks = append(checks, programs(), sharedRun(), underlay(ctx, req), port(ctx, req), ipv6())
	if len(req.Subnets) > 0 {
		checks = append(checks, subnets(ctx, req))
	}
	checks = append(checks, iptables(ctx)...)
	if c, found := firewall(req.Port); found {
		checks = append(checks, c)
	}
	return checks
}

func daemonChecks(req ProbeRequest) []report.Check {
	config := report.Check{Name: "dockerd", Grade: report.OK}
	d, err := findDaemon(req.DataRoot)
	if err == nil {
		err = d.conflict(req.MakeDefault)
	}
	var old record
	if err == nil {
		old, _, err = loadRecord(recordFile)
	}
	if err == nil {
		_, err = planConfig(d, old, req.MakeDefault)
	}
	if err != nil {
		config.Grade = report.Missing
		config.Finding, config.Remedy = tell(err, "")
		return []report.Check{config}
	}
	config.Finding = fmt.Sprintf("process %d, configured by %s", d.pid, d.config)
	runtime := report.Check{Name: "real runtime", Grade: report.OK}
	found, err := d.realRuntime(InstallRequest{Current: req.Current, MakeDefault: req.MakeDefault}, old)
	runtime.Finding = found
	if err != nil {
		runtime.Grade = report.Missing
		runtime.Finding, runtime.Remedy = tell(err, "install runc")
	}
	return []report.Check{config, runtime}
}

// programs looks whether dockerd will be able to execute what installation puts on the
// host. A runtime that it cannot execute keeps it from ending plugins, too.
func programs() report.Check {
	dir := filepath.Dir(hostpath.RuntimeBinary)
	c := report.Check{Name: "programs", Grade: report.OK, Finding: "can be executed from " + dir}
	at := dir
	var st unix.Statfs_t
	err := unix.Statfs(at, &st)
	for errors.Is(err, unix.ENOENT) { // installation makes it
		at = filepath.Dir(at)
		err = unix.Statfs(at, &st)
	}
	switch {
	case err != nil:
		c.Grade, c.Finding, c.Remedy = report.Warn, at+": "+err.Error(), "run as root"
	case st.Flags&unix.ST_NOEXEC != 0:
		c.Grade, c.Finding = report.Missing, "no program can be executed from "+dir+": it is mounted with noexec"
		c.Remedy = "run `mount -o remount,exec` on the host, on what `findmnt -T " + dir + "` shows, and change /etc/fstab likewise"
	}
	return c
}

// sharedRun looks whether mounts that the plugin makes under /run reach the
// host, as tenant namespaces must.
func sharedRun() report.Check {
	c := report.Check{Name: "mounts", Grade: report.OK, Finding: "mounts under /run are shared"}
	raw, err := os.ReadFile("/proc/1/mountinfo")
	if err != nil {
		raw, err = os.ReadFile("/proc/self/mountinfo")
	}
	if err != nil {
		c.Grade, c.Finding, c.Remedy = report.Warn, err.Error(), "run as root"
		return c
	}
	best, shared := "", false
	for line := range strings.Lines(string(raw)) {
		head, _, _ := strings.Cut(line, " - ")
		f := strings.Fields(head)
		if len(f) < 6 {
			continue
		}
		at := unescape(f[4])
		if (at == "/" || at == "/run" || strings.HasPrefix("/run", at+"/")) && len(at) >= len(best) {
			best, shared = at, strings.Contains(strings.Join(f[6:], " "), "shared:")
		}
	}
	if !shared {
		c.Grade, c.Finding = report.Missing, "the mount at "+best+" is private, so that namespaces made by the plugin cannot reach the host"
		c.Remedy = "run `mount --make-rshared " + best + "` on the host"
	}
	return c
}

// minUnderlay is the least MTU that leaves IPv6's minimum of 1280 (RFC 8200
// section 5) to containers, behind VXLAN's 70 bytes.
const minUnderlay = 1350

// onHost runs look with a host that is opened for it, or says why there is none.
func onHost(ctx context.Context, c report.Check, port uint16, look func(*overlay.Host) report.Check) report.Check {
	dir, err := os.MkdirTemp("", "particle-")
	if err != nil {
		c.Grade, c.Finding, c.Remedy = report.Warn, err.Error(), "make room for temporary files"
		return c
	}
	defer os.RemoveAll(dir)
	host, err := overlay.Open(ctx, overlay.Options{NamespaceDir: dir, Port: port})
	if err != nil {
		c.Grade = report.Missing
		c.Finding, c.Remedy = tell(err, "run as root")
		return c
	}
	defer host.Close()
	return look(host)
}

func underlay(ctx context.Context, req ProbeRequest) report.Check {
	c := report.Check{Name: "underlay", Grade: report.OK}
	return onHost(ctx, c, req.Port, func(host *overlay.Host) report.Check { return underlayOf(ctx, host, req, c) })
}

func underlayOf(ctx context.Context, host *overlay.Host, req ProbeRequest, c report.Check) report.Check {
	u, err := host.Underlay(ctx, req.VTEP)
	switch {
	case err != nil:
		c.Grade = report.Missing
		c.Finding, c.Remedy = tell(err, "set PARTICLE_VTEP")
	case !u.VTEP.IsValid():
		c.Grade, c.Finding = report.Warn, "no address that other hosts could reach, so networks stay on this host"
		c.Remedy = "connect the host, or set PARTICLE_VTEP"
	case u.MTU < minUnderlay:
		c.Grade, c.Finding = report.Warn, fmt.Sprintf("VTEP %s, MTU %d: too small for IPv6 in containers", u.VTEP, u.MTU)
		c.Remedy = fmt.Sprintf("raise the link's MTU to %d or more", minUnderlay)
	default:
		c.Finding = fmt.Sprintf("VTEP %s, MTU %d, %d for containers", u.VTEP, u.MTU, u.MTU-u.Overhead())
	}
	return c
}

func port(ctx context.Context, req ProbeRequest) report.Check {
	c := report.Check{Name: "VXLAN port", Grade: report.OK, Finding: fmt.Sprintf("UDP port %d is free", req.Port)}
	var config net.ListenConfig
	conn, err := config.ListenPacket(ctx, "udp4", netip.AddrPortFrom(netip.IPv4Unspecified(), req.Port).String())
	if err == nil {
		_ = conn.Close() // it was only opened to see whether it can be
		return c
	}
	if !errors.Is(err, unix.EADDRINUSE) {
		c.Grade, c.Finding, c.Remedy = report.Warn, err.Error(), "run as root"
		return c
	}
	owner := udpOwner(req.Port)
	switch {
	case owner != "":
		c.Grade, c.Finding = report.Missing, fmt.Sprintf("UDP port %d belongs to %s", req.Port, owner)
		c.Remedy = "stop it, or set PARTICLE_VXLAN_PORT to another port"
	case req.Installed:
		c.Finding = fmt.Sprintf("UDP port %d carries VXLAN", req.Port)
	default:
		// The kernel's VXLAN socket has no process, and devices share it.
		c.Finding = fmt.Sprintf("UDP port %d carries the VXLAN of something else (a Swarm overlay, for one), which can go on", req.Port)
	}
	return c
}

// udpOwner names the process that has the UDP port open, empty if none has.
func udpOwner(port uint16) string {
	inodes := map[string]bool{}
	for _, table := range []string{"/proc/self/net/udp", "/proc/self/net/udp6"} {
		raw, err := os.ReadFile(table)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(raw)) {
			f := strings.Fields(line)
			if len(f) > 9 && strings.HasSuffix(f[1], fmt.Sprintf(":%04X", port)) && f[9] != "0" {
				inodes["socket:["+f[9]+"]"] = true
			}
		}
	}
	fds, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil || len(inodes) == 0 {
		return ""
	}
	for _, fd := range fds {
		if link, err := os.Readlink(fd); err == nil && inodes[link] {
			pid, err := strconv.Atoi(strings.Split(fd, "/")[2])
			if err == nil {
				return fmt.Sprintf("process %d (%s)", pid, readProc(pid, "comm"))
			}
		}
	}
	return ""
}

func ipv6() report.Check {
	c := report.Check{Name: "IPv6", Grade: report.OK, Finding: "available to networks made with --ipv6"}
	raw, err := os.ReadFile("/proc/sys/net/ipv6/conf/all/disable_ipv6")
	switch {
	case errors.Is(err, os.ErrNotExist):
		c.Grade, c.Finding = report.Warn, "this kernel has no IPv6, so networks made with --ipv6 cannot work"
		c.Remedy = "boot without ipv6.disable=1 if you need them"
	case err != nil:
		c.Grade, c.Finding, c.Remedy = report.Warn, err.Error(), "run as root"
	case strings.TrimSpace(string(raw)) == "1":
		c.Finding = "off on the host itself, which does not matter to networks made with --ipv6"
	}
	return c
}

// iptables looks for the tool by which Docker's own rules are managed, and for
// a policy that would drop what containers send out of the host.
func iptables(ctx context.Context) []report.Check {
	tool := report.Check{Name: "iptables", Grade: report.OK}
	path := ""
	for _, dir := range []string{"/usr/sbin", "/sbin", "/usr/bin", "/bin", "/usr/local/sbin"} {
		if file := filepath.Join(dir, "iptables"); executable(file) == nil {
			path = file
			break
		}
	}
	if path == "" {
		tool.Grade, tool.Finding = report.Warn, "not found: if Docker or a firewall drops forwarded packets, containers do not reach beyond their host"
		tool.Remedy = "install iptables"
		return []report.Check{tool}
	}
	version, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		tool.Grade, tool.Finding, tool.Remedy = report.Warn, path+": "+err.Error(), "repair the installation of iptables"
		return []report.Check{tool}
	}
	tool.Finding = path + ", " + strings.TrimSpace(string(version))
	forward := report.Check{Name: "forwarding", Grade: report.OK, Finding: "packets of containers may leave the host"}
	rules, err := exec.CommandContext(ctx, path, "-w", "5", "-S", "FORWARD").Output()
	switch {
	case err != nil:
		forward.Grade, forward.Finding = report.Warn, "the rules of the chain FORWARD cannot be listed: "+exitText(err)
		forward.Remedy = "run `iptables -S FORWARD` on the host and see"
	case strings.Contains(string(rules), "-P FORWARD DROP"):
		forward.Finding = "the policy of FORWARD is DROP, as Docker sets it; networks get rules of their own"
	}
	return []report.Check{tool, forward}
}

func exitText(err error) string {
	var exit *exec.ExitError
	if errors.As(err, &exit) && len(exit.Stderr) > 0 {
		return strings.TrimSpace(string(exit.Stderr))
	}
	return err.Error()
}

// firewall looks for the two firewalls that users most often forget.
func firewall(port uint16) (report.Check, bool) {
	c := report.Check{Name: "firewall", Grade: report.Warn}
	if ufw, err := os.ReadFile("/etc/ufw/ufw.conf"); err == nil && strings.Contains(string(ufw), "\nENABLED=yes") {
		c.Finding = "ufw is on"
		c.Remedy = fmt.Sprintf("let the other hosts in with `ufw allow %d/udp`", port)
		return c, true
	}
	comms, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		return c, false
	}
	for _, file := range comms {
		if comm, err := os.ReadFile(file); err == nil && strings.TrimSpace(string(comm)) == "firewalld" {
			c.Finding = "firewalld runs"
			c.Remedy = fmt.Sprintf("let the other hosts in with `firewall-cmd --permanent --add-port=%d/udp` and `firewall-cmd --reload`", port)
			return c, true
		}
	}
	return c, false
}

// Installed tells which of our files are on the host.
func Installed() bool { return executable(hostpath.RuntimeBinary) == nil }
