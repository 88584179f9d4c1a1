/* The programs attached to anchors, and that of socket(2) to gates. */
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
	struct subject s = {};
	enum standing who = task_subject(sk, &s);
	int error;

	if (who != OWNED)
		return who;
	error = refused(sk, s.face);
	if (error)
		return deny(&s, SOCKET_DENIED, error);
	if (sk->type == SOCK_STREAM)
		return 1;
	sk->mark = s.cgroup;
	return keep(sk, &s) != NULL;
}

/* Where packet programs cannot ask for the namespace, the sockets that a container
 * makes in one of its own must be known by something else. It is a program of its own,
 * because what it takes to find no container is too much for services of the host. */
SEC("cgroup/sock_create")
int sock_foreign(struct bpf_sock *sk)
{
	__u64 netns = bpf_get_netns_cookie(sk);
	struct subject s = {};
	struct container *c;
	struct owner *o;

	if (bpf_map_lookup_elem(&networks, &netns))
		return 1;
	c = container_of_task(0, &s.cgroup);
	if (!c)
		return 1;
	s.face = &c->face;
	o = keep(sk, &s);
	if (o)
		o->face.flags |= EXEMPT;
	return 1;
}

char _license[] SEC("license") = "GPL";
