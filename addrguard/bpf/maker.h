/* Whose a socket is where no helper tells: its cgroup is read from the kernel. */
#ifndef MAKER_H
#define MAKER_H

#include "guard.h"

static __always_inline __u64 ancestor_id(struct cgroup *cgroup, int level)
{
	void *ancestors = (void *)cgroup + bpf_core_field_offset(struct cgroup, ancestors);
	struct cgroup *ancestor = NULL;

	if (level > BPF_CORE_READ(cgroup, level))
		return 0;
	bpf_probe_read_kernel(&ancestor, sizeof(ancestor), ancestors + level * sizeof(ancestor));
	return BPF_CORE_READ(ancestor, kn, id);
}

/* The container whose process made a socket. */
static __always_inline struct container *container_of_socket(struct sock *sk, __u64 netns, __u64 *id)
{
	struct cgroup *cgroup = BPF_CORE_READ(sk, sk_cgrp_data.cgroup);
	struct container *c;

	SEARCH(c, true, ({
		       *id = ancestor_id(cgroup, level);
		       *id ? entry(*id, netns) : NULL;
	       }));
	return c;
}

#endif
