package shim

import (
	"slices"
	"strings"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/seccomp"
)

// refuse returns an error for a container that cannot live in a namespace it
// shares, and says what to do instead. on names the network for the message.
func refuse(c Call, b bundle, on string, several bool) error {
	cause, fix := objection(c, b, on, several)
	if cause == "" {
		return nil
	}
	return fault.New("start container", b.Label(), cause, fix)
}

func objection(c Call, b bundle, on string, several bool) (cause, fix string) {
	if cause, fix = impossible(c, b, on); cause != "" {
		return cause, fix
	}
	w := unshareable(b, on, several)
	return w.cause, w.fix
}

// impossible is what no container on a particle network can have.
func impossible(c Call, b bundle, on string) (cause, fix string) {
	switch {
	case c.Command != "create":
		return "a container on " + on + " gets its address between the runtime's create and start, and `" + c.Command + "` has no such moment",
			"use create and start, without a checkpoint"
	case b.facts.UserNamespace:
		return on + " belongs to the host's users, and this container has user ids of its own (userns-remap)",
			"add --userns=host"
	case len(b.Host.Ports) > 0:
		return "publishing ports (" + strings.Join(b.Host.Ports, ", ") + ") is not possible on " + on,
			"remove -p; the container's own address can be reached from its network"
	case b.Host.PublishAllPorts:
		return "publishing ports is not possible on " + on, "remove -P; the container's own address can be reached from its network"
	}
	return "", ""
}

// wish is what a container asks for and cannot have in a namespace that it shares.
type wish struct {
	what       string // as its user would say it
	cause, fix string // why it cannot be had, and what to do
}

// unshareable is what a container can have in a namespace of its own alone; an empty
// wish if it asks for nothing like that.
func unshareable(b bundle, on string, several bool) wish {
	switch {
	case several:
		return wish{"networks " + names(b),
			on + " is shared by its containers, so a second network of one of them would reach into all: it is connected to " + names(b),
			"disconnect it from all but one with `docker network disconnect`"}
	case b.Host.Privileged:
		return wish{"--privileged", "--privileged would let it change " + on + " for all containers there",
			"remove --privileged and give it the devices and capabilities it needs one by one"}
	case b.MAC:
		return wish{"--mac-address", "in the shared namespace of " + on + " it has no interface, hence no MAC address", "remove --mac-address"}
	}
	if m := b.exposed; m != nil {
		mount := "mount of " + m.Source + " at " + m.Destination
		return wish{mount, "its " + mount + " lets it write where the settings or the cgroups of the host are, and so change " + on + " for all containers there",
			"remove it, or mount it read-only with all that is mounted below it"}
	}
	if name := capName(unshareableCapability(b.Host.CapAdd, b.Host.CapDrop)); name != "" {
		return wish{"--cap-add " + name, "--cap-add " + name + " would let it change or listen in on " + on + ", which it shares with other containers",
			capabilityFix(name)}
	}
	for _, key := range b.Host.Sysctls {
		if seccomp.IsNetSysctl(key) {
			return wish{"--sysctl " + key, "--sysctl " + key + " would hold for all containers on " + on, "remove it"}
		}
	}
	return wish{}
}

func names(b bundle) string {
	var names []string
	for _, n := range b.Networks {
		names = append(names, n.Name)
	}
	return strings.Join(names, ", ")
}

// unshareableCapability returns the one that was asked for and cannot be given.
// Those that Docker gives without being asked are taken away silently.
func unshareableCapability(add, drop []string) string {
	for _, name := range add {
		if seccomp.IsUnshareable(name) {
			return name
		}
		if capName(name) == "ALL" && !(dropped(drop, "NET_ADMIN") && dropped(drop, "NET_RAW") && dropped(drop, "SYS_ADMIN")) {
			return name
		}
	}
	return ""
}

// dropped looks for the name itself: next to `--cap-add ALL` Docker reads
// `--cap-drop ALL` as nothing.
func dropped(drop []string, name string) bool {
	return slices.ContainsFunc(drop, func(d string) bool { return capName(d) == name })
}

func capName(name string) string { return strings.TrimPrefix(strings.ToUpper(name), "CAP_") }

func capabilityFix(name string) string {
	switch name {
	case "ALL":
		return "add --cap-drop NET_ADMIN --cap-drop NET_RAW --cap-drop SYS_ADMIN"
	case "NET_RAW":
		return "remove it; ping works without it where the image uses ping sockets"
	}
	return "remove it"
}
