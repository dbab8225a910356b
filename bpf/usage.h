// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//
// What a process has used, and how its share moves between trees.
//
// The kernel keeps the numbers of a thread in the thread until it is released, and adds them to the process's
// signal_struct then, under signal->stats_lock. So the sum over a process is signal_struct + its threads, read like
// thread_group_cputime() does: again when the lock's count has changed.
//
// Not so rchar and wchar: wait() adds those of a reaped child to the parent's signal_struct too, and nobody keeps its
// time in run queues. Both are added up here when a thread exits, from which moment on PF_EXITING keeps the thread out
// of the walk; nothing reads or writes after that.
#ifndef PROV4ML_USAGE_H
#define PROV4ML_USAGE_H

#include "maps.h"

struct thread_walk {
	__u64 node; // of the next thread
	__u64 head;
	__u64 mm;      // of any thread that still has one
	__u64 mm_task; // that thread
	__s64 rss[4];  // not yet added to the mm, before 6.2
	struct usage used;
};

// How long a thread has waited for a CPU, ready to run; 0 without CONFIG_SCHED_INFO.
static __always_inline __u64 run_delay(struct task_struct *t)
{
	struct task_struct___sched_info *with = (void *)t;
	if (!bpf_core_field_exists(with->sched_info))
		return 0;
	return BPF_CORE_READ(with, sched_info.run_delay);
}

static __always_inline void add_thread(struct thread_walk *w, struct task_struct *t)
{
	if (!(BPF_CORE_READ(t, flags) & PF_EXITING)) {
		__u64 io[2] = {};
		bpf_core_read(io, sizeof(io), &t->ioac);
		w->used.rchar += io[0];
		w->used.wchar += io[1];
	}
	w->used.minor_faults += BPF_CORE_READ(t, min_flt);
	w->used.major_faults += BPF_CORE_READ(t, maj_flt);
	w->used.cpu_nanos += BPF_CORE_READ(t, se.sum_exec_runtime);
	if (!(BPF_CORE_READ(t, flags) & PF_EXITING))
		w->used.runqueue_nanos += run_delay(t);
	__u64 mm = (__u64)BPF_CORE_READ(t, mm);
	if (mm) {
		w->mm = mm;
		w->mm_task = (__u64)t;
	}
	struct task_struct___rss *old = (void *)t;
	if (bpf_core_field_exists(old->rss_stat)) {
		int part[4] = {};
		bpf_core_read(part, sizeof(part), &old->rss_stat.count);
		for (int i = 0; i < 4; i++)
			w->rss[i] += part[i];
	}
}

static long add_next_thread(__u32 i, struct thread_walk *w)
{
	if (w->node == w->head || !w->node)
		return 1;
	struct task_struct *t = (void *)(w->node - bpf_core_field_offset(struct task_struct, thread_node));
	add_thread(w, t);
	w->node = (__u64)BPF_CORE_READ(t, thread_node.next);
	return 0;
}

static __always_inline void add_exited_threads(struct thread_walk *w, struct signal_struct *sig, struct proc *p)
{
	w->used.rchar = p->exited_rchar;
	w->used.wchar = p->exited_wchar;
	w->used.runqueue_nanos = p->exited_runqueue_nanos;
	w->used.minor_faults = BPF_CORE_READ(sig, min_flt);
	w->used.major_faults = BPF_CORE_READ(sig, maj_flt);
	w->used.cpu_nanos = BPF_CORE_READ(sig, sum_sched_runtime);
}

static __always_inline __u32 lock_count(struct signal_struct *sig)
{
	__u32 count = 0;
	bpf_core_read(&count, sizeof(count), &sig->stats_lock);
	return count;
}

#ifdef EARLY

// Walks lie here: a function that is verified by itself, so that a loop around it costs the verifier nothing, takes
// only numbers (5.12). A program in interrupt context may walk in the middle of another's walk, so there are several.
#define NESTED 4

struct thread_walks {
	__u64 level;
	struct thread_walk at[NESTED];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct thread_walks);
} thread_walks SEC(".maps");

static __always_inline struct thread_walk *thread_walk_at(__u64 level)
{
	__u32 zero = 0;
	struct thread_walks *all = bpf_map_lookup_elem(&thread_walks, &zero);
	if (!all || level >= NESTED)
		return NULL;
	barrier_var(level); // or the bound that the verifier needs is folded into the comparison
	return &all->at[level & (NESTED - 1)];
}

__noinline int walk_one_thread(__u64 level)
{
	struct thread_walk *w = thread_walk_at(level);
	return w ? add_next_thread(0, w) : 1;
}

__noinline int walk_some_threads(__u64 level)
{
	for (int i = 0; i < 128; i++)
		if (walk_one_thread(level))
			return 1;
	return 0;
}

static __always_inline void walk_threads(struct thread_walk *w)
{
	__u32 zero = 0;
	struct thread_walks *all = bpf_map_lookup_elem(&thread_walks, &zero);
	if (!all)
		return;
	__u64 level = all->level++;
	struct thread_walk *mine = thread_walk_at(level);
	if (mine) {
		*mine = *w;
		for (int i = 0; i < MAX_THREADS / 128; i++)
			if (walk_some_threads(level))
				break;
		*w = *mine;
	}
	all->level--;
}

#else

static __always_inline void walk_threads(struct thread_walk *w)
{
	bpf_loop(MAX_THREADS, add_next_thread, w, 0);
}

#endif

static __noinline bool read_usage_once(struct task_struct *leader, struct proc *p, struct thread_walk *w)
{
	struct signal_struct *sig = BPF_CORE_READ(leader, signal);
	__u32 before = lock_count(sig);
	w->mm = 0;
	for (int i = 0; i < 4; i++)
		w->rss[i] = 0;
	w->head = (__u64)__builtin_preserve_access_index(&sig->thread_head);
	add_exited_threads(w, sig, p);
	w->node = (__u64)BPF_CORE_READ(sig, thread_head.next);
	walk_threads(w);
	return !(before & 1) && lock_count(sig) == before;
}

// Reads what the process of this group leader has used. The caller holds the RCU read lock. False: a thread was
// released all the while (its CPU may stand still in the middle of that, in a virtual machine), and may be counted
// twice. Not a loop: clang enters it behind a call, which kernels before 6.8 take for an endless one.
static __always_inline bool read_usage(struct task_struct *leader, struct proc *p, struct thread_walk *w)
{
	return read_usage_once(leader, p, w) || read_usage_once(leader, p, w) || read_usage_once(leader, p, w);
}

static __always_inline void add_usage(struct usage *to, struct usage *now, struct proc *p)
{
	struct usage *base = &p->base;
	add(&to->rchar, now->rchar - base->rchar);
	add(&to->wchar, now->wchar - base->wchar);
	add(&to->minor_faults, now->minor_faults - base->minor_faults);
	add(&to->major_faults, now->major_faults - base->major_faults);
	add(&to->cpu_nanos, now->cpu_nanos - base->cpu_nanos);
	if (p->root)
		add(&to->runqueue_nanos, now->runqueue_nanos - base->runqueue_nanos);
}

// Two programs move a process's share at the same time only when it exits while a tree is made around it.
static __always_inline bool lock_proc(struct proc *p)
{
	for (int i = 0; i < 128; i++) {
#ifdef EARLY
		__u64 key = address_of(p);
		__u32 one = 1;
		if (!bpf_map_update_elem(&moving, &key, &one, BPF_NOEXIST))
			return true;
#else
		if (__sync_val_compare_and_swap(&p->lock, 0, 1) == 0)
			return true;
#endif
	}
	lose(LOSS_RACE);
	return false;
}

static __always_inline void unlock_proc(struct proc *p)
{
#ifdef EARLY
	__u64 key = address_of(p);
	bpf_map_delete_elem(&moving, &key);
#else
	__sync_val_compare_and_swap(&p->lock, 1, 0);
#endif
}

// A tree's crowd; NULL while it never had one.
static __always_inline void *crowd_of(__u32 tree)
{
	if (!bpf_map_lookup_elem(&crowded, &tree))
		return NULL;
	return bpf_map_lookup_elem(&crowds, &tree);
}

static __always_inline void add_member(__u32 tree, struct member *m)
{
	__u32 one = 1;
	void *few = bpf_map_lookup_elem(&members, &tree);
	if (!few)
		return;
	void *crowd = crowd_of(tree);
	if (crowd && bpf_map_lookup_elem(crowd, m))
		return; // it would be in both
	if (!bpf_map_update_elem(few, m, &one, BPF_ANY))
		return;
	// Said before it is true: who reads the tree at this moment may look in vain, but misses nothing.
	bpf_map_update_elem(&crowded, &tree, &one, BPF_ANY);
	crowd = crowd_of(tree);
	if (!crowd || bpf_map_update_elem(crowd, m, &one, BPF_ANY))
		lose(LOSS_MEMBERS);
}

static __always_inline void remove_member(__u32 tree, struct member *m)
{
	void *few = bpf_map_lookup_elem(&members, &tree);
	if (!few || !bpf_map_delete_elem(few, m))
		return;
	void *crowd = crowd_of(tree);
	if (crowd)
		bpf_map_delete_elem(crowd, m);
}

#endif
