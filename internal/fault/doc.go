// Package fault gives every error of the project one shape: the operation, the
// object it was about, the cause, and what the reader can do about it.
//
//	create network 4f2a9c01d3b7: VNI 42 belongs to network red; pass -o particle.vni=N or remove red
//
// Docker shows a plugin's error text to the person who typed the command, so
// the text is the only place where the remedy can be told.
package fault
