/* The programs attached to devices of a protected namespace: lo and the overlay's
 * (tcx, Linux 6.6). */
#include "maker.h"
#include "packet.h"

#define ETH_HLEN 14
#define TCX_NEXT -1
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

static __always_inline bool mend4(struct __sk_buff *skb, const struct face *f)
{
	struct ipv4 ip;

	if (bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)) || ip.protocol != IPPROTO_ICMP)
		return false;
	if (ip.saddr == f->ip4 || (named_loop4(ip.saddr) && named_loop4(ip.daddr)))
		return false;
	if (own_loop4(f, ip.saddr) && (ip.daddr == f->ip4 || own_loop4(f, ip.daddr)))
		return false;
	return !resource4(skb, ip.saddr, f->ip4);
}

static __always_inline bool mend6(struct __sk_buff *skb, const struct face *f)
{
	struct in6 own = f->ip6;
	__u32 checksum;
	struct ipv6 ip;
	bool icmp;

	if (bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)))
		return false;
	checksum = icmp6_checksum(skb, ip.next, &icmp);
	if (!icmp || same6(&ip.saddr, &own) || (one6(&ip.saddr) && one6(&ip.daddr)))
		return false;
	if (same6(&ip.saddr, &f->lo6) && (same6(&ip.daddr, &own) || same6(&ip.daddr, &f->lo6)))
		return false;
	return !resource6(skb, checksum, &ip.saddr, &own);
}

/* An echo request of a socket that is not connected passes no hook that could
 * choose its source: the kernel takes the destination's, or any. */
SEC("tcx/egress")
int ping(struct __sk_buff *skb)
{
	struct bpf_sock *sk = skb->sk;
	bool mended = false;
	struct owner *o;

	if (!sk)
		return TCX_NEXT;
	o = bpf_sk_storage_get(&sockets, sk, NULL, 0);
	if (!o || o->face.flags & EXEMPT)
		return TCX_NEXT;
	if (skb->protocol == bpf_htons(ETH_P_IP))
		mended = mend4(skb, &o->face);
	else if (skb->protocol == bpf_htons(ETH_P_IPV6))
		mended = mend6(skb, &o->face);
	if (mended)
		count_for(o->cgroup, PING_REWRITTEN);
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
SEC("tcx/ingress")
int steer(struct __sk_buff *skb)
{
	struct bpf_sock_tuple tuple = {}, face = {};
	struct steer_key key = {};
	__u32 at = ETH_HLEN + sizeof(struct ipv6);
	struct bpf_sock *sk;
	struct ipv6 ip;
	struct owner *o;
	bool stream;
	__be32 *ip4;

	if (skb->protocol != bpf_htons(ETH_P_IPV6) || bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)))
		return TCX_NEXT;
	if (ip.next != IPPROTO_TCP && ip.next != IPPROTO_UDP)
		return TCX_NEXT;
	stream = ip.next == IPPROTO_TCP;
	key.netns = netns_of_device(skb);
	key.ip6 = ip.daddr;
	ip4 = bpf_map_lookup_elem(&steers, &key);
	if (!ip4)
		return TCX_NEXT;
	__builtin_memcpy(tuple.ipv6.saddr, &ip.saddr, sizeof(ip.saddr));
	__builtin_memcpy(tuple.ipv6.daddr, &ip.daddr, sizeof(ip.daddr));
	if (bpf_skb_load_bytes(skb, at, &tuple.ipv6.sport, 4) || is_met(skb, stream, &tuple))
		return TCX_NEXT;
	face.ipv4.daddr = *ip4;
	face.ipv4.dport = tuple.ipv6.dport;
	if (stream)
		sk = bpf_sk_lookup_tcp(skb, &face, sizeof(face.ipv4), BPF_F_CURRENT_NETNS, 0);
	else
		sk = bpf_sk_lookup_udp(skb, &face, sizeof(face.ipv4), BPF_F_CURRENT_NETNS, 0);
	if (!sk)
		return TCX_NEXT;
	o = bpf_sk_storage_get(&sockets, sk, NULL, 0);
	if (wildcard_of(sk, o) == WILDCARD && sk->family == AF_INET6 && !bpf_sk_assign(skb, sk, 0))
		count_steered(sk, o, key.netns);
	bpf_sk_release(sk);
	return TCX_NEXT;
}

char _license[] SEC("license") = "GPL";
