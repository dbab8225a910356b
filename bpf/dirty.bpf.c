//go:build ignore

// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//
// Who made a page dirty. An inode's first dirtier, since it last was wholly clean, is its default owner; a folio that
// another tree makes dirty has an entry of its own until it is written.
//
// The kernel reports a folio that turns dirty under the lock of its page cache, so these programs are serial per inode.
// A folio rewritten while it is dirty reports nothing and stays with its first dirtier.
#include "page.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

// What does not reach a block device of this node (NFS, FUSE, Lustre) has no owner.
static __always_inline bool reaches_device(struct super_block *sb)
{
	unsigned long magic = BPF_CORE_READ(sb, s_magic);
	return BPF_CORE_READ(sb, s_bdev) || magic == BTRFS_SUPER_MAGIC || magic == BCACHEFS_SUPER_MAGIC;
}

static __always_inline int made_dirty(__u64 page, struct address_space *mapping)
{
	struct task_struct *current = bpf_get_current_task_btf();
	struct inode *inode = mapping->host;
	if (!inode || alone())
		return 0;
	__u32 tree = 0;
	// Writeback and reclaim are nobody; the worker of a loop device writes what was counted on the loop device.
	if (current->flags & PF_LOCAL_THROTTLE)
		tree = TREE_LOWER;
	else if (current->flags & PF_KTHREAD)
		return 0;
	else
		tree = tree_of(current);

	bool data = true;
	if ((inode->i_mode & S_IFMT) == S_IFBLK) {
		// A device in use by a file system: the page holds that file system's metadata.
		struct block_device *device = device_of_inode(inode);
		data = !BPF_CORE_READ(device, bd_holder);
	} else {
		if (!reaches_device(inode->i_sb))
			return 0;
		// The inode whose pages are the trees of a btrfs.
		data = inode->i_ino != BTRFS_BTREE_INODE || BPF_CORE_READ(inode, i_sb, s_magic) != BTRFS_SUPER_MAGIC;
	}

	struct folio_view f;
	view_folio(page, &f);

	if (data && tree && tree < TREE_SPECIAL) {
		struct sums *s = sums_of(tree);
		if (s)
			add(&s->dirtied_bytes, f.pages << page_shift);
	}

	__u64 key = (__u64)inode;
	struct inode_owner *o = owner_of_inode(inode);
	bool clean = !(mapping->i_pages.xa_flags & XA_MARKS);
	if (!o) {
		// Dirty pages without an entry: dirtied before attaching, by a kernel thread, or the entry was lost.
		struct inode_owner fresh = {
		    .tree = clean ? tree : TREE_UNKNOWN,
		    .epoch = bpf_ktime_get_ns(),
		    .number = inode->i_ino,
		    .generation = inode->i_generation,
		};
		if (bpf_map_update_elem(&inodes, &key, &fresh, BPF_ANY)) {
			lose(LOSS_INODES);
			return 0;
		}
		if (clean)
			return 0;
		o = bpf_map_lookup_elem(&inodes, &key);
		if (!o)
			return 0;
	} else if (clean) {
		o->tree = tree;
		o->epoch = bpf_ktime_get_ns();
		o->foreign = 0;
		return 0;
	}

	struct page_key at = {.inode = key, .index = index_of(f.head)};
	if (o->tree == tree) {
		if (o->foreign)
			bpf_map_delete_elem(&pages, &at);
		return 0;
	}
	struct page_owner own = {.tree = tree, .epoch = o->epoch};
	if (bpf_map_update_elem(&pages, &at, &own, BPF_ANY))
		lose(LOSS_PAGES);
	else
		o->foreign = 1;
	return 0;
}

// 5.18 and newer.
SEC("tp_btf/writeback_dirty_folio")
int BPF_PROG(dirty_folio, struct folio *folio, struct address_space *mapping)
{
	return mapping ? made_dirty(address_of(folio), mapping) : 0;
}

// Before 5.18.
SEC("tp_btf/writeback_dirty_page")
int BPF_PROG(dirty_page, struct page *page, struct address_space *mapping)
{
	return mapping ? made_dirty(address_of(page), mapping) : 0;
}

// Entries that nothing will ask for again: the inode is wholly clean or gone, or the page's entry is of an earlier
// epoch. The agent runs this when the maps have filled up some more.
struct swept {
	__u64 now;
	__u32 inodes_left;
	__u32 pages_left;
};

// Longer than a folio that turns dirty takes from its event to its mark.
#define SETTLED_NANOS 1000000000ULL

static long sweep_inode(void *map, __u64 *key, struct inode_owner *o, struct swept *s)
{
	if (s->now - o->epoch < SETTLED_NANOS) {
		s->inodes_left++;
		return 0;
	}
	struct inode *inode = (void *)*key;
	// The inode may be freed and its memory anything by now; then it does not look like itself.
	if (BPF_CORE_READ(inode, i_ino) == o->number && BPF_CORE_READ(inode, i_generation) == o->generation) {
		struct address_space *mapping = BPF_CORE_READ(inode, i_mapping);
		if (BPF_CORE_READ(mapping, i_pages.xa_flags) & XA_MARKS) {
			s->inodes_left++;
			return 0;
		}
	}
	__u64 k = *key;
	bpf_map_delete_elem(&inodes, &k);
	return 0;
}

static long sweep_page(void *map, struct page_key *key, struct page_owner *p, struct swept *s)
{
	__u64 inode = key->inode;
	struct inode_owner *o = bpf_map_lookup_elem(&inodes, &inode);
	if (o && o->epoch == p->epoch) {
		s->pages_left++;
		return 0;
	}
	struct page_key k = *key;
	bpf_map_delete_elem(&pages, &k);
	return 0;
}

SEC("syscall")
int sweep(struct swept *out)
{
	struct swept s = {.now = bpf_ktime_get_ns()};
	bpf_for_each_map_elem(&inodes, sweep_inode, &s, 0);
	bpf_for_each_map_elem(&pages, sweep_page, &s, 0);
	*out = s;
	return 0;
}
