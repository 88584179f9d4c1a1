// Package ipam speaks Docker's IpamDriver protocol: parse, one call of the
// domain's, render. The allocator itself is package ipam/pool; which pools
// exist and who holds an address is the fabric's to know.
package ipam
