// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//
// The maps that the programs share, and how a value reaches the sums of a tree. Every object file that includes this
// declares all of them; the loader makes each once and gives it to all objects. README.md has the table.
#ifndef PROV4ML_MAPS_H
#define PROV4ML_MAPS_H

#include "kernel.h"

#define MAX_TREES 4096
#define MAX_MEMBERS 4096
#define FEW_MEMBERS 64
#define MAX_PROCS 65536
#define MAX_DEVICES 1024
#define MAX_INODES 262144
#define MAX_PAGES 262144
#define MAX_THREADS 8192
#define MAX_FORWARDS 16384
#define MAX_CPUS 4096
#define MAX_FLIGHTS 16384

// Tree 0 is every process in no tree. These are what else can own a page.
#define TREE_UNKNOWN 0xffffffffU
#define TREE_LOWER 0xfffffffeU
#define TREE_METADATA 0xfffffffdU
#define TREE_SWAP 0xfffffffcU
#define TREE_SPECIAL 0xfffffff0U

const volatile __u32 page_shift = 12;
const volatile __u32 cpus = 1;
const volatile bool with_latency = false; // somebody reads the map of bios
// How old the agent's heartbeat may be; 0 = the programs end with the agent, and nobody asks.
const volatile __u64 heartbeat_limit_nanos = 0;

// What a process has used since it was forked; the sum over its threads, the exited included.
struct usage {
	__u64 rchar;
	__u64 wchar;
	__u64 minor_faults;
	__u64 major_faults;
	__u64 cpu_nanos;
	__u64 runqueue_nanos; // of the root process of a tree alone
};

// The sums of one tree on one CPU. The reader adds the CPUs up. folds_begun and folds_done bracket every move of a
// process's share into or out of the tree: a reader that sees them differ, or change, reads again.
struct sums {
	__u64 read_bytes;
	__u64 write_bytes;
	__u64 read_ops;
	__u64 write_ops;
	__u64 metadata_write_bytes;
	__u64 dirtied_bytes;
	__u64 dirtied_written_bytes;
	__u64 cache_miss_bytes;
	__u64 reclaim_nanos;
	__u64 root_reclaim_nanos; // of the tree's root process alone
	__u64 root_disk_wait_nanos;
	__u64 processes_exited;
	__u64 exited_peak_pages;
	struct usage exited;
	__u64 folds_begun;
	__u64 folds_done;
};

struct histograms {
	__u64 read[64];
	__u64 write[64];
	__u64 read_nanos; // the sum
	__u64 write_nanos;
};

enum write_class {
	CLASS_TREES,
	CLASS_OTHER,
	CLASS_METADATA,
	CLASS_SWAP,
	CLASS_LOWER,
	CLASS_ZEROES,
	CLASS_UNATTRIBUTED,
	CLASSES,
};

// Bytes of one device on one CPU; the classes of a direction add up to what /sys/block/X/stat says.
struct device {
	__u64 write_bytes[CLASSES];
	__u64 read_bytes[CLASSES];
};

enum loss {
	LOSS_MEMBERS, // a tree has more processes than its maps of members hold
	LOSS_TREES,   // a task's tree id could not be stored
	LOSS_INODES,  // the map of dirty inodes is full
	LOSS_PAGES,   // the map of dirty pages is full
	LOSS_DEVICES, // the map of devices is full
	LOSS_WALK,    // a bio with more than MAX_STEPS folios
	LOSS_RACE,    // a process's share was moved twice at the same time
	LOSS_RECLAIM, // the map of stalled tasks is full
	LOSS_KILLS,   // the ring of kills is full
	LOSS_WAITS,   // the map of threads that wait for a disk is full
	LOSS_LATENCY, // a map of requests in flight is full
	LOSS_ALONE,   // the agent's heartbeat was too old, and nothing was counted
	LOSS_MISSED,  // the kernel passed an event by a program; it keeps that number itself
	LOSSES,
};

struct losses {
	__u64 count[LOSSES]; // by enum loss
};

// A process: the value of its group leader's task storage, or of the map that stands for it.
struct proc {
	__u32 tree;
	__u32 lock;
	__u32 folded;	    // it has exited
	__u32 root;	    // it is the process that the tree is named after
	struct usage base;  // not, or no longer, this tree's
	__u64 exited_rchar; // of its threads that have exited
	__u64 exited_wchar;
	__u64 exited_runqueue_nanos;
};

struct member {
	__u64 start_nanos;
	__u32 tgid;
	__u32 pad;
};

struct inode_owner {
	__u64 number;
	__u32 generation;
	__u32 tree;
	__u64 epoch;   // when it turned dirty, CLOCK_MONOTONIC ns
	__u32 foreign; // some page has an entry of its own
	__u32 pad;
};

struct submitted {
	__u64 sector; // where it begins: the address is reused
	__u32 tree;
	__u32 pad;
};

struct page_key {
	__u64 inode;
	__u64 index;
};

struct page_owner {
	__u64 epoch; // of its inode; of an earlier one, it counts for nothing
	__u32 tree;
	__u32 pad;
};

#ifdef EARLY

// By start time and tgid, which an exec by another thread than the leader does not change.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_PROCS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct member);
	__type(value, struct proc);
} procs SEC(".maps");

// Processes whose share is being moved, by the address of their entry.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_CPUS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64);
	__type(value, __u32);
} moving SEC(".maps");

#else

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct proc);
} procs SEC(".maps");

// Processes whose leader thread exited before the others, by tgid: an exec by another thread makes a new leader.
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, struct proc);
} leaderless SEC(".maps");

#endif

// A walk over a hash map looks at each of its buckets, of which there are as many as it may have entries: 64 KiB for
// MAX_MEMBERS. So most trees have all of their processes in a small one.
struct members_of_tree {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, FEW_MEMBERS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(key_size, sizeof(struct member));
	__uint(value_size, sizeof(__u32));
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH_OF_MAPS);
	__uint(max_entries, MAX_TREES);
	__type(key, __u32);
	__array(values, struct members_of_tree);
} members SEC(".maps");

// The processes that found no place in there.
struct crowd_of_tree {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_MEMBERS - FEW_MEMBERS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(key_size, sizeof(struct member));
	__uint(value_size, sizeof(__u32));
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH_OF_MAPS);
	__uint(max_entries, MAX_TREES);
	__type(key, __u32);
	__array(values, struct crowd_of_tree);
} crowds SEC(".maps");

// Trees that have, or had, a process in their crowd.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_TREES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, __u32);
} crowded SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, MAX_TREES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct sums);
} trees SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, MAX_TREES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct histograms);
} latencies SEC(".maps");

// Released trees: who answers for what they still own.
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MAX_FORWARDS);
	__type(key, __u32);
	__type(value, __u32);
} forwards SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, MAX_DEVICES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct device);
} devices SEC(".maps");

// All devices together.
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct device);
} node SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_INODES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64);
	__type(value, struct inode_owner);
} inodes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_PAGES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct page_key);
	__type(value, struct page_owner);
} pages SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct losses);
} losses SEC(".maps");

// Bios of trees on their way to a request, by address. Those that are merged into another's request stay until they are
// pushed out.
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MAX_FLIGHTS);
	__type(key, __u64);
	__type(value, struct submitted);
} bios SEC(".maps");

// Pinned programs outlive the agent. They go on without it for a while, and then leave at once.
struct heartbeat {
	__u64 beat_nanos; // CLOCK_MONOTONIC, which stands still while the machine sleeps; the agent writes it
	__u64 looked;	  // when it was last looked at, in ticks
	__u32 alone;	  // it was too old then
	__u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct heartbeat);
} heartbeats SEC(".maps");

#define LOOK_TICKS 100

static __always_inline void add(__u64 *cell, __u64 n)
{
	// Atomic, because a program in interrupt context may run in the middle of one in process context.
	__sync_fetch_and_add(cell, n);
}

// The address in a pointer, as a number that the verifier does not follow.
static __always_inline __u64 address_of(const void *pointer)
{
	__u64 address = 0;
	bpf_probe_read_kernel(&address, sizeof(address), &pointer);
	return address;
}

static __noinline void lose(enum loss what)
{
	__u32 zero = 0;
	struct losses *l = bpf_map_lookup_elem(&losses, &zero);
	if (l)
		add(&l->count[what], 1);
}

// Reading a clock costs as much as all else that the program for a dirty page does; the tick is a load.
static __always_inline bool alone(void)
{
	if (!heartbeat_limit_nanos)
		return false;
	__u32 zero = 0;
	struct heartbeat *h = bpf_map_lookup_elem(&heartbeats, &zero);
	if (!h)
		return false;
	__u64 now = bpf_jiffies64();
	if (now - h->looked < LOOK_TICKS)
		return h->alone;
	h->looked = now;
	__u64 beat = h->beat_nanos;
	bool old = beat && (__s64)(bpf_ktime_get_ns() - beat) > (__s64)heartbeat_limit_nanos;
	if (old && !h->alone)
		lose(LOSS_ALONE);
	h->alone = old;
	return old;
}

// The tree that answers for an id: the id itself, or what it was released to. 0 when none does.
static __noinline __u32 answering(__u32 tree)
{
#pragma unroll
	for (int i = 0; i < 8; i++) {
		__u32 *next = bpf_map_lookup_elem(&forwards, &tree);
		if (!next)
			return tree;
		tree = *next;
		if (!tree)
			return 0;
	}
	return 0;
}

static __always_inline struct sums *sums_of(__u32 tree)
{
	if (!tree)
		return NULL;
	struct sums *s = bpf_map_lookup_elem(&trees, &tree);
	if (s)
		return s;
	tree = answering(tree);
	return bpf_map_lookup_elem(&trees, &tree);
}

static __always_inline struct member id_of(struct task_struct *leader)
{
	struct member m = {.start_nanos = read_field(leader, start_boottime), .tgid = read_field(leader, tgid)};
	return m;
}

#ifdef EARLY

static __always_inline struct proc *proc_of_leader(struct task_struct *leader)
{
	struct member id = id_of(leader);
	return bpf_map_lookup_elem(&procs, &id);
}

static __always_inline struct proc *make_proc(struct task_struct *leader)
{
	struct member id = id_of(leader);
	struct proc fresh = {};
	bpf_map_update_elem(&procs, &id, &fresh, BPF_NOEXIST);
	return bpf_map_lookup_elem(&procs, &id);
}

// Puts a new process into a tree, unless whoever made a tree around it in this instant has put it there already.
static __always_inline bool place(struct task_struct *leader, __u32 tree)
{
	struct member id = id_of(leader);
	struct proc fresh = {.tree = tree};
	if (!bpf_map_update_elem(&procs, &id, &fresh, BPF_NOEXIST))
		return true;
	if (!bpf_map_lookup_elem(&procs, &id))
		lose(LOSS_TREES);
	return false;
}

// Work that io_uring hands on is done by kernel threads before 5.12. They borrow the memory of the process meanwhile.
static __always_inline struct task_struct *employer(struct task_struct *task)
{
	struct mm_struct *mm = BPF_CORE_READ(task, mm);
	if (mm && bpf_core_field_exists(mm->owner))
		return BPF_CORE_READ(mm, owner);
	return NULL;
}

static __always_inline bool is_nobody(struct task_struct *task)
{
	return BPF_CORE_READ(task, flags) & PF_KTHREAD && !employer(task);
}

static __always_inline struct proc *proc_of(struct task_struct *task)
{
	if (BPF_CORE_READ(task, flags) & PF_KTHREAD) {
		task = employer(task);
		if (!task)
			return NULL;
	}
	return proc_of_leader(BPF_CORE_READ(task, group_leader));
}

#else

static __always_inline struct proc *proc_of_leader(struct task_struct *leader)
{
	return bpf_task_storage_get(&procs, leader, 0, 0);
}

static __always_inline struct proc *make_proc(struct task_struct *leader)
{
	return bpf_task_storage_get(&procs, leader, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
}

// Puts a new process into a tree, unless whoever made a tree around it in this instant has put it there already.
static __always_inline bool place(struct task_struct *leader, __u32 tree)
{
	struct proc *p = make_proc(leader);
	if (!p) {
		lose(LOSS_TREES);
		return false;
	}
	return __sync_val_compare_and_swap(&p->tree, 0, tree) == 0;
}

static __always_inline bool is_nobody(struct task_struct *task)
{
	return task->flags & PF_KTHREAD;
}

static __always_inline struct proc *proc_of(struct task_struct *task)
{
	return proc_of_leader(task->group_leader);
}

#endif

static __always_inline __u32 tree_of(struct task_struct *task)
{
	struct proc *p = proc_of(task);
	return p ? p->tree : 0;
}

#endif
