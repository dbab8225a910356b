// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//
// Pages, folios and the inodes behind them, across the kernels' layouts.
#ifndef PROV4ML_PAGE_H
#define PROV4ML_PAGE_H

#include "maps.h"

// The low bits of page->mapping say that it is something else than a file's: anonymous, KSM, movable.
#define MAPPING_FLAGS 3UL

// xa_flags of a page cache: its own flags are the lowest bits; the marks for dirty, under writeback and about to be
// written stand from __GFP_BITS_SHIFT on, which was 23 or more in every kernel.
#define XA_MARKS 0xfff00000U

#define PAGE_SIZE (1UL << page_shift)
#define page_bit(flags, name) (((flags) >> bpf_core_enum_value(enum pageflags, name)) & 1)

struct folio_view {
	__u64 head; // address of its first struct page
	__u64 flags;
	__u64 pages;
};

static __always_inline __u64 pages_of_head(__u64 head, __u64 flags)
{
	if (!page_bit(flags, PG_head))
		return 1;
	struct folio *folio = (void *)head;
	struct folio___old *old = (void *)head;
	if (bpf_core_field_exists(folio->_nr_pages))
		return BPF_CORE_READ(folio, _nr_pages);
	if (bpf_core_field_exists(old->_folio_nr_pages))
		return BPF_CORE_READ(old, _folio_nr_pages);
	struct page___order *second = (void *)(head + bpf_core_type_size(struct page));
	if (bpf_core_field_exists(second->compound_order))
		return 1UL << (BPF_CORE_READ(second, compound_order) & 31);
	return 1;
}

static __always_inline __u64 head_of(__u64 page)
{
	struct page *p = (void *)page;
	struct page___info *i = (void *)page;
	__u64 link;
	if (bpf_core_field_exists(i->compound_info))
		link = BPF_CORE_READ(i, compound_info);
	else
		link = BPF_CORE_READ(p, compound_head);
	if (!(link & 1))
		return page;
	// A mask has all its upper bits set; no struct page lies in the last 4 GiB.
	if (link >= 0xffffffff00000000UL)
		return page & link;
	return link - 1;
}

static __always_inline void view_folio(__u64 page, struct folio_view *f)
{
	f->head = head_of(page);
	f->flags = 0;
	// The flags are the first word of struct page in every kernel; newer ones wrap them in a struct.
	bpf_probe_read_kernel(&f->flags, sizeof(f->flags), (void *)f->head);
	f->pages = pages_of_head(f->head, f->flags);
}

static __always_inline __u64 mapping_of(__u64 head)
{
	struct folio *folio = (void *)head;
	struct page *page = (void *)head;
	if (bpf_core_field_exists(folio->mapping))
		return (__u64)BPF_CORE_READ(folio, mapping);
	return (__u64)BPF_CORE_READ(page, mapping);
}

static __always_inline __u64 index_of(__u64 head)
{
	struct folio *folio = (void *)head;
	struct page *page = (void *)head;
	if (bpf_core_field_exists(folio->index))
		return BPF_CORE_READ(folio, index);
	return BPF_CORE_READ(page, index);
}

static __always_inline bool is_block_device(struct inode *inode)
{
	return (BPF_CORE_READ(inode, i_mode) & S_IFMT) == S_IFBLK;
}

static __always_inline struct block_device *device_of_inode(struct inode *inode)
{
	return (void *)((__u64)inode - bpf_core_field_offset(struct bdev_inode, vfs_inode));
}

// The page belongs to a device that a file system has in use, so it holds that file system's metadata.
static __always_inline bool is_of_used_device(__u64 mapping)
{
	if (!mapping || (mapping & MAPPING_FLAGS))
		return false;
	struct inode *inode = BPF_CORE_READ((struct address_space *)mapping, host);
	return inode && is_block_device(inode) && BPF_CORE_READ(device_of_inode(inode), bd_holder);
}

// The entry of an inode, if it is still this inode's: the pointer is reused.
static __always_inline struct inode_owner *owner_of_inode(struct inode *inode)
{
	__u64 key = (__u64)inode;
	struct inode_owner *o = bpf_map_lookup_elem(&inodes, &key);
	if (!o || o->number != BPF_CORE_READ(inode, i_ino) || o->generation != BPF_CORE_READ(inode, i_generation))
		return NULL;
	return o;
}

#endif
