// Package netnstest gives tests network namespaces of their own.
//
// A test package calls Main from its TestMain; the whole test binary then runs
// in a mount and a network namespace that end with it, so that a test that
// crashes leaves nothing behind. Each test makes the namespaces it needs with
// New and wires them with Connect. What a namespace holds is looked at with ip
// and nft, not with the code under test.
//
// A missing right or tool skips a test, by name; with PARTICLE_REQUIRE set it
// fails instead, so that a machine meant to run these tests cannot pass by
// skipping them.
package netnstest
