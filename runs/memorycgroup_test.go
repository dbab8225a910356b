package runs

import (
	"strings"
	"testing"

	"github.com/prov4ml/agent/probes/cgroup"
	"github.com/prov4ml/agent/record"
)

func byName(readings []*record.Reading) map[string]*record.Reading {
	named := map[string]*record.Reading{}
	for _, r := range readings {
		named[r.GetName()] = r
	}
	return named
}

func known(amount uint64) cgroup.Value { return cgroup.Value{Amount: amount, State: record.State_OK} }

func TestPressureIsTheWindowsOwn(t *testing.T) {
	before := cgroup.Memory{
		State: record.State_OK, Path: "/a", SomeMicros: known(1_000_000), FullMicros: known(5), HostSomeMicros: known(7), HostFullMicros: known(7),
	}
	now := before
	now.SomeMicros, now.HostSomeMicros = known(1_250_000), known(2_000_007)
	r := newReadings()
	r.memoryCgroup(&record.LogCall{}, &now, &before)
	got := byName(r.list)
	for name, want := range map[string]float64{
		record.CgroupMemoryPressureSomeSeconds: 0.25, record.CgroupMemoryPressureFullSeconds: 0, record.HostMemoryPressureSomeSeconds: 2,
	} {
		if got[name].GetState() != record.State_OK || got[name].GetReal() != want {
			t.Errorf("%s: %v, want %v", name, got[name], want)
		}
	}
	// Totals of another cgroup are no base.
	now.Path = "/b"
	r = newReadings()
	r.memoryCgroup(&record.LogCall{}, &now, &before)
	if got := byName(r.list)[record.CgroupMemoryPressureSomeSeconds]; got.GetState() != record.State_ABSENT || got.GetReason() == "" {
		t.Errorf("after a move: %v", got)
	}
}

func TestWithoutACgroupEveryReadingIsAbsentAndOneReasonSaysWhy(t *testing.T) {
	rec := &record.LogCall{}
	r := newReadings()
	r.memoryCgroup(rec, &cgroup.Memory{State: record.State_ABSENT, Reason: "cgroup: the process is in the root cgroup, which is the host"}, &cgroup.Memory{})
	for _, reading := range r.list {
		if reading.GetState() == record.State_OK || reading.GetValue() != nil {
			t.Errorf("%v", reading)
		}
	}
	if len(rec.Unavailable) != 1 || !strings.Contains(rec.Unavailable[0], "root cgroup") {
		t.Errorf("reasons %q", rec.Unavailable)
	}
}
