// Package rig is what the benchmark programs stand on: namespaces that end with
// the run, what machine it was, and how figures are summed up and kept.
package rig
