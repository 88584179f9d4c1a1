/* Abstract unix sockets, whose names all containers of a namespace share. There is
 * a hook before a name is looked up (Linux 6.7), but none that knows what was
 * found, and none at bind: so the program looks the name up itself, in the
 * kernel's own table.
 */
#include "maker.h"

/* The longest address: the family, and a name of 108 bytes. */
#define ADDRESS 110
#define WORDS 14

/* Half the table (UNIX_HASH_MOD of net/af_unix.h): one half for sockets without a
 * name, one for abstract names. */
#define BUCKETS 256

/* A walk longer than this ends as if the name were nobody's. */
#define LONGEST 65536

/* Keeps the compiler from testing another register than the one that is used, or
 * from reading memory again: the verifier of Linux 6.12 knows a bound no more then. */
#define as_tested(x) asm volatile("" : "+r"(x))

struct search {
	struct hlist_node *node;  /* next to look at */
	struct sock *found;
	__u64 want[WORDS], have[WORDS];
	__u32 len;
	__u32 type;
};

/* Looks at one socket of a bucket; 1 ends the walk. */
static long look(__u32 index, struct search *s)
{
	struct hlist_node *node = s->node;
	struct sock *sk = (void *)node - bpf_core_field_offset(struct sock_common, skc_node);
	struct unix_address *addr;
	__u32 len = s->len;
	int i;

	if (!node)
		return 1;
	s->node = BPF_CORE_READ(node, next);
	addr = BPF_CORE_READ((struct unix_sock *)sk, addr);
	if (!addr || BPF_CORE_READ(addr, len) != len || BPF_CORE_READ(sk, sk_type) != s->type)
		return 0;
	for (i = 0; i < WORDS; i++)
		s->have[i] = 0;
	as_tested(len);
	if (len > ADDRESS)
		return 0;
	as_tested(len);
	if (bpf_probe_read_kernel(s->have, len, (void *)addr + bpf_core_field_offset(struct unix_address, name)))
		return 0;
	for (i = 0; i < WORDS; i++)
		if (s->have[i] != s->want[i])
			return 0;
	s->found = sk;
	return 1;
}

/* unix_abstract_hash of net/unix/af_unix.c: the Internet checksum (RFC 1071). */
static __always_inline __u32 bucket_of(const struct search *s)
{
	__u32 sum = 0, hash;

	for (int i = 0; i < WORDS; i++) {
		__u64 w = s->want[i];

		sum += (w & 0xffff) + (w >> 16 & 0xffff) + (w >> 32 & 0xffff) + (w >> 48);
	}
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	hash = ~sum & 0xffff;
	hash ^= hash >> 8;
	hash ^= s->type;
	return hash & (BUCKETS - 1);
}

/* In a namespace of its own a container would not find another's name. */
static __always_inline int reach(struct bpf_sock_addr *ctx)
{
	__u64 netns = bpf_get_netns_cookie(ctx), id = 0, peer;
	struct bpf_sock_addr_kern *kernel;
	struct search s = {};
	void *buckets;
	__u32 bucket, len;
	struct container *c;
	struct sock *sk;

	if (!bpf_map_lookup_elem(&networks, &netns))
		return 1;
	kernel = bpf_cast_to_kern_ctx(ctx);
	len = s.len = kernel->uaddrlen;
	s.type = ctx->type;
	if (len <= sizeof(__u16))
		return 1; /* no name */
	as_tested(len);
	if (len > ADDRESS)
		return 1; /* the kernel refuses it */
	as_tested(len);
	if (bpf_probe_read_kernel(s.want, len, kernel->uaddr))
		return 0;
	if (((char *)s.want)[sizeof(__u16)])
		return 1; /* a file */
	c = container_of_task(netns, &id);
	if (!c) {
		count_total(STRANGER_DENIED);
		return 0;
	}
	if (c->face.flags & EXEMPT)
		return 1;
	sk = kernel->sk;
	buckets = BPF_CORE_READ(sk, __sk_common.skc_net.net, unx.table.buckets);
	bucket = bucket_of(&s);
	for (int half = 0; half < 2 && !s.found; half++) {
		/* An hlist_head is a pointer to the first. */
		void *head = buckets + (bucket + half * BUCKETS) * sizeof(s.node);

		if (!bpf_probe_read_kernel(&s.node, sizeof(s.node), head))
			bpf_loop(LONGEST, look, &s, 0);
	}
	if (s.found) {
		c = container_of_socket(s.found, netns, &peer);
		if (c && (peer == id || c->face.flags & EXEMPT))
			return 1;
		count_for(id, UNIX_DENIED);
	}
	bpf_set_retval(-ECONNREFUSED);
	return 0;
}

SEC("cgroup/connect_unix")
int unix_connect(struct bpf_sock_addr *ctx) { return reach(ctx); }

SEC("cgroup/sendmsg_unix")
int unix_sendmsg(struct bpf_sock_addr *ctx) { return reach(ctx); }

char _license[] SEC("license") = "GPL";
