// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//
// The kernel types that the programs read, trimmed to the fields they use. Every record is relocated against the
// running kernel's BTF at load time (CO-RE), so order and offsets here mean nothing. A suffix after ___ names a
// flavour: the same kernel type as another version has it.
#ifndef PROV4ML_KERNEL_H
#define PROV4ML_KERNEL_H

typedef signed char __s8;
typedef unsigned char __u8;
typedef short __s16;
typedef unsigned short __u16;
typedef int __s32;
typedef unsigned int __u32;
typedef long long __s64;
typedef unsigned long long __u64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u32 __wsum;

typedef _Bool bool;
#define true 1
#define false 0
#define NULL ((void *)0)

// linux/bpf.h
#define BPF_MAP_TYPE_HASH 1
#define BPF_MAP_TYPE_ARRAY 2
#define BPF_MAP_TYPE_PERCPU_HASH 5
#define BPF_MAP_TYPE_PERCPU_ARRAY 6
#define BPF_MAP_TYPE_LRU_HASH 9
#define BPF_MAP_TYPE_HASH_OF_MAPS 13
#define BPF_MAP_TYPE_RINGBUF 27
#define BPF_MAP_TYPE_TASK_STORAGE 29
#define BPF_F_NO_PREALLOC 1
#define BPF_F_MMAPABLE (1 << 10)
#define BPF_ANY 0
#define BPF_NOEXIST 1
#define BPF_LOCAL_STORAGE_GET_F_CREATE 1

// linux/sched.h
#define CLONE_THREAD 0x00010000
#define PF_EXITING 0x00000004
#define PF_LOCAL_THROTTLE 0x00100000
#define PF_KTHREAD 0x00200000

// linux/stat.h
#define S_IFMT 0170000
#define S_IFBLK 0060000
#define S_IFREG 0100000

// linux/magic.h
#define BTRFS_SUPER_MAGIC 0x9123683E
#define BTRFS_BTREE_INODE 1 // no file's number; linux/btrfs_tree.h
#define BCACHEFS_SUPER_MAGIC 0xca451a4e

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

typedef struct {
	int counter;
} atomic_t;

struct list_head {
	struct list_head *next, *prev;
};

struct upid {
	int nr;
};

struct pid {
	unsigned int level;
	struct upid numbers[1];
};

struct sched_entity {
	__u64 sum_exec_runtime;
};

// CONFIG_SCHED_INFO.
struct sched_info {
	unsigned long long run_delay;
};

struct task_io_accounting {
	__u64 rchar;
	__u64 wchar;
};

struct percpu_counter {
	__s64 count;
	__s32 *counters;
};

struct task_struct;

struct mm_struct {
	unsigned long hiwater_rss;
	struct task_struct *owner; // with CONFIG_MEMCG
	struct percpu_counter rss_stat[4];
};

// Before 6.2: one atomic per kind, and what a thread has not yet added to it in the thread.
struct mm_rss_stat {
	struct {
		__s64 counter;
	} count[4];
};

struct mm_struct___atomic {
	struct mm_rss_stat rss_stat;
};

struct task_rss_stat {
	int count[4];
};

struct task_struct___rss {
	struct task_rss_stat rss_stat;
};

struct seqcount {
	unsigned int sequence;
};

struct signal_struct {
	atomic_t live;
	struct list_head thread_head;
	struct task_struct *group_exec_task;
	unsigned long min_flt, maj_flt, maxrss;
	unsigned long long sum_sched_runtime;
	struct seqcount stats_lock; // a seqlock_t, whose first word is the count
};

// Before 5.17.
struct signal_struct___exit_task {
	struct task_struct *group_exit_task;
};

struct bio_list;

struct task_struct {
	unsigned int flags;
	int exit_state;
	int pid, tgid;
	struct sched_entity se;
	struct mm_struct *mm;
	struct task_struct *real_parent;
	struct task_struct *group_leader;
	struct list_head thread_node;
	struct pid *thread_pid;
	__u64 start_boottime;
	unsigned long min_flt, maj_flt;
	struct signal_struct *signal;
	struct bio_list *bio_list;
	struct task_io_accounting ioac;
	unsigned int in_iowait : 1;
	char comm[16];
};

struct task_struct___sched_info {
	struct sched_info sched_info;
};

struct block_device;
struct inode;

struct super_block {
	unsigned long s_magic;
	struct block_device *s_bdev;
};

struct xarray {
	unsigned int xa_flags;
};

struct address_space {
	struct inode *host;
	struct xarray i_pages;
};

struct inode {
	unsigned short i_mode;
	struct super_block *i_sb;
	struct address_space *i_mapping;
	unsigned long i_ino;
	__u32 i_generation;
};

// A block device's inode and its block_device are one allocation; block_device stands first.
struct bdev_inode {
	struct inode vfs_inode;
};

struct page {
	unsigned long compound_head;
	struct address_space *mapping;
	unsigned long index;
};

// From 7.0: the pointer, or a mask where struct page has a size that is a power of two.
struct page___info {
	unsigned long compound_info;
};

// Before 5.18.
struct page___order {
	unsigned char compound_order;
};

struct folio {
	struct address_space *mapping;
	unsigned long index;
	unsigned int _nr_pages;
};

// 5.18 to 6.14.
struct folio___old {
	unsigned int _folio_nr_pages;
};

struct bpf_array {
	void *pptrs[1];
};

struct gendisk {
	int major;
	int first_minor;
};

// A directory of sysfs, whose entries are a tree.
struct rb_node;

struct rb_root {
	struct rb_node *rb_node;
};

struct kernfs_elem_dir {
	struct rb_root children;
};

struct kernfs_node {
	struct kernfs_elem_dir dir;
};

struct kobject {
	struct kernfs_node *sd;
};

struct block_device {
	struct gendisk *bd_disk;
	void *bd_holder;
	struct kobject *bd_holder_dir;
};

// 5.10.
struct hd_struct {
	struct kobject *holder_dir;
};

struct gendisk___part {
	struct hd_struct part0;
};

// From 7.3: bi_bvec_done by another name.
struct bvec_iter___offset {
	unsigned int bi_offset;
};

struct bio_vec {
	struct page *bv_page;
	unsigned int bv_len;
	unsigned int bv_offset;
};

struct bvec_iter {
	__u64 bi_sector;
	unsigned int bi_size;
	unsigned int bi_idx;
	unsigned int bi_bvec_done;
};

struct bio {
	struct block_device *bi_bdev;
	unsigned int bi_opf;
	struct bvec_iter bi_iter;
	struct bio_vec *bi_io_vec;
	void *bi_private;
};

// Before 5.12.
struct bio___disk {
	struct gendisk *bi_disk;
};

struct request_queue;

struct request {
	unsigned int cmd_flags;
	unsigned int __data_len;
	struct bio *bio;
	__u64 start_time_ns;
};

enum pageflags {
	PG_uptodate = 3,
	PG_writeback = 1,
	PG_head = 6,
	PG_swapbacked = 17,
	PG_swapcache = 10,
};

enum req_flag_bits {
	__REQ_META = 12,
	__REQ_SWAP = 24,
};

// 6.0 and newer; enum req_opf before.
enum req_op {
	REQ_OP_ZONE_APPEND = 7,
};

enum req_opf {
	REQ_OP_ZONE_APPEND___opf = 13,
};

#pragma clang attribute pop

// Their numbers never changed.
#define REQ_OP_MASK 0xff
#define REQ_OP_READ 0
#define REQ_OP_WRITE 1
#define REQ_OP_SECURE_ERASE 5
#define REQ_OP_WRITE_ZEROES 9

// The contexts of iterators; the kernel fixes their layout.
struct bpf_iter_meta;

struct bpf_map;

struct bpf_iter__bpf_map_elem {
	struct bpf_iter_meta *meta;
	struct bpf_map *map;
	void *key;
	void *value;
};

struct bpf_iter__task {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
};

#include "headers/bpf_helpers.h"
#include "headers/bpf_core_read.h"
#include "headers/bpf_tracing.h"

// Every source is compiled twice: for kernels that have bpf_loop (5.17), and with EARLY for those before, back to 5.10.
// Those have no task storage (5.11), no atomics that return a value (5.12), and know the current task only by its
// address (5.11), through which nothing can be read directly.
#ifdef EARLY
#define current_task() ((struct task_struct *)bpf_get_current_task())
#define read_field(pointer, field) BPF_CORE_READ(pointer, field)
#else
#define current_task() bpf_get_current_task_btf()
#define read_field(pointer, field) ((pointer)->field)
#endif

#endif
