// Package rig is what the benchmark programs stand on: namespaces that end with
// the run, particle's programs for hosts to be measured, what machine it was, and how
// figures are summed up and kept.
package rig
