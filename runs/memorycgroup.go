package runs

import (
	"time"

	"github.com/prov4ml/agent/probes/cgroup"
	"github.com/prov4ml/agent/record"
)

// memoryCgroup adds what the memory cgroup of the process says at the window's end, and how long it stood still in the window.
func (r *readings) memoryCgroup(rec *record.LogCall, now, before *cgroup.Memory) {
	r.pressure(record.HostMemoryPressureSomeSeconds, &now.HostSomeMicros, &before.HostSomeMicros, record.Source_HOST)
	r.pressure(record.HostMemoryPressureFullSeconds, &now.HostFullMicros, &before.HostFullMicros, record.Source_HOST)
	if now.State != record.State_OK {
		for _, name := range [...]string{
			record.CgroupPath, record.CgroupMemoryUsageBytes, record.CgroupMemoryPeakBytes, record.CgroupMemoryLimitBytes,
			record.CgroupMemoryAnonBytes, record.CgroupMemoryFileBytes, record.CgroupMemoryShmemBytes, record.CgroupMemoryKernelBytes,
			record.CgroupMemoryPressureSomeSeconds, record.CgroupMemoryPressureFullSeconds,
		} {
			r.add(name, now.State, record.Source_CGROUP)
		}
		rec.Unavailable = append(rec.Unavailable, now.Reason)
		return
	}
	r.add(record.CgroupPath, record.State_OK, record.Source_CGROUP).Value = &record.Reading_Text{Text: now.Path}
	for _, part := range [...]struct {
		name  string
		value *cgroup.Value
	}{
		{record.CgroupMemoryUsageBytes, &now.UsageBytes},
		{record.CgroupMemoryPeakBytes, &now.PeakBytes},
		{record.CgroupMemoryLimitBytes, &now.LimitBytes},
		{record.CgroupMemoryAnonBytes, &now.AnonBytes},
		{record.CgroupMemoryFileBytes, &now.FileBytes},
		{record.CgroupMemoryShmemBytes, &now.ShmemBytes},
		{record.CgroupMemoryKernelBytes, &now.KernelBytes},
	} {
		if part.value.State == record.State_OK {
			r.integer(part.name, part.value.Amount, record.State_OK, record.Source_CGROUP)
			continue
		}
		r.add(part.name, part.value.State, record.Source_CGROUP).Reason = part.value.Reason
	}
	some, full := before.SomeMicros, before.FullMicros
	if before.State == record.State_OK && before.Path != now.Path {
		other := cgroup.Value{State: record.State_ABSENT, Reason: "the process came into this cgroup within the window"}
		some, full = other, other
	}
	r.pressure(record.CgroupMemoryPressureSomeSeconds, &now.SomeMicros, &some, record.Source_CGROUP)
	r.pressure(record.CgroupMemoryPressureFullSeconds, &now.FullMicros, &full, record.Source_CGROUP)
}

// pressure adds the growth of a PSI total.
func (r *readings) pressure(name string, now, before *cgroup.Value, source record.Source) {
	for _, v := range [...]*cgroup.Value{now, before} {
		if v.State != record.State_OK {
			state, reason := v.State, v.Reason
			if state == record.State_STATE_UNSPECIFIED {
				state, reason = record.State_ABSENT, "not read at the window's start"
			}
			r.add(name, state, source).Reason = reason
			return
		}
	}
	micros := grown(now.Amount, before.Amount)
	r.real(name, (time.Duration(micros) * time.Microsecond).Seconds(), record.State_OK, source)
}
