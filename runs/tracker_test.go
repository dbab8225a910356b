package runs

import (
	"testing"
	"time"

	"github.com/prov4ml/agent/probes/process"
	"github.com/prov4ml/agent/record"
)

func TestWindowsTouchAndHoldTheirOwnBytes(t *testing.T) {
	b := newBench(t)
	c, _ := sleeper(t)
	b.hello(t, c, Description{Script: "train.py"})
	if got := b.store.all(); len(got) != 0 {
		t.Fatalf("hello emitted %d records", len(got))
	}
	began := b.clock.Now().UnixNano()
	var end int64
	for i, written := range []uint64{1 << 20, 0, 3 << 20} {
		b.probe.with(1, func(tree *process.Tree) { tree.DiskWriteBytes += written })
		b.clock.add(time.Second)
		rec := b.call(t, c, Call{Context: pointer("Training"), Step: pointer(int64(i))})
		if i == 0 && rec.GetStartUnixNanos() != began {
			t.Errorf("first window starts %d, hello was %d", rec.GetStartUnixNanos(), began)
		}
		if i > 0 && rec.GetStartUnixNanos() != end {
			t.Errorf("call %d: window starts %d, the one before ended %d", i, rec.GetStartUnixNanos(), end)
		}
		end = rec.GetEndUnixNanos()
		if rec.GetWindowFirst() || rec.GetWindowGap() || rec.GetSeq() != uint64(i) || rec.GetContext() != "training" {
			t.Errorf("call %d: %v", i, rec)
		}
		if got := reading(rec, record.DiskWriteBytes); got.GetInteger() != int64(written) || got.GetState() != record.State_OK {
			t.Errorf("call %d: wrote %d, got %v", i, written, got)
		}
	}
}
