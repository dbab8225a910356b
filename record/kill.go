package record

// The event of a process of the tree that the kernel killed for want of memory, and its attributes. Both become names of the span's
// event with the prefix "prov4ml."; what they mean stands in otel/names.
const (
	EventOOMKill = "oom_kill"

	OOMPID               = "oom.pid"
	OOMProcessName       = "oom.process_name"
	OOMProcessAnonBytes  = "oom.process_anon_bytes"
	OOMProcessFileBytes  = "oom.process_file_bytes"
	OOMProcessShmemBytes = "oom.process_shmem_bytes"
	OOMProcessSwapBytes  = "oom.process_swap_bytes"

	OOMFilledBy          = "oom.filled_by"
	OOMCgroupPath        = "oom.cgroup.path"
	OOMCgroupUsageBytes  = "oom.cgroup.usage_bytes"
	OOMCgroupLimitBytes  = "oom.cgroup.limit_bytes"
	OOMCgroupAnonBytes   = "oom.cgroup.anon_bytes"
	OOMCgroupFileBytes   = "oom.cgroup.file_bytes"
	OOMCgroupShmemBytes  = "oom.cgroup.shmem_bytes"
	OOMCgroupKernelBytes = "oom.cgroup.kernel_bytes"

	OOMDevShmUsedBytes = "oom.dev_shm_used_bytes"
	OOMDevShmSizeBytes = "oom.dev_shm_size_bytes"
)

// Names of histograms.
const (
	DiskReadLatency  = "disk.read_latency"
	DiskWriteLatency = "disk.write_latency"
)
