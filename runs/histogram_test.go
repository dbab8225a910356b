package runs

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/prov4ml/agent/record"
)

func TestHistogramHoldsTheWindowsOwn(t *testing.T) {
	var now, before [64]uint64
	before[12], now[12] = 5, 5
	before[20], now[20] = 1, 4
	now[22] = 7
	got := histogram(record.DiskReadLatency, &now, &before, 2_500_000_000)
	want := &record.Histogram{Name: record.DiskReadLatency, First: 20, Counts: []uint64{3, 0, 7}, SumSeconds: 2.5}
	if d := cmp.Diff(want, got, protocmp.Transform()); d != "" {
		t.Error(d)
	}
	if got := histogram(record.DiskReadLatency, &now, &now, 0); got != nil {
		t.Errorf("nothing happened, yet %v", got)
	}
}
