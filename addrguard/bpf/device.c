/* The programs attached to devices of a protected namespace: lo, the overlay's and
 * those that lead to containers with a namespace of their own (tcx, Linux 6.6). */
#include "maker.h"
#include "source.h"

#define ETH_HLEN 14
enum { TCX_NEXT = -1, TCX_DROP = 2 };
#define NEXT_FRAGMENT 44

/* Sets the source of an IPv4 packet, which the checksum of ICMP leaves out. */
static __always_inline int resource4(struct __sk_buff *skb, __be32 from, __be32 to)
{
	int err = bpf_l3_csum_replace(skb, ETH_HLEN + offsetof(struct ipv4, check), from, to, sizeof(to));

	return err ? err : bpf_skb_store_bytes(skb, ETH_HLEN + offsetof(struct ipv4, saddr), &to, sizeof(to), 0);
}

/* Where the checksum of an ICMPv6 message is; 0 in a later fragment. */
static __always_inline __u32 icmp6_checksum(struct __sk_buff *skb, __u8 next, bool *icmp)
{
	__u32 at = ETH_HLEN + sizeof(struct ipv6);
	struct {
		__u8 next, reserved;
		__be16 offset;
		__be32 id;
	} fragment;

	*icmp = next == IPPROTO_ICMPV6;
	if (next != NEXT_FRAGMENT)
		return at + 2;
	if (bpf_skb_load_bytes(skb, at, &fragment, sizeof(fragment)))
		return 0;
	*icmp = fragment.next == IPPROTO_ICMPV6;
	return fragment.offset & bpf_htons(0xfff8) ? 0 : at + sizeof(fragment) + 2;
}

static __always_inline int resource6(struct __sk_buff *skb, __u32 checksum, struct in6 *from, struct in6 *to)
{
	__s64 diff = bpf_csum_diff(from->word, sizeof(*from), to->word, sizeof(*to), 0);
	int err = checksum ? bpf_l4_csum_replace(skb, checksum, 0, diff, BPF_F_PSEUDO_HDR) : 0;

	return err ? err : bpf_skb_store_bytes(skb, ETH_HLEN + offsetof(struct ipv6, saddr), to, sizeof(*to), 0);
}

/* Whether a packet may go on. The source of an echo request is set right: a socket
 * for ping that is not connected passes no hook that could choose it, and the
 * kernel takes the destination's, or any. */
static __always_inline bool passes4(struct __sk_buff *skb, const struct sender *s)
{
	const struct face *f = &s->face;
	struct ipv4 ip;

	if (bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)))
		return false;
	if (own_source4(f, &ip) || named_echo4(&ip))
		return true;
	if (ip.protocol != IPPROTO_ICMP || !is_one4(ip.daddr) || resource4(skb, ip.saddr, f->ip4))
		return false;
	count_for(s->cgroup, PING_REWRITTEN);
	return true;
}

static __always_inline bool passes6(struct __sk_buff *skb, const struct sender *s)
{
	const struct face *f = &s->face;
	struct in6 own = f->ip6;
	__u32 checksum;
	struct ipv6 ip;
	bool icmp;

	if (bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)))
		return false;
	if (own_source6(f, &ip))
		return true;
	checksum = icmp6_checksum(skb, ip.next, &icmp);
	if (named_echo6(&ip.saddr, &ip.daddr, icmp))
		return true;
	if (!icmp || !is_one6(&ip.daddr) || resource6(skb, checksum, &ip.saddr, &own))
		return false;
	count_for(s->cgroup, PING_REWRITTEN);
	return true;
}

/* The common case. What the others take is apart, and costs it nothing. */
static __always_inline bool is_plain(struct __sk_buff *skb, const struct face *f)
{
	struct ipv4 *ip = (void *)(long)skb->data + ETH_HLEN;

	return skb->protocol == bpf_htons(ETH_P_IP) && (void *)(ip + 1) <= (void *)(long)skb->data_end && ip->saddr == f->ip4 &&
	       is_plain4(ip->daddr);
}

static __noinline bool examine(struct __sk_buff *skb, const struct sender *s)
{
	if (skb->protocol == bpf_htons(ETH_P_IP) ? passes4(skb, s) : passes6(skb, s))
		return true;
	count_for(s->cgroup, EGRESS_DROPPED);
	return false;
}

/* Whether a packet comes from its container's address. Those without a mark are of
 * the kernel's own sockets, of connections, and of who is no container. */
static __always_inline bool passes(struct __sk_buff *skb)
{
	__u32 mark = skb->mark;
	struct sender *s;

	if (!mark)
		return true;
	s = bpf_map_lookup_elem(&senders, &mark);
	if (s)
		return is_plain(skb, &s->face) || examine(skb, s);
	count_total(EGRESS_DROPPED); /* its container was expelled */
	return false;
}

/* On all devices that lead to others but the uplink, behind which sources are
 * rewritten. What goes over lo is seen where it comes in. */
SEC("tcx/egress")
int ping(struct __sk_buff *skb)
{
	if (!passes(skb))
		return TCX_DROP;
	skb->mark = 0; /* means nothing elsewhere */
	return TCX_NEXT;
}

/* Whether a socket gets the packet as it is. */
static __always_inline bool is_met(struct __sk_buff *skb, bool stream, struct bpf_sock_tuple *tuple)
{
	struct bpf_sock *sk;

	if (stream) {
		sk = bpf_skc_lookup_tcp(skb, tuple, sizeof(tuple->ipv6), BPF_F_CURRENT_NETNS, 0);
		if (sk)
			bpf_sk_release(sk);
		return sk;
	}
	sk = bpf_sk_lookup_udp(skb, tuple, sizeof(tuple->ipv6), BPF_F_CURRENT_NETNS, 0);
	if (sk)
		bpf_sk_release(sk);
	return sk;
}

static __always_inline void count_steered(struct bpf_sock *sk, const struct owner *o, __u64 netns)
{
	struct sock *listener = (struct sock *)bpf_skc_to_tcp_sock(sk);
	__u64 cgroup;

	if (o)
		count_for(o->cgroup, STEERED);
	else
		count(listener ? container_of_socket(listener, netns, &cgroup) : NULL, STEERED);
}

/* bpf_get_netns_cookie asks the packet's socket, which it does not have yet. */
static __always_inline __u64 netns_of_device(struct __sk_buff *skb)
{
	struct sk_buff *kernel = bpf_cast_to_kern_ctx(skb);

	return BPF_CORE_READ(kernel, dev, nd_net.net, net_cookie);
}

/* A socket for both families is bound to the container's IPv4 address. What comes
 * for the IPv6 address is handed to it. */
static __noinline int hand_over(struct __sk_buff *skb)
{
	struct bpf_sock_tuple tuple = {}, face = {};
	struct steer_key key = {};
	__u32 at = ETH_HLEN + sizeof(struct ipv6);
	struct bpf_sock *sk;
	struct ipv6 ip;
	struct owner *o;
	bool stream;
	__be32 *ip4;

	if (bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)))
		return 0;
	if (ip.next != IPPROTO_TCP && ip.next != IPPROTO_UDP)
		return 0;
	stream = ip.next == IPPROTO_TCP;
	key.netns = netns_of_device(skb);
	key.ip6 = ip.daddr;
	ip4 = bpf_map_lookup_elem(&steers, &key);
	if (!ip4)
		return 0;
	__builtin_memcpy(tuple.ipv6.saddr, &ip.saddr, sizeof(ip.saddr));
	__builtin_memcpy(tuple.ipv6.daddr, &ip.daddr, sizeof(ip.daddr));
	if (bpf_skb_load_bytes(skb, at, &tuple.ipv6.sport, 4) || is_met(skb, stream, &tuple))
		return 0;
	face.ipv4.daddr = *ip4;
	face.ipv4.dport = tuple.ipv6.dport;
	if (stream)
		sk = bpf_sk_lookup_tcp(skb, &face, sizeof(face.ipv4), BPF_F_CURRENT_NETNS, 0);
	else
		sk = bpf_sk_lookup_udp(skb, &face, sizeof(face.ipv4), BPF_F_CURRENT_NETNS, 0);
	if (!sk)
		return 0;
	o = bpf_sk_storage_get(&sockets, sk, NULL, 0);
	if (!asked_for(sk, o) && sk->src_ip4 == *ip4 && sk->family == AF_INET6 && !bpf_sk_assign(skb, sk, 0))
		count_steered(sk, o, key.netns);
	bpf_sk_release(sk);
	return 0;
}

/* The mark tells who has sent a packet over lo; elsewhere none arrives with one. */
SEC("tcx/ingress")
int steer(struct __sk_buff *skb)
{
	if (!passes(skb))
		return TCX_DROP;
	if (skb->protocol == bpf_htons(ETH_P_IPV6))
		hand_over(skb);
	return TCX_NEXT;
}

char _license[] SEC("license") = "GPL";
