// Package hostview lets the plugin speak of files as people on the host know
// them. The plugin sees the host's /run and /var/lib/particle below
// hostpath.PluginRoot, and all of its root below /proc/1/root; an error that says
// "open /host/run/particle/live.db" sends its reader to a file that is not there.
//
// The paths of an error come from many places, most of them in the standard
// library or the kernel's own, so they are not translated where they arise but
// where they leave the plugin: in the replies to Docker, to particle-runtime and
// to the particle command, and in the log.
package hostview
