// Package probes holds what the measuring packages below it share. Each of them measures one source: process (eBPF, procfs
// where eBPF is not to be had), gpu (NVML), host.
package probes

import "github.com/prov4ml/agent/record"

// Process names one process for its whole life. A pid alone is reused.
type Process struct {
	// PID in the agent's pid namespace: the host's, where the agent runs with hostPID.
	PID int
	// StartTicks is field 22 of /proc/PID/stat: clock ticks (USER_HZ, 100 a second) since boot.
	StartTicks uint64
}

// Status is what check prints about one capability or probe.
type Status struct {
	// Name is a few words: "block I/O (block_bio_queue)".
	Name string
	OK   bool
	// Source answers for the values of this probe, also when OK is false: procfs where eBPF failed.
	Source record.Source
	// Reason says why it is not OK; empty when it is.
	Reason string
	// Cure says what the user can do about it; empty when nothing.
	Cure string
}
