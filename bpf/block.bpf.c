//go:build ignore

// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//
// Who pays for a block I/O: decided once for each bio, when it is submitted (block_bio_queue fires once for a bio, not
// again for what is split off it).
//
// In this order:
//   0  the submitter is the lower layer of a stack, or the device    -> lower
//      is a part of another one (dm, md)
//   1  metadata: flagged so, or in the page cache of a device that   -> metadata, of the submitter
//      a file system has in use
//      swap                                                          -> swap
//   2  a folio under writeback: its owner, never the submitter       -> the owner's tree, or unattributed;
//      its file system is on another device                          -> lower
//   3  anything else                                                 -> the submitter's tree
// DISCARD and FLUSH carry no data.
#include "page.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

// Folios of one bio that are looked at. The rest goes to the last owner, and is counted as a loss where it may be
// another's.
#define MAX_STEPS 16384

// A bio_vec; its layout never changed.
struct vec {
	__u64 page;
	__u32 length;
	__u32 offset;
};

struct walk {
	__u64 vecs;
	__u64 disk;
	__u32 index;
	__u32 done;
	__u32 left;
	__u32 submitter;
	__u32 owner; // of the folios last seen
	__u32 writeback;
	__u64 run; // bytes of that owner
	__u32 dev;
	__u32 first; // owner of the first folio
	__u32 started;
	__u32 mixed; // an inode of it has pages of several trees
};

static __always_inline struct device *device(__u32 dev)
{
	struct device *d = bpf_map_lookup_elem(&devices, &dev);
	if (d)
		return d;
	struct device fresh = {};
	bpf_map_update_elem(&devices, &dev, &fresh, BPF_NOEXIST);
	d = bpf_map_lookup_elem(&devices, &dev);
	if (!d)
		lose(LOSS_DEVICES);
	return d;
}

static __noinline void count(__u32 dev, bool write, enum write_class class, __u64 bytes)
{
	if (class >= CLASSES)
		return;
	__u32 zero = 0;
	struct device *d = bpf_map_lookup_elem(&node, &zero);
	if (d)
		add(write ? &d->write_bytes[class] : &d->read_bytes[class], bytes);
	d = device(dev);
	if (d)
		add(write ? &d->write_bytes[class] : &d->read_bytes[class], bytes);
}

static __noinline void pay_write(__u32 dev, __u32 owner, __u64 bytes, bool writeback)
{
	enum write_class class;
	switch (owner) {
	case TREE_UNKNOWN:
		class = CLASS_UNATTRIBUTED;
		break;
	case TREE_LOWER:
		class = CLASS_LOWER;
		break;
	case TREE_METADATA:
		class = CLASS_METADATA;
		break;
	case TREE_SWAP:
		class = CLASS_SWAP;
		break;
	default: {
		struct sums *s = sums_of(owner);
		class = s ? CLASS_TREES : CLASS_OTHER;
		if (s) {
			add(&s->write_bytes, bytes);
			if (writeback)
				add(&s->dirtied_written_bytes, bytes);
		}
	}
	}
	count(dev, true, class, bytes);
}

// The owner of a folio under writeback, of which this bio writes so many bytes.
static __noinline __u32 owner_of_folio(struct folio_view *f, struct walk *w, __u64 bytes)
{
	__u64 mapping = mapping_of(f->head);
	if (!mapping || (mapping & MAPPING_FLAGS))
		return page_bit(f->flags, PG_swapbacked) ? TREE_SWAP : TREE_UNKNOWN;
	struct inode *inode = BPF_CORE_READ((struct address_space *)mapping, host);
	if (!inode)
		return TREE_UNKNOWN;
	bool metadata = false;
	struct block_device *home;
	if (is_block_device(inode)) {
		home = device_of_inode(inode);
		metadata = BPF_CORE_READ(home, bd_holder) != NULL;
	} else {
		home = BPF_CORE_READ(inode, i_sb, s_bdev); // NULL for btrfs, which spans devices
	}
	if (home && (__u64)BPF_CORE_READ(home, bd_disk) != w->disk)
		return TREE_LOWER;

	struct inode_owner *o = owner_of_inode(inode);
	if (!o)
		return metadata ? TREE_METADATA : TREE_UNKNOWN;
	__u32 tree = o->tree;
	if (o->foreign) {
		w->mixed = 1;
		struct page_key at = {.inode = (__u64)inode, .index = index_of(f->head)};
		struct page_owner *own = bpf_map_lookup_elem(&pages, &at);
		if (own && own->epoch == o->epoch) {
			tree = own->tree;
			if (bytes == f->pages << page_shift)
				bpf_map_delete_elem(&pages, &at);
		}
	}
	if (metadata && tree != TREE_LOWER) {
		struct sums *s = tree < TREE_SPECIAL ? sums_of(tree) : NULL;
		if (s)
			add(&s->metadata_write_bytes, bytes);
		return TREE_METADATA;
	}
	return tree;
}

// jbd2, the journal of ext4. It writes copies of blocks, too, which belong to no file.
static __always_inline bool is_journal_writer(void)
{
	char name[8] = {};
	bpf_get_current_comm(name, sizeof(name));
	return name[0] == 'j' && name[1] == 'b' && name[2] == 'd' && name[3] == '2' && name[4] == '/';
}

// One folio, or the part of it that this bio writes.
static long write_step(__u32 i, struct walk *w)
{
	if (!w->left)
		return 1;
	struct vec v = {};
	bpf_probe_read_kernel(&v, sizeof(v), (void *)(w->vecs + (__u64)w->index * sizeof(v)));
	__u64 offset = (__u64)v.offset + w->done;
	__u64 page = v.page + (offset >> page_shift) * bpf_core_type_size(struct page);
	__u64 in = offset & (PAGE_SIZE - 1);
	__u64 n = v.length - w->done;
	if (v.length <= w->done || n > w->left)
		n = w->left;

	struct folio_view f;
	view_folio(page, &f);
	if (f.pages > 1)
		in += ((page - f.head) / bpf_core_type_size(struct page)) << page_shift;
	__u64 room = (f.pages << page_shift) - in;
	if (n > room && room <= (f.pages << page_shift))
		n = room;

	bool writeback = page_bit(f.flags, PG_writeback);
	__u32 owner = w->submitter;
	if (writeback)
		owner = owner_of_folio(&f, w, n);
	else if (owner == TREE_UNKNOWN && (is_of_used_device(mapping_of(f.head)) || is_journal_writer()))
		owner = TREE_METADATA; // on 5.10 without the flag

	if (!w->started) {
		w->started = 1;
		w->first = owner;
		w->owner = owner;
		w->writeback = writeback;
	} else if (owner != w->owner || writeback != w->writeback) {
		w->mixed = 1;
		pay_write(w->dev, w->owner, w->run, w->writeback);
		w->run = 0;
		w->owner = owner;
		w->writeback = writeback;
	}
	w->run += n;
	w->left -= n;
	w->done += n;
	if (w->done >= v.length) {
		w->index++;
		w->done = 0;
	}
	return 0;
}

static __always_inline void follow(struct bio *bio, __u32 tree)
{
	if (!with_latency)
		return;
	__u64 key = address_of(bio);
	struct submitted s = {.sector = bio->bi_iter.bi_sector, .tree = tree};
	if (bpf_map_update_elem(&bios, &key, &s, BPF_ANY))
		lose(LOSS_LATENCY);
}

#ifdef EARLY

// As with the walks over threads: see usage.h.
#define NESTED 4

struct walks {
	__u64 level;
	struct walk at[NESTED];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct walks);
} walks SEC(".maps");

static __always_inline struct walk *walk_at(__u64 level)
{
	__u32 zero = 0;
	struct walks *all = bpf_map_lookup_elem(&walks, &zero);
	if (!all || level >= NESTED)
		return NULL;
	barrier_var(level); // or the bound that the verifier needs is folded into the comparison
	return &all->at[level & (NESTED - 1)];
}

__noinline int walk_one_folio(__u64 level)
{
	struct walk *w = walk_at(level);
	return w ? write_step(0, w) : 1;
}

__noinline int walk_some_folios(__u64 level)
{
	for (int i = 0; i < 128; i++)
		if (walk_one_folio(level))
			return 1;
	return 0;
}

static __always_inline void walk_folios(struct walk *w)
{
	__u32 zero = 0;
	struct walks *all = bpf_map_lookup_elem(&walks, &zero);
	if (!all)
		return;
	__u64 level = all->level++;
	struct walk *mine = walk_at(level);
	if (mine) {
		*mine = *w;
		for (int i = 0; i < MAX_STEPS / 128; i++)
			if (walk_some_folios(level))
				break;
		*w = *mine;
	}
	all->level--;
}

#else

static __always_inline void walk_folios(struct walk *w)
{
	// A copy of which the verifier knows nothing: from known numbers it follows every sum of every step.
	struct walk copy;
	bpf_probe_read_kernel(&copy, sizeof(copy), w);
	bpf_loop(MAX_STEPS, write_step, &copy, 0);
	*w = copy;
}

#endif

static __always_inline void charge_write(struct walk *w, struct bio *bio)
{
	walk_folios(w);
	if (w->left) {
		w->run += w->left;
		if (w->mixed)
			lose(LOSS_WALK);
		if (!w->started)
			w->owner = w->first = w->submitter;
	}
	pay_write(w->dev, w->owner, w->run, w->writeback);
	if (w->first < TREE_SPECIAL) {
		struct sums *s = sums_of(w->first);
		if (s) {
			add(&s->write_ops, 1);
			follow(bio, w->first);
		}
	}
}

static __always_inline void charge_read(struct bio *bio, __u32 dev, __u32 tree, __u64 bytes)
{
	struct vec v = {};
	bpf_probe_read_kernel(&v, sizeof(v),
			      (void *)(address_of(bio->bi_io_vec) + (__u64)bio->bi_iter.bi_idx * sizeof(v)));
	struct folio_view f;
	view_folio(v.page, &f);
	if (page_bit(f.flags, PG_swapbacked) && page_bit(f.flags, PG_swapcache)) {
		count(dev, false, CLASS_SWAP, bytes);
		return;
	}
	// All pages of a read into the page cache are alike: new, of a file, not yet up to date.
	__u64 mapping = mapping_of(f.head);
	bool miss = mapping && !(mapping & MAPPING_FLAGS) && !page_bit(f.flags, PG_uptodate);
	if (miss && is_of_used_device(mapping)) {
		count(dev, false, CLASS_METADATA, bytes); // read ahead without the flag
		return;
	}
	struct sums *s = sums_of(tree);
	count(dev, false, s ? CLASS_TREES : CLASS_OTHER, bytes);
	if (!s)
		return;
	add(&s->read_bytes, bytes);
	add(&s->read_ops, 1);
	follow(bio, tree);
	if (miss)
		add(&s->cache_miss_bytes, bytes);
}

static __always_inline bool carries_data(__u32 op)
{
	if (op == REQ_OP_READ || op == REQ_OP_WRITE)
		return true;
	if (bpf_core_enum_value_exists(enum req_op, REQ_OP_ZONE_APPEND))
		return op == bpf_core_enum_value(enum req_op, REQ_OP_ZONE_APPEND);
	if (bpf_core_enum_value_exists(enum req_opf, REQ_OP_ZONE_APPEND___opf))
		return op == bpf_core_enum_value(enum req_opf, REQ_OP_ZONE_APPEND___opf);
	return false;
}

static __always_inline bool is_swap(__u32 flags)
{
	if (!bpf_core_enum_value_exists(enum req_flag_bits, __REQ_SWAP))
		return false;
	return flags & (1U << bpf_core_enum_value(enum req_flag_bits, __REQ_SWAP));
}

// How much of the current bio_vec does not belong to this bio, or no longer.
static __always_inline __u32 done_of(struct bio *bio)
{
	__u32 done = 0;
	struct bvec_iter___offset *newer = (void *)&bio->bi_iter;
	if (bpf_core_field_exists(newer->bi_offset))
		bpf_core_read(&done, sizeof(done), &newer->bi_offset);
	else
		bpf_core_read(&done, sizeof(done), &bio->bi_iter.bi_bvec_done);
	return done;
}

static __always_inline int charge(struct bio *bio, struct gendisk *disk, struct rb_node *holders)
{
	__u32 flags = bio->bi_opf;
	__u32 op = flags & REQ_OP_MASK;
	__u64 bytes = bio->bi_iter.bi_size;
	bool zeroes = op == REQ_OP_WRITE_ZEROES || op == REQ_OP_SECURE_ERASE;
	if (!bytes || (!zeroes && !carries_data(op)) || alone())
		return 0;
	bool write = op != REQ_OP_READ;
	// A dev_t as the kernel writes it.
	__u32 dev = (__u32)disk->major << 20 | disk->first_minor;

	// What dm and md pass on within the submission shows in bio_list. Their threads (dm-crypt, RAID 5) and a
	// finished plug (RAID 1) pass on outside of one; then the link to the upper device in sysfs,
	// /sys/block/X/holders, tells.
	struct task_struct *current = current_task();
	if (holders || read_field(current, flags) & PF_LOCAL_THROTTLE || read_field(current, bio_list)) {
		count(dev, write, CLASS_LOWER, bytes);
		return 0;
	}
	if (zeroes) {
		count(dev, true, CLASS_ZEROES, bytes);
		return 0;
	}
	__u32 tree = tree_of(current);
	if (flags & (1U << bpf_core_enum_value(enum req_flag_bits, __REQ_META))) {
		count(dev, write, CLASS_METADATA, bytes);
		struct sums *s = sums_of(tree);
		if (write && s)
			add(&s->metadata_write_bytes, bytes);
		return 0;
	}
	if (!write) {
		charge_read(bio, dev, tree, bytes);
		return 0;
	}
	if (is_swap(flags)) {
		count(dev, true, CLASS_SWAP, bytes);
		return 0;
	}
	struct walk w = {
	    .vecs = (__u64)bio->bi_io_vec,
	    .disk = (__u64)disk,
	    .index = bio->bi_iter.bi_idx,
	    .done = done_of(bio),
	    .left = bytes,
	    .submitter = is_nobody(current) ? TREE_UNKNOWN : tree,
	    .dev = dev,
	};
	charge_write(&w, bio);
	return 0;
}

// 5.11 and newer.
SEC("tp_btf/block_bio_queue")
int BPF_PROG(block_queue, struct bio *bio)
{
	struct block_device *bdev = bio->bi_bdev;
	return charge(bio, bdev->bd_disk, bdev->bd_holder_dir->sd->dir.children.rb_node);
}

// 5.10.
SEC("tp_btf/block_bio_queue")
int BPF_PROG(block_queue_queue, struct request_queue *q, struct bio *bio)
{
	struct bio___disk *old = (void *)bio;
	if (!bpf_core_field_exists(old->bi_disk))
		return 0;
	// The bio no longer knows the partition: only whole devices are seen to be part of another.
	struct gendisk___part *whole = (void *)old->bi_disk;
	struct rb_node *holders = NULL;
	if (bpf_core_field_exists(whole->part0.holder_dir))
		holders = BPF_CORE_READ(whole, part0.holder_dir, sd, dir.children.rb_node);
	return charge(bio, old->bi_disk, holders);
}
