/* The model of the guard: maps, and the question whose a socket is. */
#ifndef GUARD_H
#define GUARD_H

#include "kernel.h"

enum verdict {
	BIND_REWRITTEN,
	BIND_DENIED,
	CONNECT_DENIED,
	SOURCE_DENIED,
	SOCKET_DENIED,
	STRANGER_DENIED,
	EGRESS_DROPPED,
	INGRESS_DROPPED,
	UNIX_DENIED,
	STEERED,
	PING_REWRITTEN,
	VERDICTS,
};

enum { EXEMPT = 1, RAW_ALLOWED = 2, HAS_IPV4 = 4, HAS_IPV6 = 8 };

/* An IPv6 address in network byte order. */
struct in6 {
	__u32 word[4];
};

/* The addresses a container has, as the namespace knows them. Without an IPv4
 * (IPv6) address of its own a container's ip4 (ip6) is its private loopback. */
struct face {
	struct in6 ip6;
	struct in6 lo6; /* what it calls ::1 */
	__be32 ip4;
	__be32 lo4; /* what it calls 127.0.0.0/24: the /24's first address */
	__u32 flags;
	__u32 slot;
};

struct container {
	__u64 netns; /* cookie; 0 for any protected one */
	struct face face;
	__u64 counts[VERDICTS];
};

/* A protected namespace. */
struct network {
	__u8 id[64];
	__u32 uplink; /* ifindex behind which sources are rewritten; or 0 */
	__u32 pad[3];
};

/* What the program asked for when it bound a socket, where that was not the wildcard:
 * the own address stands for it, unless the program named that address itself, as few
 * do. MAPPED_WILDCARD is ::ffff:0.0.0.0. A group's address has a stand-in. FLAGS are what
 * a TCP socket can tell. */
enum { NAMED = 1, MAPPED_WILDCARD = 2, FLAGS = 3, GROUP = 4 };

/* What is kept with a socket. Those for datagrams have it from their making on,
 * which spares each datagram the search for its container. Those for connections
 * do without, as it would cost a connection more than it saves; but where the
 * kernel does not let us flag them (socket_flags), they have it when they are bound
 * to anything but the wildcard. */
struct owner {
	__u64 cgroup; /* key of its container */
	__u64 netns;
	struct face face;
	__u32 bound; /* GROUP is kept here alone */
	__u32 pad;
};

/* A bit for each depth below the root at which containers have been found. The
 * programs find out themselves: where the hierarchy is seen from a cgroup
 * namespace, user space does not know how deep that is. */
#define MAX_DEPTH 24

/* Who a packet of a datagram's socket is from. The socket is marked with the lower
 * half of its container's key, which is unique among the cgroups of a host, and
 * packets keep the mark until they leave the namespace, on their way over lo too. */
struct sender {
	__u64 cgroup;
	struct face face;
};

/* What a v6 address leads to where nothing listens on it. */
struct steer_key {
	__u64 netns;
	struct in6 ip6;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, __u64); /* namespace cookie */
	__type(value, struct network);
} networks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, __u64); /* cgroup id */
	__type(value, struct container);
} containers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, __u32); /* mark */
	__type(value, struct sender);
} senders SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 131072);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, struct steer_key);
	__type(value, __be32);
} steers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, int);
	__type(value, struct owner);
} sockets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, __u32);
	__type(value, __u32);
} depths SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, VERDICTS);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, enum verdict);
	__type(value, __u64);
} totals SEC(".maps");

/* Set before loading. */
const volatile struct in6 loopback6; /* network of all lo6; the slot is its last word */

static __always_inline void count_total(enum verdict verdict)
{
	__u64 *total = bpf_map_lookup_elem(&totals, &verdict);

	if (total)
		(*total)++;
}

static __always_inline void count(struct container *c, enum verdict verdict)
{
	if (c)
		__sync_fetch_and_add(&c->counts[verdict], 1);
	count_total(verdict);
}

static __always_inline void count_for(__u64 cgroup, enum verdict verdict)
{
	count(bpf_map_lookup_elem(&containers, &cgroup), verdict);
}

/* The entry of a cgroup, if it is for the namespace with the given cookie; 0 is
 * any. */
static __always_inline struct container *entry(__u64 cgroup, __u64 netns)
{
	struct container *c = bpf_map_lookup_elem(&containers, &cgroup);

	return c && (c->netns == netns || !c->netns || !netns) ? c : NULL;
}

/* Runs find, which may use level, for each depth until it gives an entry: first
 * for those where there are containers, then, if learn, for all others. */
#define SEARCH(found, learn, find)                                                \
	({                                                                        \
		__u32 *seen = bpf_map_lookup_elem(&depths, &(__u32){0});          \
		__u32 known = seen ? *seen : 0;                                   \
		found = NULL;                                                     \
		for (int level = 1; !found && level <= MAX_DEPTH; level++)        \
			if (known & (1U << level))                                \
				found = find;                                     \
		for (int level = 1; learn && !found && level <= MAX_DEPTH; level++) { \
			if (known & (1U << level))                                \
				continue;                                         \
			found = find;                                             \
			if (found && seen)                                        \
				__sync_fetch_and_or(seen, 1U << level);           \
		}                                                                 \
	})

/* The container of the running task. */
static __always_inline struct container *container_of_task(__u64 netns, __u64 *cgroup)
{
	struct container *c;

	SEARCH(c, true, ({
		       *cgroup = bpf_get_current_ancestor_cgroup_id(level);
		       *cgroup ? entry(*cgroup, netns) : NULL;
	       }));
	return c;
}

/* What the program asked for when it bound a socket. A TCP socket tells it by two of
 * its own flags, since to keep more with it would cost two thirds of what bind does.
 * They are those by which programs at socket operations (BPF_PROG_TYPE_SOCK_OPS) ask
 * to hear of timeouts, which a listener has not. */
static __always_inline __u32 asked_for(struct bpf_sock *sk, const struct owner *o)
{
	struct tcp_sock *tcp;

	if (o)
		return o->bound;
	tcp = bpf_skc_to_tcp_sock(sk);
	return tcp ? tcp->bpf_sock_ops_cb_flags & FLAGS : 0;
}

/* Addresses. */

#define NET24 bpf_htonl(0xffffff00)
#define LOOP24 bpf_htonl(0x7f000000)
#define RESOLVER bpf_htonl(0x7f00000b) /* Docker's; must fail as if nobody were there */
#define MAPPED bpf_htonl(0xffff)

static __always_inline bool is_loop4(__be32 a)
{
	return (a & bpf_htonl(0xff000000)) == LOOP24;
}

/* An address of many: a multicast group, or everybody. */
static __always_inline bool is_group4(__be32 a)
{
	return (a & bpf_htonl(0xf0000000)) == bpf_htonl(0xe0000000) || a == 0xffffffff;
}

static __always_inline bool own_loop4(const struct face *f, __be32 a)
{
	return (a & NET24) == f->lo4;
}

/* What programs call 127.0.0.0/24, but for the resolver's address. */
static __always_inline bool named_loop4(__be32 a)
{
	return (a & NET24) == LOOP24 && a != RESOLVER;
}

static __always_inline __be32 first_loop4(const struct face *f)
{
	return f->lo4 | bpf_htonl(1);
}

/* What a container has in place of a group's address, since the namespace has only
 * one of each: one of the upper half of its loopback, at which groups that use one
 * port hardly meet. */
static __always_inline __be32 stand_in4(const struct face *f, __be32 group)
{
	__u32 n = bpf_ntohl(group);

	n ^= n >> 8;
	return f->lo4 | bpf_htonl(128 | (n & 127));
}

static __always_inline bool same6(const struct in6 *a, const struct in6 *b)
{
	return a->word[3] == b->word[3] && a->word[0] == b->word[0] && a->word[1] == b->word[1] && a->word[2] == b->word[2];
}

static __always_inline bool any6(const struct in6 *a)
{
	return !(a->word[0] | a->word[1] | a->word[2] | a->word[3]);
}

static __always_inline bool one6(const struct in6 *a)
{
	return !(a->word[0] | a->word[1] | a->word[2]) && a->word[3] == bpf_htonl(1);
}

static __always_inline bool mapped6(const struct in6 *a)
{
	return !(a->word[0] | a->word[1]) && a->word[2] == MAPPED;
}

static __always_inline bool is_group6(const struct in6 *a)
{
	return (a->word[0] & bpf_htonl(0xff000000)) == bpf_htonl(0xff000000);
}

/* stand_in4 for IPv6. The slot of a loopback address takes the lower half of its
 * last word, so that the rest is the container's, too. */
static __always_inline struct in6 stand_in6(const struct face *f, const struct in6 *group)
{
	__u32 n = bpf_ntohl(group->word[0] ^ group->word[1] ^ group->word[2] ^ group->word[3]);
	struct in6 a = f->lo6;

	n ^= n >> 16;
	a.word[3] |= bpf_htonl((n << 16) | 0x80000000);
	return a;
}

/* The private loopback of any container. */
static __always_inline bool is_loop6(const struct in6 *a)
{
	return a->word[0] == loopback6.word[0] && a->word[1] == loopback6.word[1] && a->word[2] == loopback6.word[2];
}

#endif
