/* Whose the socket of a hook is. */
#ifndef OWNER_H
#define OWNER_H

#include "guard.h"

/* STRANGER: a process in a protected namespace that nobody admitted. */
enum standing { OUTSIDE, STRANGER, OWNED };

static __always_inline enum standing adopt(void *ctx, void *sk, struct owner **out)
{
	__u64 netns = bpf_get_netns_cookie(ctx), cgroup = 0;
	struct container *c;
	struct owner *o;

	if (!bpf_map_lookup_elem(&networks, &netns))
		return OUTSIDE;
	c = container_of_task(netns, &cgroup);
	if (!c) {
		count_total(STRANGER_DENIED);
		return STRANGER;
	}
	o = bpf_sk_storage_get(&sockets, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!o)
		return STRANGER; /* out of memory */
	fill(o, c, cgroup, netns);
	*out = o;
	return OWNED;
}

/* The owner of the socket that ctx is about. A socket has its owner from
 * sock_create on, but for those that the kernel makes itself: the subflows of
 * MPTCP. */
static __always_inline enum standing owner_of(struct bpf_sock_addr *ctx, struct bpf_sock *sk, struct owner **out)
{
	struct owner *o = bpf_sk_storage_get(&sockets, sk, NULL, 0);
	enum standing standing = OWNED;

	if (!o)
		standing = adopt(ctx, sk, &o);
	if (standing == OWNED && o->face.flags & EXEMPT)
		return OUTSIDE;
	*out = o;
	return standing;
}

/* Hooks answer 1 for yes; 0 for no, with an error. */
static __always_inline int deny(const struct owner *o, enum verdict verdict, int error)
{
	count_for(o->cgroup, verdict);
	bpf_set_retval(-error);
	return 0;
}

static __always_inline bool is_v6only(struct bpf_sock_addr *ctx, struct bpf_sock *sk)
{
	struct sock_common *common;

	if (ctx->type == SOCK_STREAM)
		common = (struct sock_common *)bpf_skc_to_tcp6_sock(sk);
	else
		common = (struct sock_common *)bpf_skc_to_udp6_sock(sk);
	return common && BPF_CORE_READ_BITFIELD(common, skc_ipv6only);
}

static __always_inline struct in6 local6(struct bpf_sock *sk)
{
	return (struct in6){{sk->src_ip6[0], sk->src_ip6[1], sk->src_ip6[2], sk->src_ip6[3]}};
}

static __always_inline struct in6 user6(struct bpf_sock_addr *ctx)
{
	return (struct in6){{ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3]}};
}

static __always_inline void set_user6(struct bpf_sock_addr *ctx, const struct in6 *a)
{
	ctx->user_ip6[0] = a->word[0];
	ctx->user_ip6[1] = a->word[1];
	ctx->user_ip6[2] = a->word[2];
	ctx->user_ip6[3] = a->word[3];
}

static __always_inline struct in6 map4(__be32 a)
{
	return (struct in6){{0, 0, MAPPED, a}};
}

#endif
