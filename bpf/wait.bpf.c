//go:build ignore

// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//
// How long the threads of a tree's root process are blocked on a disk, as the kernel's delay accounting has it (which
// is off unless somebody switched it on): from the moment they leave the CPU to the moment they may run again. The
// kernel marks a thread in_iowait around such a wait and takes the mark away only when it runs again, so that every
// other switch and wakeup of the node costs one load. Waiting for a CPU needs no program: the scheduler keeps it in the
// thread.
#include "maps.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

struct disk_wait {
	__u64 began_nanos;
	__u32 tree;
	__u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_THREADS);
	__type(key, __u64);
	__type(value, struct disk_wait);
} waits SEC(".maps");

// The kernel makes sure that a thread is off its CPU before it is woken up, so this comes first.
SEC("tp_btf/sched_switch")
int BPF_PROG(disk_wait_begin, bool preempt, struct task_struct *prev)
{
	if (!BPF_CORE_READ_BITFIELD(prev, in_iowait))
		return 0;
	struct proc *p = proc_of(prev);
	if (!p || !p->tree || !p->root || alone())
		return 0;
	__u64 key = address_of(prev);
	struct disk_wait fresh = {.began_nanos = bpf_ktime_get_ns(), .tree = p->tree};
	if (bpf_map_update_elem(&waits, &key, &fresh, BPF_ANY))
		lose(LOSS_WAITS);
	return 0;
}

SEC("tp_btf/sched_wakeup")
int BPF_PROG(disk_wait_end, struct task_struct *task)
{
	if (!BPF_CORE_READ_BITFIELD(task, in_iowait))
		return 0;
	__u64 key = address_of(task);
	struct disk_wait *w = bpf_map_lookup_elem(&waits, &key);
	if (!w)
		return 0;
	struct sums *s = sums_of(w->tree);
	if (s)
		add(&s->root_disk_wait_nanos, bpf_ktime_get_ns() - w->began_nanos);
	bpf_map_delete_elem(&waits, &key);
	return 0;
}
