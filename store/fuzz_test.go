package store

import (
	"bytes"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/prov4ml/agent/record"
)

// Whatever bytes the file holds, decode does not fall over, and what protobuf's own decoder takes as well is the same for both. Either
// refuses what the other takes: there a field of another wire type is unknown, here a number of too many bits is cut.
func FuzzDecode(f *testing.F) {
	whole, err := encode(&record.LogCall{
		Schema: 1, Process: &record.Process{RunId: "r", Pid: 7, Rank: -1, Resource: map[string]string{"k": "v"}},
		Function: record.Function_LOG_SYSTEM_METRICS, Seq: 3, Context: proto.String("training"), Step: proto.Int64(-1),
		Readings: []*record.Reading{
			{Name: record.DiskReadBytes, State: record.State_OK, Value: &record.Reading_Integer{Integer: 5}},
			{Name: "x", State: record.State_ABSENT, Reason: "none"},
			{Name: "y", Value: &record.Reading_Text{Text: "ü"}},
		},
		Events:         []*record.Event{{Name: "e", Attributes: []*record.Reading{{Name: "a", Value: &record.Reading_Real{Real: 1.5}}}}},
		StepTotals:     &record.TotalSet{Totals: []*record.Total{{Name: "t", Value: &record.Total_Integer{Integer: 1}}}},
		ClosedSegments: []*record.Segment{{Context: "c", HasContext: true}},
		LoggedMetrics:  []*record.LoggedMetric{{Key: "loss", Value: 0.5, Step: proto.Int64(1)}},
		RunAttributes:  map[string]string{"lr": "0.1"},
		Enclosing:      []*record.ProcessKey{{Pid: 1}},
		Histograms:     []*record.Histogram{{Name: "h", Counts: []uint64{1, 2}}},
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
	f.Add(whole[:len(whole)/2])
	f.Add([]byte{})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01})
	f.Fuzz(func(t *testing.T, blob []byte) {
		got, err := decode(blob)
		if err != nil {
			return
		}
		want := &record.LogCall{}
		if proto.Unmarshal(blob, want) != nil {
			return
		}
		// Bytes are compared, since a number that is not a number is equal to none.
		if !bytes.Equal(deterministic(t, got), deterministic(t, want)) {
			t.Fatalf("decode gives %v, protobuf %v", got, want)
		}
	})
}

// deterministic is the record in bytes without the fields that nobody knows, whose own bytes may differ.
func deterministic(t *testing.T, rec *record.LogCall) []byte {
	t.Helper()
	out, err := proto.Marshal(rec)
	if err != nil {
		t.Fatal(err)
	}
	known := &record.LogCall{}
	if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(out, known); err != nil {
		t.Fatal(err)
	}
	if out, err = (proto.MarshalOptions{Deterministic: true}).Marshal(known); err != nil {
		t.Fatal(err)
	}
	return out
}
