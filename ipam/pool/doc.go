// Package pool hands out the addresses of one subnet. It is pure computation:
// no clock, no file, no lock; what must survive a restart is the caller's to
// keep and to give back with Restore.
//
// An address of a subnet is in one of four states:
//
//	reserved   never handed out: network and broadcast address of an IPv4
//	           subnet, the all-zeros address of an IPv6 subnet
//	fresh      not used yet
//	held       handed out by Any or Take
//	waiting    released; it rests until every fresh address is used up
//
//	           Any, Take          Release
//	    fresh ------------> held ---------> waiting
//	                          ^                |
//	                          +----------------+
//	                              Any, Take
//
// Any gives fresh addresses in ascending order and then waiting ones, oldest
// release first, so that an address comes back as late as possible: connections,
// neighbour entries and DNS answers of its last owner have gone by then.
//
// # Data
//
//	subnet   10.9.0.0/24                                      Take: whole subnet
//	range    |----- 10.9.0.64/26 -----|                       Any: range only
//	          held, waiting | fresh ->
//	                        ^ mark
//
// The mark is the lowest address Any has not looked at. Addresses which are
// held or waiting are in one map, whether below or above the mark; the mark
// steps over those it meets. Waiting addresses also stand in a queue; taking
// one by name leaves its queue entry behind, which Any discards when it comes
// to it. Any, Take and Release are therefore O(1) amortised, and memory is in
// proportion to held and waiting addresses, never to the size of the subnet: an
// IPv6 /8 costs as much as a /120.
//
// # Blocks
//
// A pool with Config.Blocks has no range. It hands out the blocks that Extend adds,
// until Withdraw takes them away: the parts of a subnet that this host owns. Each
// has a mark of its own, and fresh addresses come from the oldest block first. Take
// still holds any address of the subnet: whether this host may is the caller's to
// know.
//
//	subnet   10.9.0.0/24
//	blocks   |- .16/28 -|    |---- .64/28 ----|    |- .240/28 -|
//	          held, waiting   held | fresh ->       fresh ->
//	                               ^ mark
//
// The held addresses of a withdrawn block stay held, and are forgotten when they are
// released.
//
// # Invariants
//
//   - No address is held twice, and none that is reserved or outside the subnet.
//   - Every address below the mark is held or waiting, or outside the range.
//   - Blocks do not overlap.
//   - A waiting address lies inside the range or a block and has exactly one live queue entry.
//
// Defaults chooses subnets for those who do not name one.
package pool
