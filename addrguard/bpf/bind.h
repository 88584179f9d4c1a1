/* bind: the wildcard becomes the own address, a neighbour's does not exist. A group's
 * becomes one where nothing arrives: a program that insists on it goes on, and keeps
 * it from no other. */
#ifndef BIND_H
#define BIND_H

#include "owner.h"

/* What is put in place of an address to bind, and what the program asked for. */
struct place {
	struct in6 to; /* the last word, where it is IPv4 */
	__u32 bound;
};

/* Puts another address in place of one that cannot be bound as it is; false if there
 * is none. */
static __always_inline bool bindable4(struct bpf_sock_addr *ctx, const struct face *f, struct place *p, __u32 wildcard)
{
	__be32 want = p->to.word[3];

	if (!want) {
		p->bound = wildcard;
		p->to.word[3] = f->ip4;
		return true;
	}
	p->bound = NAMED;
	if (named_loop4(want)) {
		p->to.word[3] = f->lo4 | (want & ~NET24);
	} else if (want != f->ip4 && !own_loop4(f, want)) {
		if (!is_group4(want) || ctx->type != SOCK_DGRAM)
			return false;
		p->bound = wildcard | GROUP;
		p->to.word[3] = stand_in4(f, want);
	}
	return true;
}

/* Remembers what was asked for; false if it cannot. */
static __always_inline bool note(struct bpf_sock_addr *ctx, struct bpf_sock *sk, struct subject *s, __u32 bound)
{
	if (has_flags(ctx))
		return flag(ctx, sk, bound);
	if (bound && !s->kept)
		s->kept = keep(sk, s);
	if (s->kept)
		s->kept->bound = bound;
	return s->kept || !bound;
}

static __always_inline int own_bind4(struct bpf_sock_addr *ctx, struct bpf_sock *sk, struct subject *s)
{
	struct place p = {};
	__be32 want;

	want = ctx->user_ip4;
	p.to.word[3] = want;
	if (!bindable4(ctx, s->face, &p, 0))
		return deny(s, BIND_DENIED, EADDRNOTAVAIL);
	if (!note(ctx, sk, s, p.bound))
		return 0;
	if (p.to.word[3] != want) {
		ctx->user_ip4 = p.to.word[3];
		count_subject(s, BIND_REWRITTEN);
	}
	return 1;
}

SEC("cgroup/bind4")
int bind4(struct bpf_sock_addr *ctx) { return answer(ctx, own_bind4); }

static __always_inline bool bindable6(struct bpf_sock_addr *ctx, struct bpf_sock *sk, const struct face *f, struct place *p)
{
	struct in6 *a = &p->to;

	if (any6(a)) {
		*a = is_v6only(ctx, sk) ? f->ip6 : map4(f->ip4);
		return true;
	}
	if (mapped6(a))
		return bindable4(ctx, f, p, MAPPED_WILDCARD);
	p->bound = NAMED;
	if (one6(a)) {
		*a = f->lo6;
	} else if (!same6(a, &f->ip6) && !same6(a, &f->lo6)) {
		if (!is_group6(a) || ctx->type != SOCK_DGRAM)
			return false;
		p->bound = GROUP;
		*a = stand_in6(f, a);
	}
	return true;
}

static __always_inline int own_bind6(struct bpf_sock_addr *ctx, struct bpf_sock *sk, struct subject *s)
{
	struct place p = {};
	struct in6 want;

	want = user6(ctx);
	p.to = want;
	if (!bindable6(ctx, sk, s->face, &p))
		return deny(s, BIND_DENIED, EADDRNOTAVAIL);
	if (!note(ctx, sk, s, p.bound))
		return 0;
	if (!same6(&p.to, &want)) {
		set_user6(ctx, &p.to);
		count_subject(s, BIND_REWRITTEN);
	}
	return 1;
}

SEC("cgroup/bind6")
int bind6(struct bpf_sock_addr *ctx) { return answer(ctx, own_bind6); }

#endif
