// Command particle-lab boots real Docker hosts in namespaces of this machine, so
// that a multi-host network can be tried, tested and broken on a laptop:
//
//	particle-lab up --hosts 3
//	particle-lab exec h1 -- docker ps
//	particle-lab cut h2
//	particle-lab down
//
// Package internal/lab tells how a host is made.
package main
