package flops

import (
	"math"
	"strings"
	"testing"
	"time"
)

func peak(t *testing.T, name string) Peak {
	t.Helper()
	p, ok := PeakOf(name)
	if !ok {
		t.Fatalf("no peak of %s", name)
	}
	return p
}

func TestRate(t *testing.T) {
	if r, ok := Rate(NumberOf(3e9), 1500*time.Millisecond); !ok || r != 2e9 {
		t.Errorf("%g %v", r, ok)
	}
	for _, elapsed := range []time.Duration{0, -1} {
		if _, ok := Rate(NumberOf(1), elapsed); ok {
			t.Errorf("a rate over %v", elapsed)
		}
	}
}

func TestUtilizationIsIdealTimeOverRealTime(t *testing.T) {
	h100 := peak(t, "NVIDIA H100 80GB HBM3")
	work := map[string]Number{
		"bfloat16":      NumberOf(989_400_000_000_000),
		"float8_e4m3fn": NumberOf(1_979_000_000_000_000),
		"tfloat32":      NumberOf(494_700_000_000_000),
	}
	u := Utilize(work, []Peak{h100}, 6*time.Second)
	if math.Abs(u.Value-0.5) > 1e-12 || u.Suspect || u.Missing != "" || u.Source != "table" {
		t.Errorf("%+v", u)
	}
	if want := (989.4e12 + 1979e12 + 494.7e12) / 3; math.Abs(u.PeakFLOPS-want) > 1 {
		t.Errorf("peak of the mix %g, want %g", u.PeakFLOPS, want)
	}
	// Two devices do the same work in half the ideal time.
	if u := Utilize(work, []Peak{h100, h100}, 6*time.Second); math.Abs(u.Value-0.25) > 1e-12 {
		t.Errorf("%+v", u)
	}
	if u := Utilize(work, []Peak{h100}, 2*time.Second); !u.Suspect || math.Abs(u.Value-1.5) > 1e-12 {
		t.Errorf("150 %% is not suspect: %+v", u)
	}
}

func TestUtilizationThatIsNotKnown(t *testing.T) {
	h100, t4 := peak(t, "NVIDIA H100 80GB HBM3"), peak(t, "Tesla T4")
	bf16 := map[string]Number{"bfloat16": NumberOf(1e12)}
	for name, u := range map[string]Utilization{
		"no device":              Utilize(bf16, nil, time.Second),
		"no time":                Utilize(bf16, []Peak{h100}, 0),
		"no work":                Utilize(map[string]Number{"bfloat16": {}}, []Peak{h100}, time.Second),
		"bfloat16 on a T4":       Utilize(bf16, []Peak{h100, t4}, time.Second),
		"TF32 on a T4":           Utilize(map[string]Number{"tfloat32": NumberOf(1)}, []Peak{t4}, time.Second),
		"a dtype nobody knows":   Utilize(map[string]Number{"int64": NumberOf(1)}, []Peak{h100}, time.Second),
		"no dtype":               Utilize(map[string]Number{"": NumberOf(1)}, []Peak{h100}, time.Second),
		"a count beyond float64": Utilize(map[string]Number{"float32": product(1<<40, 1<<40, 1<<40, 1<<40, 1<<40, 1<<40, 1<<40, 1<<40, 1<<40, 1<<40, 1<<40, 1<<40, 1<<40, 1<<40, 1<<40, 1<<40, 1<<40, 1<<40, 1<<40, 1<<40, 1<<40, 1<<40, 1<<40, 1<<40, 1<<40, 1<<40)}, []Peak{h100}, time.Second),
	} {
		if u.Missing == "" || u.Value != 0 || u.PeakFLOPS != 0 || u.Suspect {
			t.Errorf("%s: %+v", name, u)
		}
	}
}

func TestWorkByDType(t *testing.T) {
	totals := mustCount(t, &List{Training: true, AutocastDType: "bfloat16", Operators: []Operator{
		{Name: "aten.mm", Inputs: []Tensor{tensor("self", true, 2, 3), tensor("mat2", true, 3, 4)}},
		{Name: "aten.mm", Phase: Recompute, Inputs: []Tensor{tensor("self", true, 2, 3), tensor("mat2", true, 3, 4)}},
		{Name: "aten.relu", Inputs: []Tensor{tensor("self", true, 5)}, Outputs: []Tensor{tensor("", false, 5)}},
	}})
	if w := totals.WorkByDType(false); len(w) != 1 || w["bfloat16"].String() != "144" {
		t.Errorf("model %v", w)
	}
	if w := totals.WorkByDType(true); len(w) != 1 || w["bfloat16"].String() != "192" {
		t.Errorf("executed %v", w)
	}
}

func TestOverride(t *testing.T) {
	o, err := ParseOverride(" bf16=989e12, tf32=494.7e12 ,float64=1e13")
	if err != nil {
		t.Fatal(err)
	}
	p, ok := o.PeakOf("NVIDIA Unknown 1000")
	if !ok || p.Source != "override" {
		t.Fatalf("%+v %v", p, ok)
	}
	for dtype, want := range map[string]float64{"bfloat16": 989e12, "tfloat32": 494.7e12, "float64": 1e13} {
		if got, ok := p.Of(dtype); !ok || got != want {
			t.Errorf("%s: %g %v", dtype, got, ok)
		}
	}
	if _, ok := p.Of("float32"); ok {
		t.Error("a peak that nobody stated")
	}
	// The stated dtypes replace the table's, the others stay.
	p, _ = o.PeakOf("NVIDIA A100-SXM4-80GB")
	if bf16, _ := p.Of("bfloat16"); bf16 != 989e12 {
		t.Errorf("bfloat16 %g", bf16)
	}
	if fp16, _ := p.Of("float16"); fp16 != 312e12 {
		t.Errorf("float16 %g", fp16)
	}
	if none, err := ParseOverride("  "); none != nil || err != nil {
		t.Errorf("%v %v", none, err)
	}
	if p, ok := (*Override)(nil).PeakOf("NVIDIA L4"); !ok || p.Source != "table" {
		t.Errorf("%+v %v", p, ok)
	}
	names := []string{"NVIDIA L4", "NVIDIA Unknown 1000"}
	if peaks, missing := o.PeaksOf(names); len(peaks) != 2 || missing != "" {
		t.Errorf("%+v %q", peaks, missing)
	}
	if peaks, missing := (*Override)(nil).PeaksOf(names); peaks != nil || !strings.Contains(missing, names[1]) {
		t.Errorf("%+v %q", peaks, missing)
	}
	for _, bad := range []string{"989e12", "bf16=", "bf16=0", "bf16=-1", "bf16=NaN", "bf16=Inf", "bf16=1e19", "bf16=1e12,bf16=2e12", "bf17=1e12", "bf16=989 TFLOPS", ",", "bf16=1e12,"} {
		if _, err := ParseOverride(bad); err == nil {
			t.Errorf("%q was taken", bad)
		} else if !strings.Contains(err.Error(), "want") && !strings.Contains(err.Error(), "twice") {
			t.Errorf("%q: %v names no cure", bad, err)
		}
	}
}
