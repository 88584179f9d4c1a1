/* sendmsg and recvmsg of UDP sockets that are not connected, and sendmsg of
 * connected ones with ancillary data, which may name a source. */
#ifndef SENDMSG_H
#define SENDMSG_H

#include "connect.h"

/* A datagram to the own loopback. The peer may be a socket on that address, one
 * on all addresses (which is at ip4), or one connected to us: it hears us only
 * from the address it is connected to. fixed says that the program chose the
 * source. */
static __always_inline void loop_datagram4(struct bpf_sock_addr *ctx, struct bpf_sock *sk, const struct face *f, bool fixed,
					   struct path4 *path)
{
	struct listener l = find4(ctx, f->ip4, bpf_htons(sk->src_port), path->to);

	if (!fixed)
		path->from = l.found && l.peer4 == f->ip4 ? f->ip4 : first_loop4(f);
	if (!l.found && path->to != f->ip4 && find4(ctx, 0, 0, f->ip4).wildcard)
		path->to = f->ip4;
}

/* Whether a socket has an address that stands for a group's, which is not for sending. */
static __always_inline bool stands_in(const struct subject *s) { return s->kept && s->kept->bound & GROUP; }

/* Whether a datagram goes where its socket is connected to: the hook is given no
 * address then, and the kernel has refused port 0 of any other. */
static __always_inline bool is_connected(struct bpf_sock_addr *ctx) { return !ctx->user_port; }

/* Whether a socket's address stands for the wildcard, so that a datagram from there has
 * a source that the program has not chosen. */
static __always_inline bool is_open(struct bpf_sock *sk, const struct subject *s)
{
	return s->kept && !(s->kept->bound & NAMED) && !sk->dst_port;
}

/* Gives a datagram its destination and its source; an error below zero. have is
 * the source so far: the socket's, or what the program asks for. */
static __always_inline int datagram4(struct bpf_sock_addr *ctx, struct bpf_sock *sk, const struct subject *s, __be32 have,
				     struct path4 *path)
{
	const struct face *f = s->face;
	bool fixed = have && !(have == f->ip4 && sk->src_ip4 == have && is_open(sk, s));
	__be32 to = path->to;

	if (named_loop4(have))
		have = f->lo4 | (have & ~NET24);
	if (have && have != f->ip4 && !own_loop4(f, have))
		return -EADDRNOTAVAIL;
	path->from = have ? have : f->ip4;
	if (own_loop4(f, path->from) && stands_in(s)) {
		path->from = f->ip4;
		fixed = false;
	}
	if (to && !is_loop4(to)) {
		if (own_loop4(f, path->from) && to != f->ip4)
			return f->flags & HAS_IPV4 ? -EINVAL : -ENETUNREACH;
		return 0;
	}
	if (to == RESOLVER)
		return 0;
	if (to && !named_loop4(to) && !own_loop4(f, to))
		return -ENETUNREACH;
	path->to = to ? f->lo4 | (to & ~NET24) : first_loop4(f);
	loop_datagram4(ctx, sk, f, fixed, path);
	return 0;
}

static __always_inline int own_sendmsg4(struct bpf_sock_addr *ctx, struct bpf_sock *sk, struct subject *s)
{
	struct path4 path = {};
	__be32 have;
	int err;

	path.to = ctx->user_ip4;
	have = ctx->msg_src_ip4;
	if (is_connected(ctx)) {
		path.to = sk->dst_ip4;
		have = have ? have : sk->src_ip4;
	}
	err = datagram4(ctx, sk, s, have, &path);
	if (err)
		return deny(s, SOURCE_DENIED, -err);
	ctx->user_ip4 = path.to;
	ctx->msg_src_ip4 = path.from;
	return 1;
}

SEC("cgroup/sendmsg4")
int sendmsg4(struct bpf_sock_addr *ctx) { return answer(ctx, own_sendmsg4); }

static __always_inline void loop_datagram6(struct bpf_sock_addr *ctx, struct bpf_sock *sk, const struct face *f, bool fixed,
					   struct path6 *path)
{
	const struct in6 nobody = {};
	struct listener l;

	path->to = f->lo6;
	if (!fixed)
		path->from = f->lo6;
	if (same6(&f->lo6, &f->ip6))
		return; /* one address for all */
	l = find6(ctx, &f->ip6, bpf_htons(sk->src_port), &f->lo6);
	if (!fixed && l.found && same6(&l.peer6, &f->ip6))
		path->from = f->ip6;
	if (!l.found && find6(ctx, &nobody, 0, &f->ip6).wildcard)
		path->to = f->ip6;
}

static __always_inline int datagram6(struct bpf_sock_addr *ctx, struct bpf_sock *sk, const struct subject *s, struct in6 have,
				     struct path6 *path)
{
	const struct face *f = s->face;
	struct in6 local = local6(sk);
	bool open = is_open(sk, s) && same6(&have, &local), fixed;

	if (one6(&have))
		have = f->lo6;
	if (mapped6(&have) && open)
		have = (struct in6){}; /* a server of both families */
	fixed = !any6(&have) && !(open && same6(&have, &f->ip6));
	if (!any6(&have) && !same6(&have, &f->ip6) && !same6(&have, &f->lo6)) {
		if (!stands_in(s))
			return -EADDRNOTAVAIL;
		fixed = false;
		have = (struct in6){};
	}
	path->from = any6(&have) ? f->ip6 : have;
	if (is_loop6(&path->to) && !same6(&path->to, &f->lo6))
		return -ENETUNREACH;
	if (one6(&path->to) || any6(&path->to) || same6(&path->to, &f->lo6)) {
		loop_datagram6(ctx, sk, f, fixed, path);
		return 0;
	}
	if (same6(&path->from, &f->lo6) && !same6(&path->to, &f->ip6))
		return f->flags & HAS_IPV6 ? -EINVAL : -ENETUNREACH;
	return 0;
}

static __always_inline int own_sendmsg6(struct bpf_sock_addr *ctx, struct bpf_sock *sk, struct subject *s)
{
	struct path6 path = {};
	struct in6 have;
	int err;

	path.to = user6(ctx);
	have = (struct in6){{ctx->msg_src_ip6[0], ctx->msg_src_ip6[1], ctx->msg_src_ip6[2], ctx->msg_src_ip6[3]}};
	if (is_connected(ctx))
		path.to = remote6(sk);
	err = datagram6(ctx, sk, s, have, &path);
	if (err)
		return deny(s, SOURCE_DENIED, -err);
	set_user6(ctx, &path.to);
	ctx->msg_src_ip6[0] = path.from.word[0];
	ctx->msg_src_ip6[1] = path.from.word[1];
	ctx->msg_src_ip6[2] = path.from.word[2];
	ctx->msg_src_ip6[3] = path.from.word[3];
	return 1;
}

SEC("cgroup/sendmsg6")
int sendmsg6(struct bpf_sock_addr *ctx) { return answer(ctx, own_sendmsg6); }

#endif
