package flops

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func linearTotals(t *testing.T, batch int64) *Totals {
	t.Helper()
	return mustCount(t, &List{Training: true, BatchSize: batch, Method: "meta", Operators: []Operator{
		{Name: "aten.addmm", Module: "fc", Inputs: []Tensor{tensor("self", true, 10), tensor("mat1", false, batch, 100), tensor("mat2", true, 100, 10)}},
		{Name: "aten.relu", Module: "act", Inputs: []Tensor{tensor("self", true, batch, 10)}, Outputs: []Tensor{tensor("", false, batch, 10)}},
		{Name: "mylib.op", Count: 2},
	}})
}

// 1797 samples in batches of 32: 56 full ones and one of 5.
func TestEpochIsTheSumOfItsBatches(t *testing.T) {
	full, last := linearTotals(t, 32), linearTotals(t, 5)
	epoch := Epoch([]Batches{{full, 56}, {last, 1}, {linearTotals(t, 1000), 0}})
	var want Sums
	for range 56 {
		want = want.plus(full.Sums)
	}
	want = want.plus(last.Sums)
	if diff := cmp.Diff(want, epoch.Sums); diff != "" {
		t.Error(diff)
	}
	if got := epoch.Samples.String(); got != "1797" {
		t.Errorf("%s samples", got)
	}
	if got := epoch.FLOPs().String(); got != fmt.Sprint(2*2*100*10*1797) {
		t.Errorf("%s FLOP", got)
	}
	if u := epoch.Coverage.Unknown; len(u) != 1 || u[0].Executions.String() != "114" || epoch.Complete() {
		t.Errorf("unknown %+v", u)
	}
	for name, groups := range map[string][]Group{"operators": epoch.Operators, "modules": epoch.Modules, "dtypes": epoch.DTypes} {
		var s Sums
		for _, g := range groups {
			s = s.plus(g.Sums)
		}
		if diff := cmp.Diff(epoch.Sums, s); diff != "" {
			t.Errorf("%s do not add up: %s", name, diff)
		}
	}
	if epoch.Method != "meta" || !epoch.Training {
		t.Errorf("%+v", epoch)
	}
}

func TestEpochWithABatchThatIsMissing(t *testing.T) {
	epoch := Epoch([]Batches{{linearTotals(t, 8), 3}, {Missing("fake", "sizes depend on the data"), 1}})
	if epoch.Complete() || epoch.MissingReason != "sizes depend on the data" || epoch.FLOPs().IsZero() {
		t.Errorf("%+v", epoch)
	}
	if got := Epoch(nil); !got.FLOPs().IsZero() {
		t.Errorf("%+v", got)
	}
}

// Thousands of shapes, each with texts of its own, are one record's.
func TestEpochBoundsItsTexts(t *testing.T) {
	var batches []Batches
	for i := range 3 * MaxNotes {
		noted := *linearTotals(t, 8)
		noted.Notes, noted.Method = []string{fmt.Sprint("note ", i)}, fmt.Sprint("method ", i)
		batches = append(batches, Batches{&noted, 1}, Batches{Missing("fake", fmt.Sprint("reason ", i)), 1})
	}
	epoch := Epoch(batches)
	for name, n := range map[string]int{
		"notes": len(epoch.Notes), "methods": strings.Count(epoch.Method, "+") + 1, "reasons": strings.Count(epoch.MissingReason, ";") + 1,
	} {
		if n != MaxNotes {
			t.Errorf("%d %s, want %d", n, name, MaxNotes)
		}
	}
	if got := epoch.Samples.String(); got != fmt.Sprint(8*3*MaxNotes) {
		t.Errorf("%s samples: batches were left out with their texts", got)
	}
}

// An epoch of a large model exceeds 64 bits.
func TestEpochBeyond64Bits(t *testing.T) {
	d, err := Declare("5100005228544", "", "bfloat16")
	if err != nil {
		t.Fatal(err)
	}
	epoch := Epoch([]Batches{{d.Totals("user"), 1 << 40}})
	if got := epoch.FLOPs().String(); got != "5607515050502524338438144" {
		t.Errorf("%s", got)
	}
	if f := epoch.FLOPs().Float64(); f < 5.6e24 || f > 5.61e24 {
		t.Errorf("%g", f)
	}
}

func TestMemoIsBounded(t *testing.T) {
	totals := linearTotals(t, 4)
	one := totals.footprint() + int64(len("p0")+len("s0"))
	m := NewMemo(3 * one)
	for i := range 3 {
		m.Put("p0", fmt.Sprint("s", i), totals)
	}
	if _, ok := m.Get("p0", "s0"); !ok {
		t.Fatal("s0 is gone too early")
	}
	m.Put("p0", "s3", totals)
	// s1 was not asked for longest.
	for signature, want := range map[string]bool{"s0": true, "s1": false, "s2": true, "s3": true} {
		if _, ok := m.Get("p0", signature); ok != want {
			t.Errorf("%s: %v, want %v", signature, ok, want)
		}
	}
	if _, ok := m.Get("p1", "s0"); ok {
		t.Error("another process's signature")
	}
	if s := m.Stats(); s.Signatures != 3 || s.Bytes != 3*one || s.Evicted != 1 {
		t.Errorf("%+v", s)
	}
	m.Put("p0", "s3", totals)
	if s := m.Stats(); s.Signatures != 3 || s.Bytes != 3*one {
		t.Errorf("putting again: %+v", s)
	}
	huge := *totals
	huge.Notes = []string{strings.Repeat("x", int(4*one))}
	m.Put("p0", "s3", &huge)
	if _, ok := m.Get("p0", "s3"); ok {
		t.Error("an old value remains under a signature that is too large to keep")
	}
	m.Put("p0", "s3", Missing("fake", strings.Repeat("x", int(4*one))))
	if _, ok := m.Get("p0", "s3"); ok {
		t.Error("a reason takes no room")
	}
}

func TestMemoConcurrently(t *testing.T) {
	totals := linearTotals(t, 4)
	m := NewMemo(10 * totals.footprint())
	var wg sync.WaitGroup
	for p := range 4 {
		wg.Go(func() {
			process := fmt.Sprint(p)
			for i := range 500 {
				m.Put(process, fmt.Sprint(i%7), totals)
				m.Get(process, fmt.Sprint(i%5))
			}
		})
	}
	wg.Wait()
	if s := m.Stats(); s.Bytes > 10*totals.footprint() || s.Bytes < 0 {
		t.Errorf("%+v", s)
	}
}
