/* The names that programs read back: what was rewritten on the way in is
 * rewritten on the way out. */
#ifndef NAMES_H
#define NAMES_H

#include "owner.h"

#define ONE4 bpf_htonl(0x7f000001)

/* A peer's address as the program expects it. One that was reached from the
 * loopback address was called by a loopback address. */
static __always_inline __be32 peer4(const struct face *f, __be32 local, __be32 a)
{
	if (own_loop4(f, a))
		return LOOP24 | (a & ~NET24);
	if (a == f->ip4 && own_loop4(f, local))
		return ONE4;
	return a;
}

static __always_inline struct in6 peer6(const struct face *f, const struct in6 *local, const struct in6 *a)
{
	if (mapped6(a))
		return map4(peer4(f, mapped6(local) ? local->word[3] : 0, a->word[3]));
	if (same6(a, &f->lo6) || (same6(a, &f->ip6) && same6(local, &f->lo6)))
		return (struct in6){{0, 0, 0, bpf_htonl(1)}};
	return *a;
}

/* recvmsg has nothing to deny. */
static __always_inline int show_peer4(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct owner *o;

	if (!sk)
		return 1;
	o = bpf_sk_storage_get(&sockets, sk, NULL, 0);
	if (o && !(o->face.flags & EXEMPT))
		ctx->user_ip4 = peer4(&o->face, sk->src_ip4, ctx->user_ip4);
	return 1;
}

static __always_inline int show_peer6(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct in6 local, a, shown;
	struct owner *o;

	if (!sk)
		return 1;
	o = bpf_sk_storage_get(&sockets, sk, NULL, 0);
	if (!o || o->face.flags & EXEMPT)
		return 1;
	local = local6(sk);
	a = user6(ctx);
	shown = peer6(&o->face, &local, &a);
	set_user6(ctx, &shown);
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

/* Whether the program asked for a wildcard. The socket of an MPTCP listener does
 * not know: its first subflow was bound. */
static __always_inline __u32 bound_to(struct bpf_sock_addr *ctx, struct bpf_sock *sk, const struct owner *o, __be32 a4,
				      const struct in6 *a6)
{
	struct bpf_sock_tuple tuple = {};
	__u32 size = sizeof(tuple.ipv4), bound = 0;
	struct bpf_sock *subflow;
	struct owner *of;

	if (o->bound || ctx->protocol != IPPROTO_MPTCP || sk->state != TCP_LISTEN)
		return o->bound;
	if (a6) {
		size = sizeof(tuple.ipv6);
		__builtin_memcpy(tuple.ipv6.daddr, a6, sizeof(*a6));
		tuple.ipv6.dport = ctx->user_port;
	} else {
		tuple.ipv4.daddr = a4;
		tuple.ipv4.dport = ctx->user_port;
	}
	subflow = bpf_sk_lookup_tcp(ctx, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	if (!subflow)
		return 0;
	of = bpf_sk_storage_get(&sockets, subflow, NULL, 0);
	if (of)
		bound = of->bound;
	bpf_sk_release(subflow);
	return bound;
}

SEC("cgroup/getsockname4")
int getsockname4(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct owner *o;
	__be32 a;

	if (!sk)
		return 1;
	o = bpf_sk_storage_get(&sockets, sk, NULL, 0);
	if (!o || o->face.flags & EXEMPT)
		return 1;
	a = ctx->user_ip4;
	if (a == o->face.ip4 && bound_to(ctx, sk, o, a, NULL)) {
		if (!sk->dst_port)
			a = 0;
		else if (is_loop4(sk->dst_ip4))
			a = ONE4;
	} else if (own_loop4(&o->face, a)) {
		a = LOOP24 | (a & ~NET24);
	}
	ctx->user_ip4 = a;
	return 1;
}

SEC("cgroup/getsockname6")
int getsockname6(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct owner *o;
	struct in6 a, far;
	__u32 bound = 0;

	if (!sk)
		return 1;
	o = bpf_sk_storage_get(&sockets, sk, NULL, 0);
	if (!o || o->face.flags & EXEMPT)
		return 1;
	a = user6(ctx);
	far = (struct in6){{sk->dst_ip6[0], sk->dst_ip6[1], sk->dst_ip6[2], sk->dst_ip6[3]}};
	if (mapped6(&a) && a.word[3] == o->face.ip4)
		bound = bound_to(ctx, sk, o, a.word[3], NULL);
	else if (same6(&a, &o->face.ip6))
		bound = bound_to(ctx, sk, o, 0, &a);
	if (bound && !sk->dst_port)
		a = bound == WILDCARD ? (struct in6){} : map4(0);
	else if (bound && mapped6(&a) && is_loop4(sk->dst_ip4))
		a = map4(ONE4);
	else if (mapped6(&a) && own_loop4(&o->face, a.word[3]))
		a = map4(LOOP24 | (a.word[3] & ~NET24));
	else if (same6(&a, &o->face.lo6) || (bound && same6(&far, &o->face.lo6)))
		a = (struct in6){{0, 0, 0, bpf_htonl(1)}};
	set_user6(ctx, &a);
	return 1;
}

#endif
