package flops

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// randomList is a training list of exact, estimated, zero and unknown operators in several modules and phases.
func randomList(r *rand.Rand) *List {
	l := &List{Training: true, BackwardRecorded: coin(r), Method: "meta", BatchSize: between(r, 0, 8)}
	if coin(r) {
		l.AutocastDType = "bfloat16"
	}
	modules := []string{"", "layer1", "layer1.0", "layer1.0.conv", "layer10", "head"}
	for range between(r, 1, 40) {
		m, k, n := between(r, 0, 6), between(r, 0, 6), between(r, 0, 6)
		o := Operator{Module: modules[r.IntN(len(modules))], Count: uint64(r.IntN(4))}
		switch r.IntN(8) {
		case 0:
			o.Name = "aten.mm"
			o.Inputs = []Tensor{tensor("self", coin(r), m, k), tensor("mat2", coin(r), k, n)}
		case 1:
			c := randomConvolution(r)
			x, w, y := c.tensors(coin(r), coin(r))
			o.Name, o.Inputs, o.Outputs = "aten.convolution", []Tensor{x, w}, []Tensor{y}
			o.Scalars = map[string]int64{"transposed": 0}
			if c.transposed {
				o.Scalars["transposed"] = 1
			}
		case 2:
			o.Name = "aten._scaled_dot_product_flash_attention"
			o.Inputs = []Tensor{tensor("query", coin(r), 1, 2, m, k), tensor("key", coin(r), 1, 2, n, k), tensor("value", coin(r), 1, 2, n, k)}
			o.Scalars = map[string]int64{"is_causal": int64(r.IntN(2))}
		case 3:
			o = randomRecurrent(r).operator()
			o.Module = modules[r.IntN(len(modules))]
		case 4:
			o.Name = "aten.relu"
			o.Inputs, o.Outputs = []Tensor{tensor("self", coin(r), m, n)}, []Tensor{tensor("", false, m, n)}
		case 5:
			o.Name = "aten.cat"
			o.Inputs, o.Outputs = []Tensor{tensor("tensors", coin(r), m, n)}, []Tensor{tensor("", false, m, n)}
		case 6:
			o.Name = "mylib.fused"
		case 7:
			o.Name = "mylib.counted"
			o.Declared = &Declared{Forward: NumberOf(uint64(m + 1)), Backward: NumberOf(uint64(k)), DType: "float16"}
		}
		switch {
		case o.Declared == nil && r.IntN(6) == 0:
			o.Phase = Recompute
		case o.Declared == nil && l.BackwardRecorded && r.IntN(3) == 0:
			o.Phase = Backward
		}
		l.Operators = append(l.Operators, o)
	}
	return l
}

func mustCount(t *testing.T, l *List) *Totals {
	t.Helper()
	totals, err := Count(l)
	if err != nil {
		t.Fatal(err)
	}
	return totals
}

func TestSharesAddUpToTheTotal(t *testing.T) {
	r := random(t, t.Name())
	for range bruteCases {
		totals := mustCount(t, randomList(r))
		for name, groups := range map[string][]Group{"operators": totals.Operators, "modules": totals.Modules, "dtypes": totals.DTypes} {
			var s Sums
			for _, g := range groups {
				s = s.plus(g.Sums)
			}
			if diff := cmp.Diff(totals.Sums, s); diff != "" {
				t.Fatalf("%s do not add up: %s", name, diff)
			}
		}
		// A parent is the sum of its parts, and layer10 is no part of layer1.
		whole := totals.Under("layer1").plus(totals.Under("layer10")).plus(totals.Under("head"))
		for _, g := range totals.Modules {
			if g.Name == "" {
				whole = whole.plus(g.Sums)
			}
		}
		if diff := cmp.Diff(totals.Sums, whole); diff != "" {
			t.Fatalf("modules and their parts: %s", diff)
		}
		if diff := cmp.Diff(totals.Sums, totals.Under("")); diff != "" {
			t.Fatalf("the root: %s", diff)
		}
	}
}

func TestOrderDoesNotMatter(t *testing.T) {
	r := random(t, t.Name())
	for range bruteCases {
		l := randomList(r)
		want := mustCount(t, l)
		r.Shuffle(len(l.Operators), func(i, j int) { l.Operators[i], l.Operators[j] = l.Operators[j], l.Operators[i] })
		if diff := cmp.Diff(want, mustCount(t, l)); diff != "" {
			t.Fatalf("after a shuffle: %s", diff)
		}
	}
}

func TestCountIsRepetition(t *testing.T) {
	r := random(t, t.Name())
	for range bruteCases {
		l := randomList(r)
		want := mustCount(t, l)
		spread := *l
		spread.Operators = nil
		for _, o := range l.Operators {
			n := o.executions()
			o.Count = 0
			for range n {
				spread.Operators = append(spread.Operators, o)
			}
		}
		if diff := cmp.Diff(want, mustCount(t, &spread)); diff != "" {
			t.Fatalf("written out one by one: %s", diff)
		}
	}
}

func TestBackwardIsAtMostTwiceTheForward(t *testing.T) {
	r := random(t, t.Name())
	for range bruteCases {
		l := randomList(r)
		l.BackwardRecorded = false
		kept := l.Operators[:0]
		for _, o := range l.Operators {
			if o.Phase != Backward && o.Declared == nil {
				kept = append(kept, o)
			}
		}
		l.Operators = kept
		totals := mustCount(t, l)
		if totals.Backward.FLOPs.Compare(totals.Forward.FLOPs.Times(2)) > 0 {
			t.Fatalf("backward %v, forward %v", totals.Backward.FLOPs, totals.Forward.FLOPs)
		}
		if totals.CausalDiscount().Compare(totals.FLOPs()) > 0 {
			t.Fatalf("causal discount %v of %v", totals.CausalDiscount(), totals.FLOPs())
		}
		if totals.Executed().Compare(totals.FLOPs()) < 0 {
			t.Fatalf("executed %v is less than the model's %v", totals.Executed(), totals.FLOPs())
		}
	}
}

func TestPhases(t *testing.T) {
	mm := func(p Phase) Operator {
		return Operator{Name: "aten.mm", Phase: p, Inputs: []Tensor{tensor("self", true, 2, 3), tensor("mat2", true, 3, 5)}}
	}
	const once = 2 * 2 * 3 * 5
	for _, c := range []struct {
		name                         string
		list                         List
		forward, backward, recompute uint64
	}{
		{"derived", List{Training: true, Operators: []Operator{mm(Forward)}}, once, 2 * once, 0},
		{"not training", List{Operators: []Operator{mm(Forward)}}, once, 0, 0},
		{"recorded", List{Training: true, BackwardRecorded: true, Operators: []Operator{mm(Forward), mm(Backward)}}, once, once, 0},
		{"recorded nothing", List{Training: true, BackwardRecorded: true, Operators: []Operator{mm(Forward)}}, once, 0, 0},
		{"recompute has no gradients of its own", List{Training: true, Operators: []Operator{mm(Forward), mm(Recompute)}}, once, 2 * once, once},
	} {
		totals := mustCount(t, &c.list)
		f, b, rc := small(t, totals.Forward.FLOPs), small(t, totals.Backward.FLOPs), small(t, totals.Recompute.FLOPs)
		if f != c.forward || b != c.backward || rc != c.recompute {
			t.Errorf("%s: %d, %d, %d; want %d, %d, %d", c.name, f, b, rc, c.forward, c.backward, c.recompute)
		}
		if got := small(t, totals.FLOPs()); got != f+b {
			t.Errorf("%s: headline %d", c.name, got)
		}
		if got := small(t, totals.Executed()); got != f+b+rc {
			t.Errorf("%s: executed %d", c.name, got)
		}
	}
}

// Fused attention computes QK^T again in its backward, derived or recorded: executed, but no model FLOP.
func TestFusedAttentionRecomputesScores(t *testing.T) {
	q := func(argument string) Tensor { return tensor(argument, true, 2, 3, 4, 5) }
	const scores = 2 * 2 * 3 * 4 * 4 * 5
	forward := Operator{Name: "aten._scaled_dot_product_flash_attention", Inputs: []Tensor{q("query"), q("key"), q("value")}}
	derived := mustCount(t, &List{Training: true, Operators: []Operator{forward}})
	recorded := mustCount(t, &List{Training: true, BackwardRecorded: true, Operators: []Operator{forward, {
		Name: "aten._scaled_dot_product_flash_attention_backward", Phase: Backward,
		Inputs: []Tensor{q("grad_out"), q("query"), q("key"), q("value"), q("out")},
	}}})
	for name, totals := range map[string]*Totals{"derived": derived, "recorded": recorded} {
		f, b, k := small(t, totals.Forward.FLOPs), small(t, totals.Backward.FLOPs), small(t, totals.KernelRecompute)
		if f != 2*scores || b != 4*scores || k != scores {
			t.Errorf("%s: %d, %d, recomputed %d", name, f, b, k)
		}
	}
	forward.Name = "aten.scaled_dot_product_attention"
	if totals := mustCount(t, &List{Training: true, Operators: []Operator{forward}}); !totals.KernelRecompute.IsZero() {
		t.Errorf("which kernel runs is not known, yet it recomputes %v", totals.KernelRecompute)
	}
}

func TestDTypes(t *testing.T) {
	operator := func(name, dtype, compute string) Operator {
		o := Operator{Name: name, ComputeDType: compute, Scalars: map[string]int64{"transposed": 0}}
		x, w := tensor("self", false, 2, 2), tensor("mat2", false, 2, 2)
		if name == "aten.convolution" {
			x, w = tensor("input", false, 1, 2, 4), tensor("weight", false, 2, 2, 1)
			o.Outputs = []Tensor{tensor("", false, 1, 2, 4)}
		}
		x.DType, w.DType = dtype, dtype
		o.Inputs = []Tensor{x, w}
		return o
	}
	for _, c := range []struct {
		name, dtype, compute string
		list                 List
		want                 string
	}{
		{"aten.mm", "float32", "", List{}, "float32"},
		{"aten.mm", "torch.float32", "", List{}, "float32"},
		{"aten.mm", "float32", "", List{AutocastDType: "bfloat16"}, "bfloat16"},
		{"aten.mm", "float16", "", List{AutocastDType: "bfloat16"}, "bfloat16"},
		{"aten.mm", "float64", "", List{AutocastDType: "bfloat16"}, "float64"},
		{"aten.mm", "float32", "float32", List{AutocastDType: "bfloat16"}, "float32"},
		{"aten._int_mm", "int8", "", List{AutocastDType: "bfloat16"}, "int8"},
		{"aten._scaled_mm", "float8_e4m3fn", "", List{AutocastDType: "bfloat16"}, "float8_e4m3fn"},
		{"aten.mm", "float32", "", List{Float32MatmulDType: "tfloat32"}, "tfloat32"},
		{"aten.mm", "float32", "", List{Float32ConvolutionDType: "tfloat32"}, "float32"},
		{"aten.convolution", "float32", "", List{Float32ConvolutionDType: "tfloat32"}, "tfloat32"},
		{"aten.convolution", "float32", "", List{Float32MatmulDType: "tfloat32"}, "float32"},
		{"aten.convolution", "float32", "", List{AutocastDType: "float16", Float32ConvolutionDType: "tfloat32"}, "float16"},
		{"aten.mm", "float32", "tf32", List{}, "tfloat32"},
	} {
		l := c.list
		l.Operators = []Operator{operator(c.name, c.dtype, c.compute)}
		totals := mustCount(t, &l)
		if len(totals.DTypes) != 1 || totals.DTypes[0].Name != c.want {
			t.Errorf("%s of %s (%q) in %+v: %+v, want %s", c.name, c.dtype, c.compute, c.list, totals.DTypes, c.want)
		}
	}
}

// A complex multiply-accumulate is four real ones: 8 FLOP.
func TestComplexProducts(t *testing.T) {
	a, b := tensor("self", true, 2, 3), tensor("mat2", false, 3, 4)
	a.DType, b.DType = "complex64", "complex64"
	totals := mustCount(t, &List{Training: true, Operators: []Operator{{Name: "aten.mm", Inputs: []Tensor{a, b}}}})
	if f, bw := small(t, totals.Forward.FLOPs), small(t, totals.Backward.FLOPs); f != 8*24 || bw != 8*24 {
		t.Errorf("forward %d, backward %d", f, bw)
	}
}

func TestUnknownIsNamedAndNeverZero(t *testing.T) {
	totals := mustCount(t, &List{Operators: []Operator{
		{Name: "mylib.scan", Count: 7},
		{Name: "mylib.scan", Count: 2, Module: "a"},
		{Name: "aten.mm", Inputs: []Tensor{tensor("self", false, 2, 3), tensor("mat2", false, 4, 5)}},
		{Name: "aten.convolution", Inputs: []Tensor{tensor("input", false, 1, 1, 2, 2), tensor("weight", false, 1, 1, 1, 1)}},
		{Name: "aten.relu", Outputs: []Tensor{tensor("", false, 3)}},
		{Name: "aten.view"},
	}})
	want := []UnknownOperator{
		{Name: "aten.convolution", Reason: "transposed is missing", Executions: NumberOf(1)},
		{Name: "aten.mm", Reason: "inner sizes differ", Executions: NumberOf(1)},
		{Name: "mylib.scan", Reason: "no formula", Executions: NumberOf(9)},
	}
	if diff := cmp.Diff(want, totals.Coverage.Unknown); diff != "" {
		t.Error(diff)
	}
	if totals.Complete() {
		t.Error("complete with unknown operators")
	}
	if got := totals.UnknownNames(); !cmp.Equal(got, []string{"aten.convolution", "aten.mm", "mylib.scan"}) {
		t.Errorf("names %v", got)
	}
	if small(t, totals.Coverage.Estimated) != 1 || small(t, totals.Coverage.Zero) != 1 {
		t.Errorf("coverage %+v", totals.Coverage)
	}
	if missing := mustCount(t, &List{MissingReason: "no torch"}); missing.Complete() {
		t.Error("complete with nothing counted")
	}
}

func TestEstimates(t *testing.T) {
	x := func(grad bool, dims ...int64) []Tensor { return []Tensor{tensor("input", grad, dims...)} }
	y := func(dims ...int64) []Tensor { return []Tensor{tensor("", false, dims...)} }
	for _, c := range []struct {
		o                            Operator
		elementwise, transcendentals uint64
	}{
		{Operator{Name: "aten.add", Inputs: append(x(false, 4, 1), tensor("other", false, 5)), Outputs: y(4, 5)}, 20, 0},
		{Operator{Name: "aten.add_", Inputs: x(false, 4, 5)}, 20, 0},
		{Operator{Name: "aten.gelu", Inputs: x(false, 10), Outputs: y(10)}, 10, 10},
		{Operator{Name: "aten._softmax", Inputs: x(false, 2, 10), Outputs: y(2, 10)}, 80, 20},
		{Operator{Name: "aten.native_batch_norm", Inputs: append(x(false, 2, 3), tensor("weight", true, 3)), Scalars: map[string]int64{"training": 1}}, 30, 0},
		{Operator{Name: "aten.native_batch_norm", Inputs: append(x(false, 2, 3), tensor("weight", true, 3)), Scalars: map[string]int64{"training": 0}}, 12, 0},
		{Operator{Name: "aten.native_batch_norm", Inputs: x(false, 2, 3), Scalars: map[string]int64{"training": 1}}, 24, 0},
		{Operator{Name: "aten._native_batch_norm_legit_no_training", Inputs: x(false, 2, 3)}, 6, 0},
		{Operator{Name: "aten.native_layer_norm", Inputs: append(x(false, 2, 3), tensor("weight", true, 3))}, 30, 0},
		{Operator{Name: "aten.native_layer_norm", Inputs: x(false, 2, 3)}, 24, 0},
		{Operator{Name: "aten.max_pool2d_with_indices", Inputs: x(false, 1, 1, 6, 6), Outputs: []Tensor{tensor("", false, 1, 1, 2, 2)}, Scalars: map[string]int64{"kernel_size.0": 3, "kernel_size.1": 3}}, 32, 0},
		{Operator{Name: "aten.avg_pool2d", Inputs: x(false, 1, 1, 6, 6), Outputs: y(1, 1, 2, 2), Scalars: map[string]int64{"kernel_size.0": 3, "kernel_size.1": 3}}, 36, 0},
		{Operator{Name: "aten.sum", Inputs: x(false, 7, 3), Outputs: y()}, 21, 0},
		{Operator{Name: "aten.upsample_bilinear2d", Inputs: x(false, 1, 1, 2, 2), Outputs: y(1, 1, 4, 4)}, 112, 0},
		// 5 n log2 n for 8 points, three times; half of it for real data.
		{Operator{Name: "aten._fft_c2c", Inputs: x(false, 3, 8), Outputs: y(3, 8), Scalars: map[string]int64{"dim.0": 1}}, 360, 0},
		{Operator{Name: "aten._fft_r2c", Inputs: x(false, 3, 8), Outputs: y(3, 5), Scalars: map[string]int64{"dim.0": 1}}, 180, 0},
		{Operator{Name: "aten._fft_c2r", Inputs: x(false, 3, 5), Outputs: y(3, 8), Scalars: map[string]int64{"dim.0": 1}}, 180, 0},
		{Operator{Name: "aten._cdist_forward", Inputs: []Tensor{tensor("x1", false, 2, 5), tensor("x2", false, 3, 5)}}, 90, 0},
		{Operator{Name: "aten.linalg_cholesky_ex", Inputs: x(false, 2, 3, 3)}, 18, 0},
		{Operator{Name: "aten._linalg_solve_ex", Inputs: []Tensor{tensor("A", false, 3, 3), tensor("B", false, 3, 2)}}, 18 + 36, 0},
		{Operator{Name: "aten.embedding", Inputs: x(false, 10, 4), Outputs: y(7, 4)}, 0, 0},
		{Operator{Name: "aten.embedding_dense_backward", Inputs: []Tensor{tensor("grad_output", false, 7, 4)}, Outputs: y(1000, 4)}, 28, 0},
		{Operator{Name: "aten._foreach_mul_", Inputs: []Tensor{tensor("self", false, 4), tensor("self", false, 6), tensor("scalar", false)}}, 10, 0},
	} {
		totals := mustCount(t, &List{Operators: []Operator{c.o}})
		if !totals.Complete() {
			t.Errorf("%s: %+v", c.o.Name, totals.Coverage.Unknown)
		}
		e, tr := small(t, totals.Forward.Elementwise), small(t, totals.Forward.Transcendentals)
		if e != c.elementwise || tr != c.transcendentals || !totals.FLOPs().IsZero() {
			t.Errorf("%s: %d and %d transcendental, want %d and %d; headline %v", c.o.Name, e, tr, c.elementwise, c.transcendentals, totals.FLOPs())
		}
	}
}

func TestBytes(t *testing.T) {
	half := tensor("mat2", false, 3, 5)
	half.DType = "bfloat16"
	totals := mustCount(t, &List{Operators: []Operator{{
		Name: "aten.mm", Inputs: []Tensor{tensor("self", false, 2, 3), half}, Outputs: []Tensor{tensor("", false, 2, 5)},
	}}})
	if got := small(t, totals.Forward.Bytes); got != 4*6+2*15+4*10 || totals.BytesIncomplete {
		t.Errorf("%d bytes, incomplete %v", got, totals.BytesIncomplete)
	}
	half.DType = "float3"
	totals = mustCount(t, &List{Operators: []Operator{{Name: "aten.mm", Inputs: []Tensor{tensor("self", false, 2, 3), half}}}})
	if !totals.BytesIncomplete {
		t.Error("a dtype of no known size went unnoticed")
	}
}

func TestDeclaredCounts(t *testing.T) {
	d, err := Declare("123456789012345678901234567890", "7", "bf16")
	if err != nil {
		t.Fatal(err)
	}
	totals := mustCount(t, &List{Training: true, Operators: []Operator{{Name: "mylib.kernel", Count: 10, Declared: d, Phase: Forward}}})
	if got := totals.Forward.FLOPs.String(); got != "1234567890123456789012345678900" {
		t.Errorf("forward %s", got)
	}
	if !totals.Complete() || totals.DTypes[0].Name != "bfloat16" || small(t, totals.Backward.FLOPs) != 70 {
		t.Errorf("%+v", totals)
	}
	if totals := mustCount(t, &List{Operators: []Operator{{Name: "mylib.kernel", Declared: d}}}); !totals.Backward.FLOPs.IsZero() {
		t.Error("a list that is not training has a backward")
	}
	whole := d.Totals("cost_analysis")
	if whole.FLOPs().String() != "123456789012345678901234567897" || whole.Method != "cost_analysis" || !whole.Complete() {
		t.Errorf("%+v", whole)
	}
	for _, c := range [][2]string{
		{"0", ""},
		{"-1", ""},
		{"", ""},
		{"1.5", ""},
		{"1e9", ""},
		{"+1", ""},
		{" 1", ""},
		{"١", ""},
		{"1", "-1"},
		{"1", "x"},
		{strings.Repeat("9", 81), ""},
	} {
		if _, err := Declare(c[0], c[1], ""); err == nil {
			t.Errorf("%q and %q were taken", c[0], c[1])
		} else if field := new(FieldError); !errors.As(err, &field) {
			t.Errorf("%q and %q: %v names no field", c[0], c[1], err)
		}
	}
}

func TestLimitsNameTheField(t *testing.T) {
	long := func(n int) string { return strings.Repeat("x", n) }
	mm := func(change func(*Operator)) *List {
		o := Operator{Name: "aten.mm", Inputs: []Tensor{tensor("self", false, 2, 3), tensor("mat2", false, 3, 4)}}
		change(&o)
		return &List{Operators: []Operator{{Name: "aten.view"}, o}}
	}
	for field, l := range map[string]*List{
		"signature":                  {Signature: long(65)},
		"operators":                  {Operators: make([]Operator, MaxOperators+1)},
		"missing_reason":             {MissingReason: "x", Operators: []Operator{{Name: "aten.mm"}}},
		"batch_size":                 {BatchSize: -1},
		"notes":                      {Notes: make([]string, 65)},
		"notes[0]":                   {Notes: []string{long(1025)}},
		"autocast_dtype":             {AutocastDType: long(65)},
		"float32_matmul_dtype":       {Float32MatmulDType: long(65)},
		"operators[1].name":          mm(func(o *Operator) { o.Name = "" }),
		"operators[1].module":        mm(func(o *Operator) { o.Module = long(1025) }),
		"operators[1].compute_dtype": mm(func(o *Operator) { o.ComputeDType = long(65) }),
		"operators[1].phase":         mm(func(o *Operator) { o.Phase = Backward }),
		"operators[1].scalars": mm(func(o *Operator) {
			o.Scalars = map[string]int64{}
			for i := range 65 {
				o.Scalars[fmt.Sprint(i)] = 1
			}
		}),
		"operators[1].strings":            mm(func(o *Operator) { o.Strings = map[string]string{"equation": long(257)} }),
		"operators[1].lengths[0]":         mm(func(o *Operator) { o.Lengths = []int64{-1} }),
		"operators[1].key_lengths":        mm(func(o *Operator) { o.KeyLengths = make([]int64, MaxLengths+1) }),
		"operators[1].inputs":             mm(func(o *Operator) { o.Inputs = make([]Tensor, MaxOperands+1) }),
		"operators[1].inputs[0].dims":     mm(func(o *Operator) { o.Inputs[0].Dims = make([]int64, 33) }),
		"operators[1].inputs[1].dims[0]":  mm(func(o *Operator) { o.Inputs[1].Dims[0] = -3 }),
		"operators[1].inputs[1].dims[1]":  mm(func(o *Operator) { o.Inputs[1].Dims[1] = MaxDim + 1 }),
		"operators[1].outputs[0].dims":    mm(func(o *Operator) { o.Outputs = []Tensor{tensor("", false, 1<<40, 1<<40)} }),
		"operators[1].inputs[0].dtype":    mm(func(o *Operator) { o.Inputs[0].DType = long(65) }),
		"operators[1].inputs[0].argument": mm(func(o *Operator) { o.Inputs[0].Argument = long(65) }),
		"operators[1].declared.dtype":     mm(func(o *Operator) { o.Declared = &Declared{DType: long(65)} }),
	} {
		totals, err := Count(l)
		var refused *FieldError
		if !errors.As(err, &refused) || refused.Field != field || totals != nil {
			t.Errorf("%s: %v", field, err)
		}
	}
	for _, l := range []*List{
		{Training: true, Operators: []Operator{{Name: "aten.mm", Phase: Backward}}},
		{Operators: []Operator{{Name: "aten.mm", Phase: Recompute}}},
		{Operators: []Operator{{Name: "aten.mm", Phase: 7}}},
	} {
		if _, err := Count(l); err == nil {
			t.Errorf("phase %d of %+v was taken", l.Operators[0].Phase, l)
		}
	}
}

// Sizes at the limit must neither overflow nor take long.
func TestLargestSizes(t *testing.T) {
	const d = MaxDim
	totals := mustCount(t, &List{Training: true, Operators: []Operator{
		{Name: "aten.mm", Count: 1 << 63, Inputs: []Tensor{tensor("self", true, 1<<22, d), tensor("mat2", true, d, 1<<22)}},
		{
			Name: "aten._flash_attention_forward", Scalars: map[string]int64{"is_causal": 1, "window_size_left": 1 << 62},
			Inputs: []Tensor{tensor("query", true, 1, d, 1, 1<<22), tensor("key", true, 1, d, 1, 1<<22), tensor("value", true, 1, d, 1, 1<<22)},
		},
	}})
	if !totals.Complete() {
		t.Fatalf("%+v", totals.Coverage.Unknown)
	}
	// 3 x 2 x 2^63 x 2^84 and 3 x 4 x 2^80 x 2^22.
	want := NumberOf(6).Mul(NumberOf(1 << 63)).Mul(product(1<<22, d, 1<<22)).Add(NumberOf(12).Mul(product(d, d, 1<<22)))
	if !totals.FLOPs().Equal(want) {
		t.Errorf("%v, want %v", totals.FLOPs(), want)
	}
}

// BenchmarkCount is what a new input signature costs the agent; a known one costs a look into the memo.
func BenchmarkCount(b *testing.B) {
	for name, operators := range map[string][]Operator{
		"ResNet-50": residual(32, true, 1, 64, 3, 4, 6, 3),
		"LLaMA-7B":  llama(128, 32_000),
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			l := &List{Training: true, Operators: operators}
			for b.Loop() {
				if _, err := Count(l); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
