//go:build ignore

// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//
// How long a device takes: from the issue of a request to its completion. The request belongs to the tree of its first
// bio, which the block program notes when the bio is submitted. Devices that take bios without making requests of them
// (zram, brd, dm) have no latency.
#include "maps.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

struct flight {
	__u64 issued_nanos;
	__u64 start_nanos; // of the request: its address is used again
	__u32 tree;
	__u32 write;
};

// Requests of trees in flight, by address of the request.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	// Made beforehand: at 100,000 requests a second, allocating costs a fifth of it all.
	__uint(max_entries, MAX_FLIGHTS);
	__type(key, __u64);
	__type(value, struct flight);
} flights SEC(".maps");

static __always_inline int issue(struct request *rq)
{
	if (alone())
		return 0;
	__u64 bio = address_of(rq->bio);
	struct submitted *first = bpf_map_lookup_elem(&bios, &bio);
	if (!first)
		return 0;
	if (first->sector != BPF_CORE_READ(rq, bio, bi_iter.bi_sector)) {
		bpf_map_delete_elem(&bios, &bio); // an earlier bio at this address
		return 0;
	}
	struct flight f = {
	    .issued_nanos = bpf_ktime_get_ns(),
	    .start_nanos = rq->start_time_ns,
	    .tree = first->tree,
	    .write = (BPF_CORE_READ(rq, cmd_flags) & REQ_OP_MASK) != REQ_OP_READ,
	};
	__u64 key = address_of(rq);
	if (bpf_map_update_elem(&flights, &key, &f, BPF_ANY))
		lose(LOSS_LATENCY);
	bpf_map_delete_elem(&bios, &bio);
	return 0;
}

// What is cut off the front of a bio becomes a bio of its own; the bio goes on with the rest.
static __always_inline int split(struct bio *front, __u64 rest)
{
	__u64 bio = (__u64)BPF_CORE_READ(front, bi_private);
	struct submitted *s = bpf_map_lookup_elem(&bios, &bio);
	if (!s)
		return 0;
	__u64 key = address_of(front);
	struct submitted of_front = {.tree = s->tree, .sector = front->bi_iter.bi_sector};
	s->sector = rest;
	bpf_map_update_elem(&bios, &key, &of_front, BPF_ANY);
	return 0;
}

// A request may complete in parts; the last one has all that is left.
static __always_inline int complete(struct request *rq, unsigned int bytes)
{
	__u64 key = address_of(rq);
	struct flight *f = bpf_map_lookup_elem(&flights, &key);
	if (!f || bytes < rq->__data_len)
		return 0;
	// Of an earlier request, whose completion was not seen, or which went on while nobody counted.
	if (f->start_nanos != rq->start_time_ns || alone()) {
		bpf_map_delete_elem(&flights, &key);
		return 0;
	}
	__u64 nanos = bpf_ktime_get_ns() - f->issued_nanos;
	__u32 tree = f->tree;
	struct histograms *h = bpf_map_lookup_elem(&latencies, &tree);
	if (!h) {
		tree = answering(tree);
		h = bpf_map_lookup_elem(&latencies, &tree);
	}
	if (h) {
		add(f->write ? &h->write_nanos : &h->read_nanos, nanos);
		__u32 bucket = 0;
		for (__u32 shift = 32; shift; shift >>= 1)
			if (nanos >> shift) {
				nanos >>= shift;
				bucket += shift;
			}
		bucket &= 63;
		add(f->write ? &h->write[bucket] : &h->read[bucket], 1);
	}
	bpf_map_delete_elem(&flights, &key);
	return 0;
}

// 5.11 and newer.
SEC("tp_btf/block_rq_issue")
int BPF_PROG(request_issue, struct request *rq)
{
	return issue(rq);
}

// Before 5.11.
SEC("tp_btf/block_rq_issue")
int BPF_PROG(request_issue_queue, struct request_queue *q, struct request *rq)
{
	return issue(rq);
}

// The error's type changed in 5.16; it is not looked at.
SEC("tp_btf/block_rq_complete")
int BPF_PROG(request_complete, struct request *rq, int error, unsigned int bytes)
{
	return complete(rq, bytes);
}

// 5.11 and newer.
SEC("tp_btf/block_split")
int BPF_PROG(bio_split, struct bio *front, unsigned int rest)
{
	return split(front, rest);
}

// Before 5.11.
SEC("tp_btf/block_split")
int BPF_PROG(bio_split_queue, struct request_queue *q, struct bio *front, unsigned int rest)
{
	return split(front, rest);
}
