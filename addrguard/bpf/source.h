/* Which sources a container's packets may have, and that they are for one receiver:
 * what is for a group goes nowhere, since all who share the namespace are in it. */
#ifndef SOURCE_H
#define SOURCE_H

#include "packet.h"

/* True only of addresses that are of neither a loopback nor a group, by one question:
 * those have a first byte of 96 to 127, or of 224 and more. */
static __always_inline bool is_plain4(__be32 a)
{
	return (a & bpf_htonl(0x60000000)) != bpf_htonl(0x60000000);
}

static __always_inline bool is_one4(__be32 a) { return !is_loop4(a) && !is_group4(a); }
static __always_inline bool is_one6(const struct in6 *a) { return !is_loop6(a) && !is_group6(a); }

static __always_inline bool own_source4(const struct face *f, const struct ipv4 *ip)
{
	__be32 from = ip->saddr, to = ip->daddr;

	if (own_loop4(f, from))
		return to == f->ip4 || own_loop4(f, to);
	return from == f->ip4 && (is_plain4(to) || own_loop4(f, to) || is_one4(to));
}

static __always_inline bool own_source6(const struct face *f, const struct ipv6 *ip)
{
	struct in6 from = ip->saddr, to = ip->daddr;

	if (same6(&from, &f->lo6))
		return same6(&to, &f->ip6) || same6(&to, &f->lo6);
	return same6(&from, &f->ip6) && (is_one6(&to) || same6(&to, &f->lo6));
}

/* What programs send to 127.0.0.1 and ::1 by a socket for ping: the kernel
 * answers. */
static __always_inline bool named_echo4(const struct ipv4 *ip)
{
	return ip->protocol == IPPROTO_ICMP && named_loop4(ip->saddr) && named_loop4(ip->daddr);
}

static __always_inline bool named_echo6(const struct in6 *from, const struct in6 *to, bool icmp)
{
	return icmp && one6(from) && one6(to);
}

#endif
