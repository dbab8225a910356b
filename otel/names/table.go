package names

// Bounds that several rows share.
const (
	wholeBlocks  = "whole blocks of the file system: a file of 100 bytes writes 4096"
	wholeFolios  = "whole folios: a write of one byte makes the folio around it dirty, a page or, on file systems with large folios, up to some MiB"
	counterSlack = "short by less than 3 × CPUs × max(32, 2 × CPUs) pages a process, which CPUs keep to themselves"
	histogram    = "interpolated inside a power-of-two bucket; absent for devices without requests (zram, brd, dm)"
	sharedRSS    = "a page that forked workers share counts once for each of them"
	askedFor     = "pipes and sockets are in it; io_uring's buffered reads are not"
	// A double holds every integer up to there.
	exactDouble = "exact to 2^53"
	inCgroup    = "all processes of the cgroup, those of no tree included; at most 10 ms old"
	nodeWide    = "the whole node, all devices; overlapping windows of two processes report the same bytes twice, so never add them up over processes"
)

// Rows returns the table in the order of the documents. The caller may change what it gets.
func Rows() []Row {
	read := Attribute{DiskDirection, "read"}
	write := Attribute{DiskDirection, "write"}

	return []Row{
		call("context", String, "", "Phase of the run: `training`, `validation`, `evaluation`, `testing`, or what the script gave; absent when it gave None."),
		call("step", Int, "", "Step that the script gave; absent when it gave None."),
		call("label", String, "", "Label of a FLOPs call; absent when empty."),
		call("run.id", String, "", "The training job; the same on all its ranks and nodes."),
		call("rank", Int, "", "Rank that the launcher gave; absent without a launcher."),
		call("attempt", Int, "", "Restarts of the job before this one."),
		call("unavailable", StringArray, "", "Reasons of the values that are not there, a sentence each; absent when nothing is missing."),
		call("window.first", Bool, "", "The window starts when the agent first heard of the process, not at its hello."),
		call("window.gap", Bool, "", "For a part of the window nothing was counted (the agent was replaced by one with other maps)."),
		call("window.incomplete", Bool, "", "A part is missing: values are lower bounds. `unavailable` says which part and why."),
		call("timestamp", Int, "ms", "Time since the Unix epoch by which the script labelled the sample; absent when it gave none. Metric points take it where that keeps their order."),
		call("lag_seconds", Double, "s", "How long the call was under way when it was measured; absent when not known or within 10 ms."),
		call("enclosing_pids", IntArray, "", "Roots of the trees around this one, innermost first; absent when there are none. If one of them logs as well, this span's tree values are in its values too: add up only the outermost."),
		call("segment.number", Int, "", "On `segment` and `segment_end`: 0, 1, 2 ... of that context."),
		call("segment.spans", Int, "", "On `segment_end`: log spans in the segment."),

		percent("memory_usage", "system.memory.utilization", Host, "Host memory in use: 100 × (total − available) / total.", ""),
		percent("disk_usage", "system.filesystem.utilization", Host, "Fullness of the file system that the caller sees as `/`.", "a further directory that the agent watches is `disk_usage.<directory>`, and has `system.filesystem.mountpoint` as metric"),
		percent("cpu_usage", "system.cpu.utilization", Host, "Host CPU time that was not idle, over the window.", "from counters of 1/100 s"),
		percent("gpu_memory_usage", "", GPU, "Memory in use of the GPUs that the tree uses.", ""),
		percent("gpu_usage", "", GPU, "Utilization over the window of the GPUs that the tree uses.", ""),

		metric(Sum, "disk.read_bytes", Int, "By", Tree, "Data read from block devices, metadata apart.", "whole blocks of the file system, readahead included", read),
		metric(Sum, "disk.write_bytes", Int, "By", Tree, "Data that reached block devices, metadata apart, late writeback and writes of exited processes included.", wholeBlocks, write),
		metric(Sum, "disk.read_ops", Int, "{operation}", Tree, "Reads, as submitted to the block layer (bios).", "", read),
		metric(Sum, "disk.write_ops", Int, "{operation}", Tree, "Writes, as submitted to the block layer (bios).", "", write),
		metric(Sum, "disk.metadata_write_bytes", Int, "By", Tree, "File system metadata that the tree's own processes submitted; a journal thread's is the node's.", "", write),
		metric(Sum, "disk.dirtied_bytes", Int, "By", Tree, "Page cache that the tree made dirty in the window, written back or not.", wholeFolios, write),
		metric(Gauge, "disk.pending_write_bytes", Int, "By", Tree, "Dirtied and not written yet at the window's end.", "approximate: truncating a dirty file is not seen, and of a large folio only the blocks written to are written back", write),

		metric(Gauge, "disk.other_write_bytes", Int, "By", Node, "Data written by processes that belong to no tree.", nodeWide, write),
		metric(Gauge, "disk.unattributed_write_bytes", Int, "By", Node, "Data whose writer is not known: dirtied before the agent attached, by a kernel thread, or its entry was lost.", nodeWide, write),
		metric(Gauge, "disk.swap_write_bytes", Int, "By", Node, "Swap.", nodeWide, write),
		metric(Gauge, "disk.lower_write_bytes", Int, "By", Node, "Data that a stacked device (loop, dm, md) passed on: counted above it already.", nodeWide, write),
		metric(Gauge, "disk.zeroes_write_bytes", Int, "By", Node, "Zeroes and secure erases that the device made itself.", nodeWide, write),
		metric(Gauge, "disk.node_metadata_write_bytes", Int, "By", Node, "File system metadata of the whole node, the trees' included.", nodeWide, write),

		metric(Gauge, "disk.read_latency_p50", Double, "s", Tree, "Median time of a read from issue to completion.", histogram, read),
		metric(Gauge, "disk.read_latency_p99", Double, "s", Tree, "99th percentile of it.", histogram, read),
		metric(Gauge, "disk.write_latency_p50", Double, "s", Tree, "Median time of a write from issue to completion.", histogram, write),
		metric(Gauge, "disk.write_latency_p99", Double, "s", Tree, "99th percentile of it.", histogram, write),

		metric(Sum, "io.read_bytes", Int, "By", Tree, "What system calls read (rchar): from cache or device, local or network file system.", askedFor, read),
		metric(Sum, "io.write_bytes", Int, "By", Tree, "What system calls wrote (wchar).", askedFor, write),
		metric(Sum, "cache.miss_bytes", Int, "By", Tree, "Data read from devices into the page cache because it was not there, readahead included.", "", read),

		metric(Gauge, "memory.rss_bytes", Int, "By", Tree, "Resident memory at the window's end, summed over the tree's processes.", sharedRSS),
		metric(Gauge, "memory.rss_peak_bytes", Int, "By", Tree, "Largest resident memory in the window.", "a lower bound unless `memory.rss_peak_exact`; "+sharedRSS),
		attribute("memory.rss_peak_exact", Bool, "", Tree, "The peak is exact: one process of the tree changed, and the kernel keeps its high-water mark.", counterSlack),
		metric(Gauge, "memory.rss_peak_upper_bytes", Int, "By", Tree, "The peak was not larger than this.", "an upper bound"),
		attribute("memory.rss_sample_hertz", Double, "Hz", Tree, "How often resident memory was sampled for the peak.", ""),
		metric(Gauge, "memory.swap_bytes", Int, "By", Tree, "Swapped-out memory at the window's end.", ""),
		metric(Sum, "memory.minor_faults", Int, "{fault}", Tree, "Page faults served without a device.", ""),
		metric(Sum, "memory.major_faults", Int, "{fault}", Tree, "Page faults that waited for a device.", ""),
		metric(Sum, "memory.reclaim_stall_seconds", Double, "s", Tree, "Time that threads spent freeing memory before they got some, summed over threads: direct and memory-cgroup reclaim.", ""),

		attribute("cgroup.path", String, "", Cgroup, "The memory cgroup that the following is about: the one with the smallest limit among the process's own and those around it, without a limit its own. Below the mount point of its hierarchy.", ""),
		metric(Gauge, "cgroup.memory.usage_bytes", Int, "By", Cgroup, "Memory charged to the cgroup at the window's end.", inCgroup),
		metric(Gauge, "cgroup.memory.peak_bytes", Int, "By", Cgroup, "The largest usage since the cgroup was made, so not the window's; v2: kernel 5.19 and newer.", ""),
		metric(Gauge, "cgroup.memory.limit_bytes", Int, "By", Cgroup, "Its limit; absent without one.", ""),
		metric(Gauge, "cgroup.memory.anon_bytes", Int, "By", Cgroup, "Of the usage: anonymous memory.", inCgroup),
		metric(Gauge, "cgroup.memory.file_bytes", Int, "By", Cgroup, "Of the usage: page cache, shared memory apart.", inCgroup),
		metric(Gauge, "cgroup.memory.shmem_bytes", Int, "By", Cgroup, "Of the usage: shared memory and tmpfs, `/dev/shm` included.", inCgroup),
		metric(Gauge, "cgroup.memory.kernel_bytes", Int, "By", Cgroup, "Of the usage: the kernel's own; v2: kernel 5.18 and newer.", inCgroup),
		metric(Gauge, "cgroup.memory.pressure_some_seconds", Double, "s", Cgroup, "Time of the window in which at least one of its processes stood still for lack of memory (PSI); v2 only.", ""),
		metric(Gauge, "cgroup.memory.pressure_full_seconds", Double, "s", Cgroup, "Time of the window in which all of its processes that had work did.", ""),
		metric(Gauge, "host.memory.pressure_some_seconds", Double, "s", Host, "The same of the whole machine: some process stood still.", ""),
		metric(Gauge, "host.memory.pressure_full_seconds", Double, "s", Host, "All processes that had work stood still.", ""),

		metric(Sum, "cpu.seconds", Double, "s", Tree, "CPU time, user and system.", ""),
		metric(Sum, "wait.disk_seconds", Double, "s", Tree, "Time that the threads of the calling process itself were blocked on a disk, summed over threads: until they might run again.", "waits that the kernel calls I/O wait: page cache, direct I/O, swap, journals; not those on locks that a reader holds"),
		metric(Sum, "wait.reclaim_seconds", Double, "s", Tree, "Time that they spent freeing memory before they got some.", ""),
		metric(Sum, "wait.runqueue_seconds", Double, "s", Tree, "Time that they were ready to run and had no CPU.", "a wait that lasts at the window's end is in the next"),
		metric(Gauge, "processes", Int, "{process}", Tree, "Processes alive at the window's end.", ""),
		metric(Sum, "processes_exited", Int, "{process}", Tree, "Processes that ended in the window.", ""),

		{
			Name: "flops", Reading: true, Type: Double, Unit: "{flop}", Scope: Model,
			Metrics: []Metric{
				{Name: Prefix + "model.batch.flops", Unit: "{flop}", Kind: Gauge, Function: SpanFlopsPerBatch},
				{Name: Prefix + "model.epoch.flops", Unit: "{flop}", Kind: Gauge, Function: SpanFlopsPerEpoch},
			},
			Text:  "Floating-point operations of this call's batch or epoch, forward + backward; 1 multiply-add = 2.",
			Bound: "exact to 2^53; `flops.exact` beyond",
		},
		attribute("flops.forward", Double, "{flop}", Model, "The forward part.", exactDouble),
		attribute("flops.backward", Double, "{flop}", Model, "The backward part; counted when the model was in training mode.", exactDouble),
		attribute("flops.exact", String, "{flop}", Model, "`flops` as a decimal integer.", ""),
		attribute("flops.convention", String, "", Model, "How operations are counted: `1 multiply-add = 2 FLOP`.", ""),
		attribute("flops.macs", Double, "{mac}", Model, "Multiply-adds of `flops`: half of it, for real numbers.", exactDouble),
		attribute("flops.executed", Double, "{flop}", Model, "`flops` and what activation checkpointing and fused attention kernels compute a second time.", exactDouble),
		attribute("flops.causal_discount", Double, "{flop}", Model, "The part of `flops` outside causal and windowed attention masks, which a kernel may skip; never subtracted.", exactDouble),
		attribute("flops.elementwise", Double, "{operation}", Model, "Per-element operations of forward and backward: norms, activations, sums. Never in `flops`.", "an estimate, within a factor of two"),
		attribute("flops.transcendentals", Double, "{operation}", Model, "Exponentials, logarithms, divisions and their kin; not in `flops.elementwise`.", "an estimate, within a factor of two"),
		attribute("flops.bytes", Double, "By", Model, "What the counted operators read and write, each operand and result once.", "an estimate; without operands of unknown types"),
		attribute("flops.samples", Int, "{sample}", Model, "Samples of this call's batch or epoch; absent when not known.", ""),
		attribute("flops.basis", String, "", Model, "On `log_flops_per_epoch`, what `flops` is: `measured`, the sum of the epoch's `log_flops_per_batch` calls, or `apriori`, what the loader would give.", ""),
		attribute("flops.apriori", Double, "{flop}", Model, "On `log_flops_per_epoch`: the FLOPs of the batches that the loader would give. A difference to `flops.measured` is an epoch that ended early, or batches that were not logged.", exactDouble),
		attribute("flops.apriori_batches", Int, "{batch}", Model, "How many batches that would be; absent when not known.", ""),
		attribute("flops.measured", Double, "{flop}", Model, "On `log_flops_per_epoch`: the sum over the calls of `log_flops_per_batch` in this epoch; absent when there were none, or when it is not known which belong to it.", exactDouble),
		attribute("flops.measured_batches", Int, "{batch}", Model, "How many calls that were.", ""),
		{
			Name: "flops.cumulative", Reading: true, Type: Double, Unit: "{flop}", Scope: Model,
			Metrics: []Metric{{Name: Prefix + "model.flops", Unit: "{flop}", Kind: RunningSum}},
			Text:    "Sum of `flops` over this process's calls of the same function, label and context. Its points never carry a step: each holds all steps so far.",
			Bound:   exactDouble,
		},
		metric(Gauge, "flops.rate", Double, "{flop}/s", Model, "`flops` over the time since the previous call of the same function, label and context.", "honest over several steps: a call does not wait for the GPU"),
		attribute("flops.peak", Double, "{flop}/s", Model, "What the devices can do at most of this mix of data types, dense; absent when a device is not known.", "the vendor's figure"),
		attribute("flops.peak_source", String, "", Model, "Where the peak comes from: the built-in `table`, a slice of it (`mig`), or `override`, what the user stated.", ""),
		attribute("flops.method", String, "", Model, "How the operations were found: `meta`, `fake`, `observed`, `closed_form`, `user` ...", ""),
		attribute("flops.complete", Bool, "", Model, "Every operator was known.", ""),
		attribute("flops.unknown_ops", StringArray, "", Model, "Operators that were not counted; 64 at most.", ""),
		attribute("flops.suspect", Bool, "", Model, "True when `mfu` or `hfu` is above 1, else absent: the peak, the count or the time is wrong.", ""),
		metric(Gauge, "mfu", Double, "1", Model, "Model FLOPs utilization, 0 to 1: `flops.rate` / `flops.peak`, each data type by its own peak; absent when the device is not known.", ""),
		attribute("hfu", Double, "1", Model, "Hardware FLOPs utilization: the same of `flops.executed`.", ""),

		attribute("source.disk", String, "", Call, "Where the disk values come from: `ebpf` or `procfs`.", ""),
		attribute("source.memory", String, "", Call, "Where the memory values come from: `ebpf` or `procfs`.", ""),
		attribute("source.gpu", String, "", Call, "Where the GPU values come from: `nvml`.", ""),
	}
}

// ResourceAttribute is an attribute of the resource: the training process.
type ResourceAttribute struct {
	Name string
	Type Type
	Text string
}

// Names of resource attributes.
const (
	ServiceName         = "service.name"
	ServiceInstanceID   = "service.instance.id"
	HostName            = "host.name"
	ProcessPID          = "process.pid"
	ProcessCreationTime = "process.creation.time"
	ContainerID         = "container.id"
	PodUID              = "k8s.pod.uid"
)

// Resource returns the attributes of the resource. OTEL_RESOURCE_ATTRIBUTES and the node's environment may add further ones.
func Resource() []ResourceAttribute {
	return []ResourceAttribute{
		{ServiceName, String, "The run's name: `PROV4ML_RUN_NAME`, else what the script gave, else the script's base name."},
		{ServiceInstanceID, String, "`<run.id>/<rank>`, without a rank `<run.id>/<pid>`."},
		{HostName, String, "The node."},
		{ProcessPID, Int, "The training process's id as the node sees it."},
		{ProcessCreationTime, String, "When it started (ISO 8601, UTC)."},
		{ContainerID, String, "Its container, if any."},
		{PodUID, String, "Its pod, if any."},
		{RunID, String, "As on the spans, so that metrics can be joined by run."},
		{Rank, Int, "As on the spans."},
		{Attempt, Int, "As on the spans."},
	}
}

// Span is a span that the agent emits.
type Span struct{ Name, Trace, Text string }

// Spans returns the spans.
func Spans() []Span {
	return []Span{
		{SpanRun, "run", "Root marker, 1 ms long, exported with the process's first record. Carries the run's parameters."},
		{SpanRunEnd, "run", "The end: the remainder since the last `log_system_metrics` under the ordinary names, totals of the run under `" + TotalPrefix + "*`, the run's parameters."},
		{SpanSegment, "segment", "Root marker, 1 ms long, of at most 2,000 log calls of one context; linked to `" + SpanRun + "`."},
		{SpanSegmentEnd, "segment", "From the segment's start to its end."},
		{SpanSystemMetrics, "segment", "One call of the function, from the window's start to its end."},
		{SpanFlopsPerBatch, "segment", "One call of the function."},
		{SpanFlopsPerEpoch, "segment", "One call of the function."},
	}
}

// Event is an event of a span.
type Event struct{ Name, Text string }

// Events returns the events.
func Events() []Event {
	return []Event{
		{EventLoggedMetric, "A metric that the script logged (`log_metric`) since the previous span: `" + LoggedKey + "`, `" + LoggedValue + "`, `" + Context + "`, `" + Step + "`."},
		{EventFlopsOperator, "One of the 10 operators with most FLOPs: `" + FlopsOperator + "`, `" + FlopsCount + "` executions, `" + Prefix + "flops.forward`, `" + Prefix + "flops.backward`, `" + FlopsShare + "` of `" + Prefix + "flops`, 0 to 1. These events are on the first span of a batch's signature and on later ones where it changes, and on every epoch's, where they divide `" + Prefix + "flops.apriori`."},
		{EventFlopsModule, "One of the 10 modules with most FLOPs of their own, without those of the modules inside: `" + FlopsModule + "`, a path such as `layer1.0.conv1`, and the same values."},
		{EventFlopsDType, "A data type: `" + FlopsDType + "`, and the same values."},
		{EventFlopsUnknown, "One of at most 10 operators that could not be counted: `" + FlopsOperator + "`, `" + FlopsReason + "`, `" + FlopsCount + "` executions."},
		{EventFlopsCoverage, "Executions of operators by how well their cost is known: `" + FlopsOpsExact + "`, `" + FlopsOpsDeclared + "` by the user, `" + FlopsOpsEstimated + "`, `" + FlopsOpsZero + "`, `" + FlopsOpsUnknown + "`."},
		{EventOOMKill, "A process of the tree that the kernel killed for want of memory, at that moment: `" + Prefix + "oom.pid`, `" + Prefix + "oom.process_name`, what it held (`" + Prefix + "oom.process_anon_bytes`, `_file_`, `_shmem_`, `_swap_`; from kernel 6.9 on), the cgroup that it was in (`" + Prefix + "oom.cgroup.path`, `.usage_bytes`, `.limit_bytes`, `.anon_bytes`, `.file_bytes`, `.shmem_bytes`, `.kernel_bytes`, read at once after the kill), `" + Prefix + "oom.filled_by`: the largest of these, and how full `/dev/shm` was (`" + Prefix + "oom.dev_shm_used_bytes`, `" + Prefix + "oom.dev_shm_size_bytes`). `" + SpanRunEnd + "` then has the status error and says so."},
		{EventDroppedCalls, "The client had to drop calls before this one: `" + EventDroppedCalls + "` is how many."},
		{EventDroppedMetrics, "Too many metrics were logged between two spans: `" + EventDroppedMetrics + "` is how many are lost."},
		{EventParameters, "On the run's markers: the parameters for which the marker's own 128 attributes had no room."},
	}
}
