/* Whose the socket of a hook is. */
#ifndef OWNER_H
#define OWNER_H

#include "guard.h"

/* Whose a socket is to a hook, and what the hook answers if it is not a
 * container's: no to a stranger, which is a process in a protected namespace that
 * nobody admitted, and yes to who is outside. */
enum standing { STRANGER, OUTSIDE, OWNED };

/* Whose a socket is: face and cgroup are its container's. Either what is kept with
 * the socket told so, or the container's entry. */
struct subject {
	const struct face *face;
	struct owner *kept;
	struct container *entry;
	__u64 cgroup, netns;
};

/* Set before loading: whether programs can change flags of TCP sockets (Linux 6.12). */
const volatile bool socket_flags;

/* Whether a socket has its flags to tell what it was bound to, and nothing is kept with
 * it. */
static __always_inline bool has_flags(struct bpf_sock_addr *ctx) { return socket_flags && ctx->protocol == IPPROTO_TCP; }

/* What is to be kept with a socket; NULL if there is no memory. */
static __always_inline struct owner *keep(void *sk, const struct subject *s)
{
	struct owner *o = bpf_sk_storage_get(&sockets, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);

	if (o && !o->cgroup) {
		o->face = *s->face;
		o->netns = s->netns;
		o->cgroup = s->cgroup;
	}
	return o;
}

/* The subject is the running task. */
static __always_inline enum standing task_subject(void *ctx, struct subject *s)
{
	struct container *c;

	s->netns = bpf_get_netns_cookie(ctx);
	if (!bpf_map_lookup_elem(&networks, &s->netns))
		return OUTSIDE;
	c = container_of_task(s->netns, &s->cgroup);
	if (!c) {
		count_total(STRANGER_DENIED);
		return STRANGER;
	}
	s->entry = c;
	s->face = &c->face;
	return c->face.flags & EXEMPT ? OUTSIDE : OWNED;
}

static __always_inline enum standing kept_subject(struct owner *o, struct subject *s)
{
	s->kept = o;
	s->face = &o->face;
	s->cgroup = o->cgroup;
	s->netns = o->netns;
	return o->face.flags & EXEMPT ? OUTSIDE : OWNED;
}

/* The subject that a socket's hook is about. */
static __always_inline enum standing subject_of(struct bpf_sock_addr *ctx, struct bpf_sock *sk, struct subject *s)
{
	struct owner *o = NULL;

	if (!has_flags(ctx))
		o = bpf_sk_storage_get(&sockets, sk, NULL, 0);
	return o ? kept_subject(o, s) : task_subject(ctx, s);
}

/* What a hook answers about a container's socket; others have their answers. */
typedef int (*hook)(struct bpf_sock_addr *ctx, struct bpf_sock *sk, struct subject *s);

static __always_inline int answer(struct bpf_sock_addr *ctx, hook own)
{
	struct bpf_sock *sk = ctx->sk;
	struct subject s = {};
	enum standing who = subject_of(ctx, sk, &s);

	return who == OWNED ? own(ctx, sk, &s) : who;
}

static __always_inline void count_subject(const struct subject *s, enum verdict verdict)
{
	if (s->entry)
		count(s->entry, verdict);
	else
		count_for(s->cgroup, verdict);
}

/* Hooks answer 1 for yes; 0 for no, with an error. */
static __always_inline int deny(const struct subject *s, enum verdict verdict, int error)
{
	count_subject(s, verdict);
	bpf_set_retval(-error);
	return 0;
}

/* Makes a TCP socket tell what asked_for asks. */
static __always_inline bool flag(struct bpf_sock_addr *ctx, struct bpf_sock *sk, __u32 bound)
{
	struct tcp_sock *tcp = bpf_skc_to_tcp_sock(sk);
	int had, flags;

	if (!tcp)
		return false;
	had = tcp->bpf_sock_ops_cb_flags;
	flags = (had & ~FLAGS) | bound;
	return flags == had || !bpf_setsockopt(ctx, SOL_TCP, SOCKET_FLAGS, &flags, sizeof(flags));
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

/* The fields are read one by one, as the verifier wants it, not copied at once. */
static __always_inline struct in6 local6(volatile struct bpf_sock *sk)
{
	return (struct in6){{sk->src_ip6[0], sk->src_ip6[1], sk->src_ip6[2], sk->src_ip6[3]}};
}

static __always_inline struct in6 remote6(volatile struct bpf_sock *sk)
{
	return (struct in6){{sk->dst_ip6[0], sk->dst_ip6[1], sk->dst_ip6[2], sk->dst_ip6[3]}};
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
