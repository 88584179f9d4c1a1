// Package attack has two programs for containers that share a network namespace:
// a victim, which listens in every way programs do and remembers who touched it,
// and an attacker, which tries to be taken for somebody else, to take what is the
// victim's, and to reach what is private to it.
//
// # Model
//
// An attack is a Case. It succeeds by its effect: the kernel accepted the
// victim's address, the attacker received what was sent to the victim, or the
// victim was touched where it must not be, or by an address that is not the
// attacker's. The victim is the judge of the latter. It answers to everybody, as
// the Witness on its own address, the one place where a neighbour may speak to it:
//
//	attacker ── attack, with a token ──> services of the victim ──> touches
//	    └────── "who touched you?" ────> witness ─────────────────────┘
//
// Controls are cases that must succeed whatever guards there are. Where they do
// not, nothing is proven by the failure of the others.
//
// # Invariants
//
//   - A case tries with what the container has: no case needs another program, or
//     a descriptor from outside.
//   - What a case opened is closed before the next one.
//   - An error that is not one of permission, where permission is what an attack
//     lacks, counts as success: the request got past the check.
package attack
