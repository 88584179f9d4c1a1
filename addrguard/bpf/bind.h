/* bind: the wildcard becomes the own address, a neighbour's does not exist. */
#ifndef BIND_H
#define BIND_H

#include "owner.h"

/* The address to bind in place of want; false if there is none. */
static __always_inline bool bindable4(const struct face *f, __be32 want, __be32 *to)
{
	*to = want;
	if (!want)
		*to = f->ip4;
	else if (named_loop4(want))
		*to = f->lo4 | (want & ~NET24);
	else
		return want == f->ip4 || own_loop4(f, want) || is_group4(want);
	return true;
}

/* Remembers whether a wildcard was asked for; false if there is no memory. */
static __always_inline bool note(struct bpf_sock_addr *ctx, struct bpf_sock *sk, struct subject *s, __u32 bound)
{
	if (!s->kept && flag_wildcard(ctx, sk, bound))
		return true;
	if (bound && !s->kept)
		s->kept = keep(sk, s);
	if (s->kept)
		s->kept->bound = bound;
	return s->kept || !bound;
}

static __always_inline int own_bind4(struct bpf_sock_addr *ctx, struct bpf_sock *sk, struct subject *s)
{
	__be32 want, to;

	want = ctx->user_ip4;
	if (!bindable4(s->face, want, &to))
		return deny(s, BIND_DENIED, EADDRNOTAVAIL);
	if (!note(ctx, sk, s, want ? 0 : WILDCARD))
		return 0;
	if (to != want) {
		ctx->user_ip4 = to;
		count_subject(s, BIND_REWRITTEN);
	}
	return 1;
}

SEC("cgroup/bind4")
int bind4(struct bpf_sock_addr *ctx) { return answer(ctx, own_bind4); }

/* bindable4 for IPv6; bound tells what kind of wildcard want was. */
static __always_inline bool bindable6(const struct face *f, struct in6 *a, bool v6only, __u32 *bound)
{
	*bound = 0;
	if (any6(a)) {
		*bound = WILDCARD;
		*a = v6only ? f->ip6 : map4(f->ip4);
		return true;
	}
	if (mapped6(a)) {
		if (!a->word[3])
			*bound = WILDCARD_MAPPED;
		return bindable4(f, a->word[3], &a->word[3]);
	}
	if (one6(a)) {
		*a = f->lo6;
		return true;
	}
	return same6(a, &f->ip6) || same6(a, &f->lo6) || is_group6(a);
}

static __always_inline int own_bind6(struct bpf_sock_addr *ctx, struct bpf_sock *sk, struct subject *s)
{
	struct in6 want, to;
	__u32 bound;

	want = user6(ctx);
	to = want;
	if (!bindable6(s->face, &to, any6(&want) && is_v6only(ctx, sk), &bound))
		return deny(s, BIND_DENIED, EADDRNOTAVAIL);
	if (!note(ctx, sk, s, bound))
		return 0;
	if (!same6(&to, &want)) {
		set_user6(ctx, &to);
		count_subject(s, BIND_REWRITTEN);
	}
	return 1;
}

SEC("cgroup/bind6")
int bind6(struct bpf_sock_addr *ctx) { return answer(ctx, own_bind6); }

#endif
