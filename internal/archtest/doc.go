// Package archtest holds the tests that keep the shape of the source: which
// folder may import which, and how long, how documented and how patient a file
// may be. It has no code for others.
//
// Imports point one way:
//
//	cmd ----> driver, ipam ----> fabric ----> topology
//	 |                             ^
//	 +------> overlay, internal/store, ...    what fabric needs of the kernel
//	                                          and the disk, as interfaces
//
// Each rule carries its reason, which is the text of its failure: someone who
// breaks a rule unknowingly reads why it is there, and someone who must break
// it knows what to weigh. Rules name packages that need not exist yet.
package archtest
