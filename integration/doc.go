// Package integration tests the product as a user meets it: real Docker Engines
// in a lab, the plugin installed by the particle command, containers started by
// the docker command.
//
// testdata holds one behaviour a file, written like a shell session:
//
//	lab                             a fresh host with the plugin installed
//	lab systemd                     one on which systemd makes the cgroups
//	docker run --rm --network ...   the docker command on that host
//	particle status                 the particle command, likewise
//	host CMD..., internet CMD...    a command on the host, or beyond it
//	eventually CMD...               the command, until it succeeds
//	dockerd kill | plugin kill ...  faults
//	mesh NETWORK [OTHER]            a container on each host, and all reach all in all ways
//	forge internet|HOST HOST NET    a made packet of the network arrives
//	clean                           nothing of any container is left
//
// testdata/vm has what changes the whole machine, and so runs in virtual machines alone.
//
// What is the kernel's or the store's, and not the engine's, is shown on the first engine alone.
// What is said in numbers is shown in small ones; with the build tag soak, all faults are
// shown on all engines with all stores, and numbers are large.
// Every other script runs on each engine named by PARTICLE_ENGINES (default: debian
// and current), and with PARTICLE_INIT=systemd on hosts of systemd's alone.
package integration
