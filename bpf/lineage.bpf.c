//go:build ignore

// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//
// Which process is in which tree, from its fork until its task is freed, and what it leaves to the tree.
//
// task_newtask rather than sched_process_fork: it also fires for io_uring workers and before the child can run.
#include "usage.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

SEC("tp_btf/task_newtask")
int BPF_PROG(lineage_fork, struct task_struct *task, __u64 clone_flags)
{
	if (clone_flags & CLONE_THREAD || alone())
		return 0; // read through its group leader
	__u32 tree = tree_of(current_task());
	if (!tree)
		return 0;
	if (!bpf_map_lookup_elem(&members, &tree))
		tree = answering(tree);
	if (!tree || !place(task, tree))
		return 0;
	struct member m = id_of(task);
	add_member(tree, &m);
	return 0;
}

#ifndef EARLY
// A process whose leader thread has exited before the others: a thread of it that calls exec becomes the leader, with
// the old one's pid and none of its storage.
static __always_inline void hand_on(struct task_struct *leader, struct proc *p)
{
	struct signal_struct *sig = leader->signal;
	struct task_struct *next = NULL;
	if (bpf_core_field_exists(sig->group_exec_task))
		next = sig->group_exec_task;
	struct proc copy = *p;
	copy.lock = 0;
	if (next) {
		struct proc *of_next = bpf_task_storage_get(&procs, next, &copy, BPF_LOCAL_STORAGE_GET_F_CREATE);
		if (of_next)
			*of_next = copy;
	} else {
		__u32 tgid = leader->tgid;
		bpf_map_update_elem(&leaderless, &tgid, &copy, BPF_ANY);
	}
}
#endif

SEC("tp_btf/sched_process_exit")
int BPF_PROG(lineage_exit, struct task_struct *task)
{
	struct task_struct *leader = task->group_leader;
	struct proc *p = proc_of_leader(leader);
	if (!p || !p->tree || alone())
		return 0;
	add(&p->exited_rchar, task->ioac.rchar);
	add(&p->exited_wchar, task->ioac.wchar);
	add(&p->exited_runqueue_nanos, run_delay(task));
	if (task->signal->live.counter > 0) {
#ifndef EARLY
		if (leader->flags & PF_EXITING)
			hand_on(leader, p);
#endif
		return 0;
	}
	bool locked = lock_proc(p);
	// The last two threads may exit at the same time.
	struct sums *s = p->folded ? NULL : sums_of(p->tree);
	p->folded = 1;
	if (s) {
		struct thread_walk w = {};
		bool whole = read_usage(leader, p, &w);
		add(&s->folds_begun, 1);
		if (whole) { // else lineage_free adds it
			add_usage(&s->exited, &w.used, p);
			p->base = w.used;
		}
		add(&s->processes_exited, 1);
		add(&s->exited_peak_pages, task->signal->maxrss);
		add(&s->folds_done, 1);
	}
	if (locked)
		unlock_proc(p);
	return 0;
}

#ifndef EARLY
SEC("tp_btf/sched_process_exec")
int BPF_PROG(lineage_exec, struct task_struct *task, int old_pid)
{
	__u32 tgid = task->tgid;
	if (old_pid == task->pid || alone())
		return 0;
	struct proc *left = bpf_map_lookup_elem(&leaderless, &tgid);
	if (!left)
		return 0;
	bpf_task_storage_get(&procs, task, left, BPF_LOCAL_STORAGE_GET_F_CREATE);
	bpf_map_delete_elem(&leaderless, &tgid);
	return 0;
}
#endif

static __always_inline void forget(struct member *id)
{
#ifdef EARLY
	bpf_map_delete_elem(&procs, id);
#else
	bpf_map_delete_elem(&leaderless, &id->tgid);
#endif
}

// The last moment of a task: everything that it and its threads used is in signal_struct now.
SEC("tp_btf/sched_process_free")
int BPF_PROG(lineage_free, struct task_struct *task)
{
	if (task->group_leader != task)
		return 0;
	struct proc *p = proc_of_leader(task);
	if (!p)
		return 0;
	struct member m = id_of(task);
	if (!p->tree || alone()) {
		forget(&m);
		return 0;
	}
	bool locked = lock_proc(p);
	__u32 tree = p->tree;
	struct sums *s = sums_of(tree);
	if (s) {
		struct thread_walk w = {};
		add_exited_threads(&w, task->signal, p);
		add(&s->folds_begun, 1);
		add_usage(&s->exited, &w.used, p);
		p->base = w.used;
		if (!p->folded)
			add(&s->processes_exited, 1);
		p->folded = 1;
	}
	remove_member(tree, &m);
	remove_member(answering(tree), &m);
	if (s)
		add(&s->folds_done, 1);
	if (locked)
		unlock_proc(p);
	forget(&m);
	return 0;
}
