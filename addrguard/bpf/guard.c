/* The programs attached to the anchors: cgroups at the top of the hierarchy. */
#include "bind.h"
#include "connect.h"
#include "filter.h"
#include "names.h"
#include "sendmsg.h"

/* Raw sockets, and protocols that bind without asking any hook. */
static __always_inline int refused(struct bpf_sock *sk, const struct face *f)
{
	if (sk->type == SOCK_RAW)
		return f->flags & RAW_ALLOWED ? 0 : EPERM;
	switch (sk->protocol) {
	case IPPROTO_TCP:
	case IPPROTO_MPTCP:
	case IPPROTO_UDP:
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		return 0;
	}
	return EPROTONOSUPPORT;
}

SEC("cgroup/sock_create")
int sock_create(struct bpf_sock *sk)
{
	struct owner *o = NULL;
	int error;

	switch (adopt(sk, sk, &o)) {
	case OUTSIDE:
		return 1;
	case STRANGER:
		return 0;
	case OWNED:
		break;
	}
	if (!o)
		return 0;
	if (o->face.flags & EXEMPT)
		return 1;
	error = refused(sk, &o->face);
	if (error)
		return deny(o, SOCKET_DENIED, error);
	return 1;
}

char _license[] SEC("license") = "GPL";
