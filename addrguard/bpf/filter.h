/* What the hooks on calls do not see: ports that the kernel chose for all
 * addresses, sockets that it made itself, and what is sent before a source was
 * chosen. A packet enters only under an address of its socket's container, so none
 * for a group does. Where devices have programs (device.c), those see to it that it
 * leaves under one, too: a second program for each packet of a connection would cost
 * it 2 to 3 %. */
#ifndef FILTER_H
#define FILTER_H

#include "owner.h"
#include "source.h"

/* Set before loading: whether packet programs may ask for the namespace
 * (Linux 6.15). Without it nothing is known of sockets without an owner, and
 * they are judged by their cgroup alone. */
const volatile bool packet_netns;

static __always_inline struct container *container_of_packet(struct __sk_buff *skb, __u64 netns, __u64 *cgroup)
{
	struct container *c;

	/* Whoever sends has made a socket, so its depth is known. */
	SEARCH(c, false, ({
		       *cgroup = bpf_skb_ancestor_cgroup_id(skb, level);
		       *cgroup ? entry(*cgroup, netns) : NULL;
	       }));
	return c;
}

/* The subject is the socket's maker. */
static __always_inline enum standing packet_subject(struct __sk_buff *skb, const struct bpf_sock *sk, struct subject *s)
{
	struct container *c;

	s->netns = packet_netns ? bpf_get_netns_cookie(skb) : 0;
	if (packet_netns && !bpf_map_lookup_elem(&networks, &s->netns))
		return OUTSIDE; /* spares others the search */
	c = container_of_packet(skb, s->netns, &s->cgroup);
	if (c) {
		s->entry = c;
		s->face = &c->face;
		s->netns = c->netns;
		return c->face.flags & EXEMPT ? OUTSIDE : OWNED;
	}
	/* The kernel's own sockets, as of neighbour discovery, are raw. */
	if (!packet_netns || sk->type == SOCK_RAW)
		return OUTSIDE;
	count_total(STRANGER_DENIED);
	return STRANGER;
}

/* Once there is a connection, its addresses are settled: connect chose them, or
 * the packet that opened it entered by its listener. */
static __always_inline bool is_settled(const struct bpf_sock *sk)
{
	return sk->protocol == IPPROTO_TCP && sk->state != TCP_LISTEN;
}

/* Behind the uplink, in the gateway, sources are rewritten: nothing leaves the
 * host under a container's address. */
static __always_inline bool on_uplink(struct __sk_buff *skb, const struct subject *s)
{
	struct network *n = bpf_map_lookup_elem(&networks, &s->netns);

	return n && n->uplink && n->uplink == skb->ifindex;
}

static __always_inline bool may_leave4(struct __sk_buff *skb, const struct subject *s, const struct ipv4 *ip)
{
	return own_source4(s->face, ip) || named_echo4(ip) || on_uplink(skb, s);
}

static __always_inline bool may_enter4(struct __sk_buff *skb, const struct subject *s, const struct ipv4 *ip)
{
	const struct face *f = s->face;
	__be32 from = ip->saddr, to = ip->daddr;

	if (own_loop4(f, to))
		return from == f->ip4 || own_loop4(f, from);
	if (to == f->ip4)
		return true;
	/* Echo replies find their socket by an identifier that none shares. */
	return ip->protocol == IPPROTO_ICMP && (named_echo4(ip) || on_uplink(skb, s));
}

static __always_inline bool may_leave6(struct __sk_buff *skb, const struct subject *s, const struct ipv6 *ip)
{
	struct in6 from = ip->saddr, to = ip->daddr;

	return own_source6(s->face, ip) || named_echo6(&from, &to, ip->next == IPPROTO_ICMPV6) || on_uplink(skb, s);
}

static __always_inline bool may_enter6(struct __sk_buff *skb, const struct subject *s, const struct ipv6 *ip)
{
	const struct face *f = s->face;
	struct in6 from = ip->saddr, to = ip->daddr;

	if (same6(&to, &f->lo6))
		return same6(&from, &f->ip6) || same6(&from, &f->lo6);
	if (same6(&to, &f->ip6))
		return true;
	return ip->next == IPPROTO_ICMPV6 && (named_echo6(&from, &to, true) || on_uplink(skb, s));
}

static __always_inline bool passes(struct __sk_buff *skb, bool out, const struct subject *s)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;

	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		struct ipv4 *ip = data;

		if ((void *)(ip + 1) > end)
			return false;
		return out ? may_leave4(skb, s, ip) : may_enter4(skb, s, ip);
	}
	if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		struct ipv6 *ip = data;

		if ((void *)(ip + 1) > end)
			return false;
		return out ? may_leave6(skb, s, ip) : may_enter6(skb, s, ip);
	}
	return true;
}

/* Whether a packet for a datagram's socket came to the address that the socket has: the
 * kernel chose the socket by that, and bind or connect has seen to it that it is the
 * container's. A loopback has rules of its own, and what steer has handed over came to
 * another address. */
static __always_inline bool is_addressed(struct __sk_buff *skb, struct bpf_sock *sk)
{
	if (sk->protocol != IPPROTO_UDP)
		return false;
	if (skb->protocol == bpf_htons(ETH_P_IP))
		return sk->src_ip4 && !is_loop4(sk->src_ip4);
	return sk->src_ip6[0] && sk->src_ip6[0] != loopback6.word[0];
}

static __always_inline int filter(struct __sk_buff *skb, bool out)
{
	struct bpf_sock *sk = skb->sk;
	struct subject s = {};
	enum standing who;
	struct owner *o;

	if (sk)
		sk = bpf_sk_fullsock(sk);
	if (!sk || is_settled(sk) || (!out && is_addressed(skb, sk)))
		return 1;
	o = bpf_sk_storage_get(&sockets, sk, NULL, 0);
	who = o ? kept_subject(o, &s) : packet_subject(skb, sk, &s);
	if (who != OWNED)
		return who;
	if (passes(skb, out, &s))
		return 1;
	count_subject(&s, out ? EGRESS_DROPPED : INGRESS_DROPPED);
	return 0;
}

/* Whether a packet is for a group. */
static __always_inline bool is_for_many(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ipv4 *ip4 = data;
	struct ipv6 *ip6 = data;

	if (skb->protocol == bpf_htons(ETH_P_IP))
		return (void *)(ip4 + 1) <= end && is_group4(ip4->daddr);
	return (void *)(ip6 + 1) <= end && is_group6(&ip6->daddr);
}

/* Drops a packet of whose fate its sender is not told: to programs that send to a
 * group an error means that there is no network. */
enum { DROP_QUIETLY = 2 };

/* Attached where devices have no programs. */
SEC("cgroup_skb/egress")
int egress(struct __sk_buff *skb)
{
	if (filter(skb, true))
		return 1;
	return is_for_many(skb) ? DROP_QUIETLY : 0;
}

SEC("cgroup_skb/ingress")
int ingress(struct __sk_buff *skb) { return filter(skb, false); }

#endif
