// Package report writes for people what the particle command has found out:
// the networks of a host, and what a host lacks.
//
// It is pure: values in, text out. What a person reads is short (twelve digits
// of an id, an age instead of a time); programs read the same values as JSON,
// whole.
package report
