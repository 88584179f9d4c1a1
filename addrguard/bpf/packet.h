/* The headers of packets. */
#ifndef PACKET_H
#define PACKET_H

#include "guard.h"

struct ipv4 {
	__u8 vhl, tos;
	__be16 len, id, frag;
	__u8 ttl, protocol;
	__be16 check;
	__be32 saddr, daddr;
};

struct ipv6 {
	__be32 vtf;
	__be16 len;
	__u8 next, hops;
	struct in6 saddr, daddr;
};

#endif
