/* The names that programs read back: what was rewritten on the way in is
 * rewritten on the way out. Most names are of no interest, and are left without
 * asking whose the socket is.
 */
#ifndef NAMES_H
#define NAMES_H

#include "owner.h"

#define ONE4 bpf_htonl(0x7f000001)

static __always_inline struct in6 loopback(void) { return (struct in6){{0, 0, 0, bpf_htonl(1)}}; }

/* 0 if an address is, or maps, one of any container's loopback: a product, since the
 * verifier follows what comes after a branch once for each way. */
static __always_inline __u64 off_loop6(const struct in6 *a)
{
	__u32 v6 = (a->word[0] ^ loopback6.word[0]) | (a->word[1] ^ loopback6.word[1]) | (a->word[2] ^ loopback6.word[2]);
	__u32 v4 = a->word[0] | a->word[1] | (a->word[2] ^ MAPPED) | ((a->word[3] & bpf_htonl(0xff000000)) ^ LOOP24);

	return (__u64)v6 * v4;
}

/* Whether an end of a connection may have another name. That the product may
 * overflow costs those few a look. */
static __always_inline bool loops6(const struct in6 *a, const struct in6 *b)
{
	return !(off_loop6(a) * off_loop6(b));
}

/* An address as the program expects it. The own address stands for a loopback
 * address where the other end of the connection is one: a server on all addresses
 * has only that one in truth. */
static __always_inline __be32 shown4(const struct face *f, __be32 a, __be32 other)
{
	if (own_loop4(f, a))
		return LOOP24 | (a & ~NET24);
	if (a == f->ip4 && own_loop4(f, other))
		return ONE4;
	return a;
}

static __always_inline struct in6 shown6(const struct face *f, const struct in6 *a, const struct in6 *other)
{
	if (mapped6(a))
		return map4(shown4(f, a->word[3], mapped6(other) ? other->word[3] : 0));
	if (same6(a, &f->lo6) || (same6(a, &f->ip6) && same6(other, &f->lo6)))
		return loopback();
	return *a;
}

/* These hooks have nothing to deny. */
static __always_inline int show_peer4(struct bpf_sock_addr *ctx)
{
	__be32 a = ctx->user_ip4, local;
	struct bpf_sock *sk = ctx->sk;
	struct subject s = {};

	local = sk->src_ip4;
	if ((is_loop4(a) || is_loop4(local)) && subject_of(ctx, sk, &s) == OWNED)
		ctx->user_ip4 = shown4(s.face, a, local);
	return 1;
}

static __always_inline int show_peer6(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct subject s = {};
	struct in6 local, a;

	local = local6(sk);
	a = user6(ctx);
	if (loops6(&a, &local) && subject_of(ctx, sk, &s) == OWNED) {
		a = shown6(s.face, &a, &local);
		set_user6(ctx, &a);
	}
	return 1;
}

SEC("cgroup/recvmsg4")
int recvmsg4(struct bpf_sock_addr *ctx) { return show_peer4(ctx); }

SEC("cgroup/recvmsg6")
int recvmsg6(struct bpf_sock_addr *ctx) { return show_peer6(ctx); }

SEC("cgroup/getpeername4")
int getpeername4(struct bpf_sock_addr *ctx) { return show_peer4(ctx); }

SEC("cgroup/getpeername6")
int getpeername6(struct bpf_sock_addr *ctx) { return show_peer6(ctx); }

/* What a socket was bound to. One for ping is bound without any hook, so an address that
 * it has was named. The socket of an MPTCP listener does not know: its first subflow was
 * bound. */
static __always_inline __u32 bound_to(struct bpf_sock_addr *ctx, struct bpf_sock *sk, const struct owner *o,
				      const struct in6 *a)
{
	struct bpf_sock_tuple tuple = {};
	__u32 size = sizeof(tuple.ipv6), bound = 0;
	struct bpf_sock *subflow;

	if (ctx->protocol == IPPROTO_ICMP || ctx->protocol == IPPROTO_ICMPV6)
		return NAMED;
	if (o || ctx->protocol != IPPROTO_MPTCP || sk->state != TCP_LISTEN)
		return asked_for(sk, o);
	if (mapped6(a)) {
		size = sizeof(tuple.ipv4);
		tuple.ipv4.daddr = a->word[3];
		tuple.ipv4.dport = ctx->user_port;
	} else {
		__builtin_memcpy(tuple.ipv6.daddr, a, sizeof(*a));
		tuple.ipv6.dport = ctx->user_port;
	}
	subflow = bpf_sk_lookup_tcp(ctx, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	if (!subflow)
		return 0;
	bound = asked_for(subflow, bpf_sk_storage_get(&sockets, subflow, NULL, 0));
	bpf_sk_release(subflow);
	return bound;
}

/* Whether a socket that is not connected, at the address a, tells a wildcard. */
static __always_inline bool tells_wildcard(const struct face *f, __u32 bound, const struct in6 *a)
{
	if (bound & GROUP)
		return true;
	return !(bound & NAMED) && (mapped6(a) ? a->word[3] == f->ip4 : same6(a, &f->ip6));
}

SEC("cgroup/getsockname4")
int getsockname4(struct bpf_sock_addr *ctx)
{
	__be32 a = ctx->user_ip4, remote;
	struct bpf_sock *sk = ctx->sk;
	struct subject s = {};
	struct in6 a6;
	bool open;

	remote = sk->dst_ip4;
	open = a && !sk->dst_port;
	if (!(open || is_loop4(a) || is_loop4(remote)) || subject_of(ctx, sk, &s) != OWNED)
		return 1;
	a6 = map4(a);
	if (open && tells_wildcard(s.face, bound_to(ctx, sk, s.kept, &a6), &a6))
		ctx->user_ip4 = 0;
	else
		ctx->user_ip4 = shown4(s.face, a, remote);
	return 1;
}

SEC("cgroup/getsockname6")
int getsockname6(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct subject s = {};
	struct in6 a, remote;
	__u32 bound;
	bool open;

	a = user6(ctx);
	remote = remote6(sk);
	open = !any6(&a) && !sk->dst_port;
	if (!(open || loops6(&a, &remote)) || subject_of(ctx, sk, &s) != OWNED)
		return 1;
	bound = open ? bound_to(ctx, sk, s.kept, &a) : NAMED;
	if (tells_wildcard(s.face, bound, &a))
		a = bound & MAPPED_WILDCARD ? map4(0) : (struct in6){};
	else
		a = shown6(s.face, &a, &remote);
	set_user6(ctx, &a);
	return 1;
}

#endif
