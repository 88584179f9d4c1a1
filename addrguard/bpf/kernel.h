/* What of the kernel's own structures the programs read. The loader relocates
 * each field to where the running kernel has it (BPF CO-RE), so that only the
 * names and the nesting must be right here.
 */
#ifndef KERNEL_H
#define KERNEL_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/types.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* From linux/socket.h, linux/if_ether.h and asm-generic/errno.h, which cannot be
 * included without a C library for the target. */
enum { AF_INET = 2, AF_INET6 = 10 };
enum { SOCK_STREAM = 1, SOCK_DGRAM = 2, SOCK_RAW = 3 };
enum { EPERM = 1, EINVAL = 22, EPROTONOSUPPORT = 93, EAFNOSUPPORT = 97, EADDRNOTAVAIL = 99, ENETUNREACH = 101, ECONNREFUSED = 111 };
enum { ETH_P_IP = 0x0800, ETH_P_IPV6 = 0x86dd };
enum { TCP_LISTEN = 10 };
enum { SOL_TCP = 6, SOCKET_FLAGS = 1008 /* TCP_BPF_SOCK_OPS_CB_FLAGS, Linux 6.12 */ };

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct hlist_node {
	struct hlist_node *next;
};

struct hlist_head {
	struct hlist_node *first;
};

struct unix_table { /* Linux 6.0 */
	struct hlist_head *buckets;
};

struct netns_unix {
	struct unix_table table;
};

struct net {
	__u64 net_cookie;
	struct netns_unix unx;
};

typedef struct {
	struct net *net;
} possible_net_t;

struct sock_common {
	unsigned char skc_ipv6only : 1;
	possible_net_t skc_net;
	struct hlist_node skc_node;
};

struct tcp_sock {
	__u8 bpf_sock_ops_cb_flags;
};

struct kernfs_node {
	__u64 id;
};

struct cgroup {
	struct kernfs_node *kn;
	int level;
	struct cgroup *ancestors[]; /* Linux 6.1 */
};

struct sock_cgroup_data {
	struct cgroup *cgroup;
};

struct sock {
	struct sock_common __sk_common;
	__u16 sk_type;
	struct sock_cgroup_data sk_cgrp_data;
};

struct sockaddr_un {
	__u16 sun_family;
};

struct unix_address {
	int len;
	struct sockaddr_un name[];
};

struct unix_sock {
	struct unix_address *addr;
};

struct bpf_sock_addr_kern {
	struct sock *sk;
	void *uaddr;
	__u32 uaddrlen;
};

struct net_device {
	possible_net_t nd_net;
};

struct sk_buff {
	struct net_device *dev;
};

struct tcp6_sock;
struct udp6_sock;

#pragma clang attribute pop

/* The kernel's own structure behind a program's context (Linux 6.2). */
extern void *bpf_cast_to_kern_ctx(void *ctx) __ksym;

#endif
