/* connect: what a program calls loopback is its own, and it speaks from its own
 * address. */
#ifndef CONNECT_H
#define CONNECT_H

#include "owner.h"

/* Where to, and whence; a zero source leaves the choice as it is. */
struct path4 {
	__be32 to, from;
};

struct path6 {
	struct in6 to, from;
};

/* What listens on an address of this container. */
struct listener {
	bool found;
	bool wildcard;	    /* it asked for all addresses, and has the one looked up */
	__be32 peer4;	    /* of a connected UDP socket */
	struct in6 peer6;
};

/* Whether a socket has an address that was looked up, and not all, as one does whose
 * port the kernel chose. */
static __always_inline bool has(struct bpf_sock *sk, const struct bpf_sock_tuple *tuple, __u32 size)
{
	struct in6 local, to;

	if (size == sizeof(tuple->ipv4))
		return sk->src_ip4 == tuple->ipv4.daddr;
	local = local6(sk);
	__builtin_memcpy(&to, tuple->ipv6.daddr, sizeof(to));
	return same6(&local, &to);
}

static __always_inline struct listener find(struct bpf_sock_addr *ctx, struct bpf_sock_tuple *tuple, __u32 size)
{
	struct listener l = {};
	struct bpf_sock *sk;

	if (ctx->type == SOCK_STREAM)
		sk = bpf_sk_lookup_tcp(ctx, tuple, size, BPF_F_CURRENT_NETNS, 0);
	else
		sk = bpf_sk_lookup_udp(ctx, tuple, size, BPF_F_CURRENT_NETNS, 0);
	if (!sk)
		return l;
	l.found = true;
	l.wildcard = has(sk, tuple, size) && !(asked_for(sk, bpf_sk_storage_get(&sockets, sk, NULL, 0)) & NAMED);
	l.peer4 = sk->dst_ip4;
	l.peer6 = remote6(sk);
	bpf_sk_release(sk);
	return l;
}

/* from and sport matter to connected UDP sockets alone. */
static __always_inline struct listener find4(struct bpf_sock_addr *ctx, __be32 from, __be16 sport, __be32 to)
{
	struct bpf_sock_tuple tuple = {};

	tuple.ipv4.saddr = from;
	tuple.ipv4.sport = sport;
	tuple.ipv4.daddr = to;
	tuple.ipv4.dport = ctx->user_port;
	return find(ctx, &tuple, sizeof(tuple.ipv4));
}

static __always_inline struct listener find6(struct bpf_sock_addr *ctx, const struct in6 *from, __be16 sport, const struct in6 *to)
{
	struct bpf_sock_tuple tuple = {};

	__builtin_memcpy(tuple.ipv6.saddr, from, sizeof(*from));
	__builtin_memcpy(tuple.ipv6.daddr, to, sizeof(*to));
	tuple.ipv6.sport = sport;
	tuple.ipv6.dport = ctx->user_port;
	return find(ctx, &tuple, sizeof(tuple.ipv6));
}

/* Whether a path leads to the own loopback; sets the address to go to. -1 if it
 * leads to somebody else's. A server on all addresses has only one in truth: it
 * is asked there if none listens on the loopback address itself. */
static __always_inline int loop4(struct bpf_sock_addr *ctx, const struct face *f, __be32 *to)
{
	__be32 a = *to;

	if (!is_loop4(a) && a)
		return 0;
	if (own_loop4(f, a))
		return 1;
	if (a == RESOLVER)
		return 0;
	if (a && !named_loop4(a))
		return -1;
	a = a ? f->lo4 | (a & ~NET24) : first_loop4(f);
	*to = a;
	if (a != f->ip4 && !find4(ctx, 0, 0, a).found && find4(ctx, 0, 0, f->ip4).wildcard)
		*to = f->ip4;
	return 1;
}

/* The path of a connection; an error below zero. */
static __always_inline int route4(struct bpf_sock_addr *ctx, struct bpf_sock *sk, const struct face *f, struct path4 *path)
{
	__be32 have = sk->src_ip4;
	int loop;

	path->from = 0;
	if (ctx->protocol == IPPROTO_ICMP && named_loop4(path->to))
		return 0; /* the kernel itself answers */
	loop = loop4(ctx, f, &path->to);
	if (loop < 0)
		return -ENETUNREACH;
	if (!sk->src_port) {
		/* Not bound, or not any more: a failed attempt leaves its source. */
		if (!have || (own_loop4(f, have) && !loop))
			path->from = loop ? first_loop4(f) : f->ip4;
		return 0;
	}
	/* The kernel chose a port for all addresses, or bound a socket for ping. */
	if (have != f->ip4 && !own_loop4(f, have))
		return -EADDRNOTAVAIL;
	if (own_loop4(f, have) && !loop && path->to != f->ip4)
		return -EINVAL; /* as from 127.0.0.1 to elsewhere */
	return 0;
}

static __always_inline int loop6(struct bpf_sock_addr *ctx, const struct face *f, struct in6 *to)
{
	const struct in6 nobody = {};

	if (is_loop6(to))
		return same6(to, &f->lo6) ? 1 : -1;
	if (!one6(to) && !any6(to))
		return 0;
	*to = f->lo6;
	if (!same6(&f->lo6, &f->ip6) && !find6(ctx, &nobody, 0, &f->lo6).found && find6(ctx, &nobody, 0, &f->ip6).wildcard)
		*to = f->ip6;
	return 1;
}

static __always_inline int route6(struct bpf_sock_addr *ctx, struct bpf_sock *sk, const struct face *f, struct path6 *path)
{
	struct in6 have = local6(sk);
	int loop;

	path->from = (struct in6){};
	if (ctx->protocol == IPPROTO_ICMPV6 && one6(&path->to))
		return 0;
	loop = loop6(ctx, f, &path->to);
	if (loop < 0)
		return -ENETUNREACH;
	if (!sk->src_port) {
		if (any6(&have) || (same6(&have, &f->lo6) && !loop))
			path->from = loop ? f->lo6 : f->ip6;
		return 0;
	}
	if (!same6(&have, &f->ip6) && !same6(&have, &f->lo6))
		return mapped6(&have) ? -EAFNOSUPPORT : -EADDRNOTAVAIL;
	if (same6(&have, &f->lo6) && !loop && !same6(&path->to, &f->ip6) && !same6(&f->lo6, &f->ip6))
		return -EINVAL;
	return 0;
}

static __always_inline int bind_source4(struct bpf_sock_addr *ctx, __be32 from)
{
	struct sockaddr_in sa = {};

	sa.sin_family = AF_INET;
	sa.sin_addr.s_addr = from;
	return bpf_bind(ctx, (struct sockaddr *)&sa, sizeof(sa));
}

static __always_inline int bind_source6(struct bpf_sock_addr *ctx, const struct in6 *from)
{
	struct sockaddr_in6 sa = {};

	sa.sin6_family = AF_INET6;
	__builtin_memcpy(&sa.sin6_addr, from, sizeof(*from));
	return bpf_bind(ctx, (struct sockaddr *)&sa, sizeof(sa));
}

static __always_inline int own_connect4(struct bpf_sock_addr *ctx, struct bpf_sock *sk, struct subject *s)
{
	struct path4 path = {};
	int err = 0;

	path.to = ctx->user_ip4;
	err = route4(ctx, sk, s->face, &path);
	if (!err && path.from && ctx->family == AF_INET6) {
		struct in6 from = map4(path.from);

		err = bind_source6(ctx, &from);
	} else if (!err && path.from) {
		err = bind_source4(ctx, path.from);
	}
	if (err)
		return deny(s, CONNECT_DENIED, -err);
	ctx->user_ip4 = path.to;
	return 1;
}

SEC("cgroup/connect4")
int connect4(struct bpf_sock_addr *ctx) { return answer(ctx, own_connect4); }

static __always_inline int own_connect6(struct bpf_sock_addr *ctx, struct bpf_sock *sk, struct subject *s)
{
	struct path6 path = {};
	struct in6 have;
	int err = 0;

	path.to = user6(ctx);
	have = local6(sk);
	if (mapped6(&path.to) || (any6(&path.to) && mapped6(&have))) {
		struct path4 path4 = {.to = path.to.word[3]};

		err = route4(ctx, sk, s->face, &path4);
		path.to = map4(path4.to);
		if (path4.from)
			path.from = map4(path4.from);
	} else {
		err = route6(ctx, sk, s->face, &path);
	}
	if (!err && !any6(&path.from))
		err = bind_source6(ctx, &path.from);
	if (err)
		return deny(s, CONNECT_DENIED, -err);
	set_user6(ctx, &path.to);
	return 1;
}

SEC("cgroup/connect6")
int connect6(struct bpf_sock_addr *ctx) { return answer(ctx, own_connect6); }

#endif
