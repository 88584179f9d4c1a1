/* Which sources a container's packets may have. */
#ifndef SOURCE_H
#define SOURCE_H

#include "packet.h"

static __always_inline bool own_source4(const struct face *f, const struct ipv4 *ip)
{
	__be32 from = ip->saddr, to = ip->daddr;

	if (own_loop4(f, from))
		return to == f->ip4 || own_loop4(f, to);
	return from == f->ip4 && (!is_loop4(to) || own_loop4(f, to));
}

static __always_inline bool own_source6(const struct face *f, const struct ipv6 *ip)
{
	struct in6 from = ip->saddr, to = ip->daddr;

	if (same6(&from, &f->lo6))
		return same6(&to, &f->ip6) || same6(&to, &f->lo6);
	return same6(&from, &f->ip6) && (!is_loop6(&to) || same6(&to, &f->lo6));
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
