//go:build ignore

// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//
// Moves processes that exist already into a tree that is being made, or out of one that is given up: a task iterator,
// read by the agent until a whole pass changes nothing. A child that is forked behind the iterator's back inherits from
// a parent that either was moved before, so the child is right, or is moved in this pass, so there is another.
#include "usage.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#ifdef EARLY
#define MAX_DEPTH 256
#else
#define MAX_DEPTH 1024
#endif
#define NANOS_PER_TICK 10000000 // USER_HZ is 100 on every architecture we know

enum adopt_mode {
	ADOPT_ROOT,	   // find the root and move it
	ADOPT_DESCENDANTS, // move those below the root that are in tree from
	ADOPT_MEMBERS,	   // move all that are in tree from
	ADOPT_LIST,	   // move nobody, count those in tree from
};

struct adoption {
	enum adopt_mode mode;
	__s32 pid; // of the root, in the agent's pid namespace
	__u64 start_ticks;
	__u32 to;
	__u32 from;
	// Answers.
	__u64 root;
	__u64 root_start;
	__u32 found;
	__u32 changed;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct adoption);
} adoptions SEC(".maps");

// The pid of a task in the pid namespace of the process that reads the iterator; 0 where it has none.
static __always_inline int pid_here(struct task_struct *task)
{
	struct pid *self = BPF_CORE_READ(current_task(), thread_pid);
	struct pid *pid = BPF_CORE_READ(task, thread_pid);
	__u32 level = BPF_CORE_READ(self, level);
	if (!pid || level > 32 || BPF_CORE_READ(pid, level) < level)
		return 0;
	__u64 at = (__u64)__builtin_preserve_access_index(&pid->numbers) + level * bpf_core_type_size(struct upid);
	int nr = 0;
	bpf_probe_read_kernel(&nr, sizeof(nr), (void *)at);
	return nr;
}

struct ancestry {
	__u64 at;
	__u64 root;
	__u32 below;
};

static long one_up(__u32 i, struct ancestry *a)
{
	struct task_struct *task = (void *)a->at;
	struct task_struct *parent = BPF_CORE_READ(task, real_parent);
	parent = BPF_CORE_READ(parent, group_leader);
	if ((__u64)parent == a->root) {
		a->below = 1;
		return 1;
	}
	if ((__u64)parent == a->at || !parent)
		return 1;
	a->at = (__u64)parent;
	return 0;
}

enum move {
	MOVE_NOT,
	MOVE_AGAIN, // in another pass
	MOVE_DONE,
};

static __always_inline enum move move_process(struct task_struct *leader, __u32 to, bool root)
{
	struct proc *p = make_proc(leader);
	if (!p) {
		lose(LOSS_TREES);
		return MOVE_NOT;
	}
	if (!lock_proc(p))
		return MOVE_AGAIN;
	if (p->folded || p->tree == to) {
		unlock_proc(p);
		return MOVE_NOT;
	}
	struct member m = id_of(leader);
	struct thread_walk w = {};
	if (!read_usage(leader, p, &w)) {
		unlock_proc(p);
		return MOVE_AGAIN;
	}
	struct sums *s = sums_of(p->tree);
	if (s) {
		add(&s->folds_begun, 1);
		add_usage(&s->exited, &w.used, p);
	}
	p->base = w.used;
	remove_member(p->tree, &m);
	p->tree = to;
	p->root = root;
	if (to)
		add_member(to, &m);
	if (s)
		add(&s->folds_done, 1);
	unlock_proc(p);
	return MOVE_DONE;
}

SEC("iter/task")
int adopt(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;
	__u32 zero = 0;
	struct adoption *a = bpf_map_lookup_elem(&adoptions, &zero);
	if (!task || !a)
		return 0;
	// A leader only: the pointer is compared as a number, since the verifier knows two types of it.
	if ((__u64)task->group_leader != (__u64)task)
		return 0;
	struct proc *p = proc_of_leader(task);
	__u32 tree = p ? p->tree : 0;

	switch (a->mode) {
	case ADOPT_ROOT:
		if (a->found || pid_here(task) != a->pid)
			return 0;
		if (task->start_boottime / NANOS_PER_TICK != a->start_ticks)
			return 0;
		if ((p && p->folded) || task->signal->live.counter == 0)
			return 0;
		a->root = (__u64)task;
		a->from = answering(tree);
		switch (move_process(task, a->to, true)) {
		case MOVE_AGAIN:
			a->changed++;
			return 0;
		case MOVE_DONE:
			a->found = 1;
			return 0;
		default:
			return 0;
		}
	case ADOPT_DESCENDANTS: {
		if (tree == a->to || answering(tree) != a->from)
			return 0;
		struct ancestry up = {.at = (__u64)task, .root = a->root};
#ifdef EARLY
		for (__u32 i = 0; i < MAX_DEPTH; i++)
			if (one_up(i, &up))
				break;
#else
		bpf_loop(MAX_DEPTH, one_up, &up, 0);
#endif
		if (up.below && move_process(task, a->to, false) != MOVE_NOT)
			a->changed++;
		return 0;
	}
	case ADOPT_MEMBERS:
		if (tree == a->from && tree && move_process(task, a->to, false) != MOVE_NOT)
			a->changed++;
		return 0;
	case ADOPT_LIST:
		if (tree == a->from)
			a->found++;
		return 0;
	}
	return 0;
}
