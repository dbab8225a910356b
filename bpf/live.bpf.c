//go:build ignore

// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//
// What the living processes of one tree have used and hold in memory now. One BPF_PROG_RUN over the tree's members, so
// that its cost follows the tree, where such a program may call bpf_task_from_pid (6.10). Else one walk over all tasks.
#include "usage.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

// What the agent asks.
struct live_question {
	__u32 tree;
	__u32 each; // fill each_live too
};

struct live {
	struct usage used;
	__u64 rss_pages;
	__u64 swap_pages;
	__u32 processes;
	__u32 each; // entries of each_live
	__u32 torn; // processes whose usage may be too high
	__u32 pad;
};

struct live_process {
	struct member id;
	__u64 mm;
	__u64 rss_pages;
	__u64 hiwater_pages;
	__u64 before_exec_pages; // the peak of earlier programs of this process
	__u64 cpu_nanos;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct live);
} live_sum SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_MEMBERS);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct live_process);
} each_live SEC(".maps");

#ifndef EARLY

// Where each CPU's copies of per-CPU data lie: the address of a copy = the per-CPU pointer + the CPU's offset. The
// kernel gives the offsets to nobody, but a per-CPU map is made of such pointers: its own pointer and the address of a
// CPU's copy differ by the offset.
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} yardstick SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_CPUS);
	__type(key, __u32);
	__type(value, __u64);
} cpu_offsets SEC(".maps");

static long learn_offset(__u32 cpu, __u64 *pointer)
{
	__u32 zero = 0;
	void *copy = bpf_map_lookup_percpu_elem(&yardstick, &zero, cpu);
	if (!copy)
		return 1;
	__u64 offset = address_of(copy) - *pointer;
	bpf_map_update_elem(&cpu_offsets, &cpu, &offset, BPF_ANY);
	return 0;
}

// Run once, before read_live.
SEC("syscall")
int learn_offsets(void *ctx)
{
	__u64 pointer = 0;
	__u64 at = address_of(&yardstick) + bpf_core_field_offset(struct bpf_array, pptrs);
	bpf_probe_read_kernel(&pointer, sizeof(pointer), (void *)at);
	bpf_loop(cpus, learn_offset, &pointer, 0);
	return 0;
}

#endif

struct rss_walk {
	__u64 counters[4];
	__s64 part[4];
};

#ifndef EARLY
static long add_cpu(__u32 cpu, struct rss_walk *w)
{
	__u64 *offset = bpf_map_lookup_elem(&cpu_offsets, &cpu);
	if (!offset || !*offset)
		return 0;
	for (int i = 0; i < 4; i++) {
		__s32 n = 0;
		bpf_probe_read_kernel(&n, sizeof(n), (void *)(w->counters[i] + *offset));
		w->part[i] += n;
	}
	return 0;
}
#endif

// Pages of an mm: file, anonymous, swapped out, shared memory.
static __always_inline void read_rss(struct mm_struct *mm, struct thread_walk *threads, __u64 *rss, __u64 *swap)
{
	struct rss_walk w = {};
	struct mm_struct___atomic *old = (void *)mm;
	if (bpf_core_field_exists(old->rss_stat.count)) {
		bpf_core_read(w.part, sizeof(w.part), &old->rss_stat.count);
		for (int i = 0; i < 4; i++)
			w.part[i] += threads->rss[i];
	}
#ifndef EARLY
	else {
		__u64 at = (__u64)__builtin_preserve_access_index(&mm->rss_stat);
		for (int i = 0; i < 4; i++) {
			struct percpu_counter *c = (void *)(at + i * bpf_core_type_size(struct percpu_counter));
			w.part[i] = BPF_CORE_READ(c, count);
			w.counters[i] = (__u64)BPF_CORE_READ(c, counters);
		}
		bpf_loop(cpus, add_cpu, &w, 0);
	}
#endif
	__s64 pages = w.part[0] + w.part[1] + w.part[3];
	*rss = pages > 0 ? pages : 0;
	*swap = w.part[2] > 0 ? w.part[2] : 0;
}

static __always_inline void add_process(struct task_struct *task, struct proc *p, struct member *id, struct live *sum,
					bool each)
{
	struct thread_walk t = {};
	__u64 rss = 0, swap = 0, hiwater = 0;
	if (!read_usage(task, p, &t))
		sum->torn++;
	if (t.mm) {
		struct mm_struct *mm = (void *)t.mm;
		struct task_struct *holder = (void *)t.mm_task;
		read_rss(mm, &t, &rss, &swap);
		hiwater = BPF_CORE_READ(mm, hiwater_rss);
		// The mm is freed without waiting for readers: what was read counts only if it was still in use
		// afterwards.
		if ((__u64)BPF_CORE_READ(holder, mm) != t.mm)
			rss = swap = hiwater = 0;
	}
	sum->used.rchar += t.used.rchar - p->base.rchar;
	sum->used.wchar += t.used.wchar - p->base.wchar;
	sum->used.minor_faults += t.used.minor_faults - p->base.minor_faults;
	sum->used.major_faults += t.used.major_faults - p->base.major_faults;
	sum->used.cpu_nanos += t.used.cpu_nanos - p->base.cpu_nanos;
	if (p->root)
		sum->used.runqueue_nanos += t.used.runqueue_nanos - p->base.runqueue_nanos;
	if (p->folded)
		return; // a zombie: its memory is gone
	sum->processes++;
	sum->rss_pages += rss;
	sum->swap_pages += swap;
	if (!each)
		return;
	__u32 i = sum->each;
	struct live_process *e = bpf_map_lookup_elem(&each_live, &i);
	if (!e)
		return;
	e->id = *id;
	e->mm = t.mm;
	e->rss_pages = rss;
	e->hiwater_pages = hiwater;
	e->before_exec_pages = BPF_CORE_READ(task, signal, maxrss);
	e->cpu_nanos = t.used.cpu_nanos;
	sum->each++;
}

#ifndef EARLY

struct task_struct *bpf_task_from_pid(__s32 pid) __ksym;
void bpf_task_release(struct task_struct *p) __ksym;
void bpf_rcu_read_lock(void) __ksym;
void bpf_rcu_read_unlock(void) __ksym;

struct tree_walk {
	struct live sum;
	__u32 each;
};

static long add_member_process(void *map, struct member *key, __u32 *value, struct tree_walk *w)
{
	struct task_struct *task = bpf_task_from_pid(key->tgid);
	if (!task) {
		// Released, and about to be freed. Now and then it stays, which would fill the map.
		bpf_map_delete_elem(map, key);
		return 0;
	}
	struct proc *p = proc_of_leader(task);
	if (p && task->start_boottime == key->start_nanos) {
		bpf_rcu_read_lock();
		add_process(task, p, key, &w->sum, w->each);
		bpf_rcu_read_unlock();
	} else if (task->start_boottime != key->start_nanos) {
		bpf_map_delete_elem(map, key); // the pid is another's by now
	}
	bpf_task_release(task);
	return 0;
}

SEC("syscall")
int read_live(struct live_question *ask)
{
	__u32 zero = 0, tree = ask->tree;
	struct tree_walk w = {.each = ask->each};
	struct live *out = bpf_map_lookup_elem(&live_sum, &zero);
	void *few = bpf_map_lookup_elem(&members, &tree);
	if (!out || !few)
		return 1;
	bpf_for_each_map_elem(few, add_member_process, &w, 0);
	void *crowd = crowd_of(tree);
	if (crowd)
		bpf_for_each_map_elem(crowd, add_member_process, &w, 0);
	*out = w.sum;
	return 0;
}

#endif

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct live_question);
} live_questions SEC(".maps");

// The agent has put its question and zero into the sum.
SEC("iter/task")
int walk_live(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;
	__u32 zero = 0;
	struct live_question *ask = bpf_map_lookup_elem(&live_questions, &zero);
	struct live *out = bpf_map_lookup_elem(&live_sum, &zero);
	if (!task || !ask || !out || (__u64)task->group_leader != (__u64)task)
		return 0;
	struct proc *p = proc_of_leader(task);
	if (!p || p->tree != ask->tree)
		return 0;
	struct member id = id_of(task);
	add_process(task, p, &id, out, ask->each);
	return 0;
}
