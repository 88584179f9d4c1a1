// Package hostpath names every place on a Docker host that belongs to the
// project, so that each path is written down once and uninstall can be held
// against the list.
//
// The paths are the host's. A process that sees the host's files under another
// root (the plugin sees them under PluginRoot) joins that root in front.
package hostpath

// What lives until the next reboot.
const (
	RunDir       = "/run/particle"
	NamespaceDir = RunDir + "/netns"         // one file a network, a tenant namespace bound on it
	GuardDir     = RunDir + "/bpf"           // a bpffs: the address guard's programs and maps
	HolderDir    = RunDir + "/holder"        // the guard by system calls: its process's socket, and the addresses of each container
	CgroupDir    = RunDir + "/cgroup"        // the version 2 hierarchy, on a host that has mounted version 1 alone
	ResolvDir    = RunDir + "/resolv"        // one resolv.conf a container
	NetworkIndex = RunDir + "/networks"      // "ID NAME" lines: our networks, for the runtime while the plugin is down
	LiveStore    = RunDir + "/live.db"       // endpoints and address leases
	Socket       = RunDir + "/particle.sock" // the plugin's, for particle-runtime and the particle command
)

// What lives until uninstall.
const (
	StateDir      = "/var/lib/particle"                // package internal/membership has its files there too
	EtcdClientDir = StateDir + "/etcd-client"          // an administrator's: certificates and password for PARTICLE_ETCD
	ClusterRecord = StateDir + "/cluster/cluster.json" // of the cluster that the host is in; package internal/membership's
	Store         = StateDir + "/particle.db"          // networks and pools
	RuntimeConfig = "/etc/particle/runtime.json"
	RuntimeBinary = "/usr/local/bin/particle-runtime"
	CLIBinary     = "/usr/local/bin/particle"
)

// What Docker looks at.
const (
	DriverSocket = "/run/docker/plugins/particle.sock" // makes `-d particle` resolve (Docker's v1 plugin discovery)
	DockerSocket = "/run/docker.sock"
)

// PluginRoot is where the managed plugin sees the host's /run and StateDir.
const PluginRoot = "/host"

// Names the project registers with Docker.
const (
	DriverName  = "particle"            // of the network and the IPAM driver
	RuntimeName = "particle"            // of the OCI runtime
	PluginName  = "particle-net:latest" // of the managed plugin; must differ from DriverName
)

// SetPlugin is what a user types to change settings of the plugin, each NAME=VALUE with
// spaces between. It works on any host, where `particle install --set` needs the folder in
// which the programs were built.
func SetPlugin(settings string) string {
	return "docker plugin disable -f particle-net && docker plugin set particle-net " + settings + " && docker plugin enable particle-net"
}

// WithoutEtcd has the next plugin use no etcd of others. One that is told to encrypt and has
// none does not start: that would be in plain.
func WithoutEtcd() string { return SetPlugin("PARTICLE_ETCD= PARTICLE_ENCRYPT=") }
