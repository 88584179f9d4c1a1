// Package controltest is what every implementation of the control package's
// roles has to pass.
//
//	Distribution  the suite of a Distributor: etcd, BGP EVPN, one in memory
//	Allocation    the suite of a store: Allocator, Directory and Distributor of
//	              several hosts in one
//	History       records what hosts asked a store for and what it answered, and
//	              checks that some order of these operations explains all answers
//
// All of it waits for what it expects and never for a time, so that a slow
// machine fails no test; a minute without what is expected does.
package controltest
