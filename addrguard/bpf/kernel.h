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
enum { AF_UNIX = 1, AF_INET = 2, AF_INET6 = 10, AF_PACKET = 17, AF_RDS = 21, AF_TIPC = 30, AF_RXRPC = 33, AF_SMC = 43 };
enum { SOCK_STREAM = 1, SOCK_DGRAM = 2, SOCK_RAW = 3 };
enum { EPERM = 1, EINVAL = 22, EPROTONOSUPPORT = 93, EAFNOSUPPORT = 97, EADDRNOTAVAIL = 99, ENETUNREACH = 101, ECONNREFUSED = 111 };
enum { ETH_P_IP = 0x0800, ETH_P_IPV6 = 0x86dd };
enum { TCP_LISTEN = 10 };

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct net {
	__u64 net_cookie;
};

typedef struct {
	struct net *net;
} possible_net_t;

struct sock_common {
	unsigned char skc_ipv6only : 1;
	possible_net_t skc_net;
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
	__u16 sk_protocol;
	struct sock_cgroup_data sk_cgrp_data;
};

struct socket {
	struct sock *sk;
};

struct tcp6_sock;
struct udp6_sock;

#pragma clang attribute pop

#endif
