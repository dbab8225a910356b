//go:build ignore

// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//
// Which process of a tree the kernel kills for want of memory, of the node or of a cgroup. One event for each, since
// each is a story of its own: who, and when.
#include "maps.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

struct kill {
	__u64 nanos; // CLOCK_MONOTONIC
	__u32 tree;
	__u32 tgid; // in the first pid namespace
	char name[16];
	// Pages that it held: file, anonymous, swapped out, shared memory. What a CPU keeps to itself of these counters
	// is not in them.
	__u64 pages[4];
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 65536); // a multiple of every page size
	__type(value, struct kill);
} kills SEC(".maps");

// Victims whose end is waited for, by pid: only before 6.9, where the event has no task.
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, __u64); // CLOCK_MONOTONIC ns of the kill
} victims SEC(".maps");

static __always_inline void read_pages(struct mm_struct *mm, __u64 pages[4])
{
	__s64 now[4] = {};
	struct mm_struct___atomic *old = (void *)mm;
	if (bpf_core_field_exists(old->rss_stat.count)) {
		bpf_core_read(now, sizeof(now), &old->rss_stat.count);
	} else {
		__u64 at = (__u64)__builtin_preserve_access_index(&mm->rss_stat);
		for (int i = 0; i < 4; i++) {
			struct percpu_counter *c = (void *)(at + i * bpf_core_type_size(struct percpu_counter));
			now[i] = BPF_CORE_READ(c, count);
		}
	}
	for (int i = 0; i < 4; i++)
		pages[i] = now[i] > 0 ? now[i] : 0;
}

static __always_inline int report(struct task_struct *victim, __u64 nanos)
{
	__u32 tree = tree_of(victim);
	if (!tree)
		return 0;
	struct kill *k = bpf_ringbuf_reserve(&kills, sizeof(*k), 0);
	if (!k) {
		lose(LOSS_KILLS);
		return 0;
	}
	k->nanos = nanos;
	k->tree = tree;
	k->tgid = victim->tgid;
	__u64 pages[4] = {};
	struct mm_struct *mm = BPF_CORE_READ(victim, mm); // gone at its end
	if (mm)
		read_pages(mm, pages);
	__builtin_memcpy(k->pages, pages, sizeof(pages));
	bpf_core_read(&k->name, sizeof(k->name), &victim->group_leader->comm);
	bpf_ringbuf_submit(k, 0);
	return 0;
}

// 6.9 and newer.
SEC("tp_btf/mark_victim")
int BPF_PROG(oom_victim, struct task_struct *victim)
{
	return report(victim, bpf_ktime_get_ns());
}

// Before 6.9: the pid of one of its threads.
SEC("tp_btf/mark_victim")
int BPF_PROG(oom_victim_pid, int pid)
{
	__u32 key = pid;
	__u64 now = bpf_ktime_get_ns();
	bpf_map_update_elem(&victims, &key, &now, BPF_ANY);
	return 0;
}

// Its end, for the same kernels.
SEC("tp_btf/sched_process_exit")
int BPF_PROG(oom_exit, struct task_struct *task)
{
	__u32 key = task->pid;
	__u64 *nanos = bpf_map_lookup_elem(&victims, &key);
	if (!nanos)
		return 0;
	__u64 at = *nanos;
	bpf_map_delete_elem(&victims, &key);
	return report(task, at);
}
