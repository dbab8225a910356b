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
	struct task_struct *current = current_task();
	struct inode *inode = mapping->host;
	if (!inode || alone())
		return 0;
	__u32 tree = 0;
	// Writeback and reclaim are nobody; the worker of a loop device writes what was counted on the loop device.
	if (read_field(current, flags) & PF_LOCAL_THROTTLE)
		tree = TREE_LOWER;
	else if (is_nobody(current)) {
		// A kernel thread that writes for others (nfsd): the owner from when the file was last dirty is not
		// this page's.
		__u64 address = (__u64)inode;
		if ((inode->i_mode & S_IFMT) == S_IFREG && !(mapping->i_pages.xa_flags & XA_MARKS))
			bpf_map_delete_elem(&inodes, &address);
		return 0;
	} else
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
// epoch. Two iterators over the maps; the agent reads them, the inodes first, and more often when the maps have filled
// up.
struct swept {
	__u32 inodes_left;
	__u32 pages_left;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct swept);
} sweeps SEC(".maps");

// Longer than a folio that turns dirty takes from its event to its mark.
#define SETTLED_NANOS 1000000000ULL

static __always_inline bool is_dirty(__u64 address, struct inode_owner *o)
{
	if (bpf_ktime_get_ns() - o->epoch < SETTLED_NANOS)
		return true;
	struct inode *inode = (void *)address;
	// The inode may be freed and its memory anything by now; then it does not look like itself.
	if (BPF_CORE_READ(inode, i_ino) != o->number || BPF_CORE_READ(inode, i_generation) != o->generation)
		return false;
	struct address_space *mapping = BPF_CORE_READ(inode, i_mapping);
	return BPF_CORE_READ(mapping, i_pages.xa_flags) & XA_MARKS;
}

SEC("iter/bpf_map_elem")
int sweep_inodes(struct bpf_iter__bpf_map_elem *ctx)
{
	__u32 zero = 0;
	struct swept *out = bpf_map_lookup_elem(&sweeps, &zero);
	__u64 *key = ctx->key;
	struct inode_owner *o = ctx->value;
	if (!out || !key || !o)
		return 0;
	__u64 inode = *key;
	if (is_dirty(inode, o))
		out->inodes_left++;
	else
		bpf_map_delete_elem(&inodes, &inode);
	return 0;
}

SEC("iter/bpf_map_elem")
int sweep_pages(struct bpf_iter__bpf_map_elem *ctx)
{
	__u32 zero = 0;
	struct swept *out = bpf_map_lookup_elem(&sweeps, &zero);
	struct page_key *key = ctx->key;
	struct page_owner *p = ctx->value;
	if (!out || !key || !p)
		return 0;
	struct page_key at = *key;
	struct inode_owner *o = bpf_map_lookup_elem(&inodes, &at.inode);
	if (o && o->epoch == p->epoch)
		out->pages_left++;
	else
		bpf_map_delete_elem(&pages, &at);
	return 0;
}
