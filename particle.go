// Package particle holds what the particle command brings along to a Docker
// host beside the programs themselves, and the version all of them report.
package particle

import _ "embed" // of the two files below

// Version is the release, in the form of semver.org without a leading v.
const Version = "0.1.0"

// Module is the path that this module has in go.mod, by which what was built of it is known.
const Module = "github.com/particle-net/particle"

// Dockerfile makes the image from a folder that holds the three programs.
//
//go:embed Dockerfile
var Dockerfile []byte

// PluginConfig is the managed plugin's configuration, in Docker's plugin
// config v0.
//
//go:embed config.json
var PluginConfig []byte
