package record

// Names of the readings that a record carries: the span attribute without its prefix "prov4ml.". Type, unit and meaning of
// each stand in otel/names, and a test there proves that the two lists are the same.
const (
	MemoryUsage    = "memory_usage"
	DiskUsage      = "disk_usage"
	CPUUsage       = "cpu_usage"
	GPUMemoryUsage = "gpu_memory_usage"
	GPUUsage       = "gpu_usage"

	DiskReadBytes          = "disk.read_bytes"
	DiskWriteBytes         = "disk.write_bytes"
	DiskReadOps            = "disk.read_ops"
	DiskWriteOps           = "disk.write_ops"
	DiskMetadataWriteBytes = "disk.metadata_write_bytes"
	DiskDirtiedBytes       = "disk.dirtied_bytes"
	DiskPendingWriteBytes  = "disk.pending_write_bytes"

	DiskOtherWriteBytes        = "disk.other_write_bytes"
	DiskUnattributedWriteBytes = "disk.unattributed_write_bytes"
	DiskSwapWriteBytes         = "disk.swap_write_bytes"
	DiskLowerWriteBytes        = "disk.lower_write_bytes"
	DiskZeroesWriteBytes       = "disk.zeroes_write_bytes"
	DiskNodeMetadataWriteBytes = "disk.node_metadata_write_bytes"

	DiskReadLatencyP50  = "disk.read_latency_p50"
	DiskReadLatencyP99  = "disk.read_latency_p99"
	DiskWriteLatencyP50 = "disk.write_latency_p50"
	DiskWriteLatencyP99 = "disk.write_latency_p99"

	IOReadBytes    = "io.read_bytes"
	IOWriteBytes   = "io.write_bytes"
	CacheMissBytes = "cache.miss_bytes"

	MemoryRSSBytes            = "memory.rss_bytes"
	MemoryRSSPeakBytes        = "memory.rss_peak_bytes"
	MemoryRSSPeakExact        = "memory.rss_peak_exact"
	MemoryRSSPeakUpperBytes   = "memory.rss_peak_upper_bytes"
	MemoryRSSSampleHertz      = "memory.rss_sample_hertz"
	MemorySwapBytes           = "memory.swap_bytes"
	MemoryMinorFaults         = "memory.minor_faults"
	MemoryMajorFaults         = "memory.major_faults"
	MemoryReclaimStallSeconds = "memory.reclaim_stall_seconds"

	CPUSeconds      = "cpu.seconds"
	Processes       = "processes"
	ProcessesExited = "processes_exited"

	FlopsTotal      = "flops"
	FlopsForward    = "flops.forward"
	FlopsBackward   = "flops.backward"
	FlopsExact      = "flops.exact"
	FlopsCumulative = "flops.cumulative"
	FlopsRate       = "flops.rate"
	FlopsPeak       = "flops.peak"
	FlopsMethod     = "flops.method"
	FlopsComplete   = "flops.complete"
	FlopsUnknownOps = "flops.unknown_ops"
	MFU             = "mfu"

	SourceDisk   = "source.disk"
	SourceMemory = "source.memory"
	SourceGPU    = "source.gpu"
)
