//go:build ignore

// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//
// How long threads of a tree stand still because they have to free memory first: direct reclaim (the node is short) and
// memcg reclaim (the cgroup is at its limit). The two may nest; the outer one counts.
#include "maps.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define MAX_STALLED 8192

struct stall {
	__u64 began_nanos;
	__u32 depth;
	__u32 tree;
	__u32 root;
	__u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_STALLED);
	__type(key, __u64);
	__type(value, struct stall);
} stalls SEC(".maps");

static __always_inline int begin(void)
{
	struct task_struct *current = current_task();
	struct proc *p = proc_of(current);
	if (!p || !p->tree || alone())
		return 0;
	__u64 key = address_of(current);
	struct stall *s = bpf_map_lookup_elem(&stalls, &key);
	if (s) {
		s->depth++;
		return 0;
	}
	struct stall fresh = {.began_nanos = bpf_ktime_get_ns(), .depth = 1, .tree = p->tree, .root = p->root};
	if (bpf_map_update_elem(&stalls, &key, &fresh, BPF_ANY))
		lose(LOSS_RECLAIM);
	return 0;
}

static __always_inline int end(void)
{
	__u64 key = address_of(current_task());
	struct stall *s = bpf_map_lookup_elem(&stalls, &key);
	if (!s || --s->depth)
		return 0;
	struct sums *of_tree = sums_of(s->tree);
	if (of_tree) {
		__u64 nanos = bpf_ktime_get_ns() - s->began_nanos;
		add(&of_tree->reclaim_nanos, nanos);
		if (s->root)
			add(&of_tree->root_reclaim_nanos, nanos);
	}
	bpf_map_delete_elem(&stalls, &key);
	return 0;
}

SEC("tp_btf/mm_vmscan_direct_reclaim_begin")
int BPF_PROG(direct_reclaim_begin)
{
	return begin();
}

SEC("tp_btf/mm_vmscan_direct_reclaim_end")
int BPF_PROG(direct_reclaim_end)
{
	return end();
}

SEC("tp_btf/mm_vmscan_memcg_reclaim_begin")
int BPF_PROG(memcg_reclaim_begin)
{
	return begin();
}

SEC("tp_btf/mm_vmscan_memcg_reclaim_end")
int BPF_PROG(memcg_reclaim_end)
{
	return end();
}
