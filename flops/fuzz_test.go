package flops

import (
	"strings"
	"testing"
)

// reader turns fuzz bytes into values; it never ends.
type reader struct {
	data []byte
	at   int
}

func (r *reader) byte() byte {
	if r.at >= len(r.data) {
		return 0
	}
	b := r.data[r.at]
	r.at++
	return b
}

// size is mostly small, sometimes at or over a limit.
func (r *reader) size() int64 {
	switch b := r.byte(); {
	case b < 240:
		return int64(b % 16)
	case b < 244:
		return 1 << 40
	case b < 248:
		return 1<<40 + 1
	case b < 252:
		return -int64(b)
	default:
		return int64(b)<<55 | int64(r.byte())
	}
}

func (r *reader) tensor(arguments []string) Tensor {
	t := Tensor{
		DType:    [...]string{"float32", "bfloat16", "int64", "complex64", "", "float8_e4m3fn"}[r.byte()%6],
		Grad:     r.byte()%2 == 0,
		Argument: arguments[int(r.byte())%len(arguments)],
	}
	for range r.byte() % 6 {
		t.Dims = append(t.Dims, r.size())
	}
	return t
}

// list builds an operator list out of every name and argument that the formulas read.
func (r *reader) list(names, arguments, scalars []string) *List {
	l := &List{Training: r.byte()%2 == 0, BackwardRecorded: r.byte()%2 == 0, BatchSize: r.size()}
	for range r.byte() % 8 {
		o := Operator{Name: names[(int(r.byte())<<8|int(r.byte()))%len(names)], Phase: Phase(r.byte() % 5), Count: uint64(r.size())}
		for range r.byte() % 12 {
			o.Inputs = append(o.Inputs, r.tensor(arguments))
		}
		for range r.byte() % 4 {
			o.Outputs = append(o.Outputs, r.tensor(arguments))
		}
		o.Scalars = map[string]int64{}
		for range r.byte() % 12 {
			o.Scalars[scalars[int(r.byte())%len(scalars)]] = r.size()
		}
		for range r.byte() % 6 {
			o.Lengths = append(o.Lengths, r.size())
		}
		for range r.byte() % 6 {
			o.KeyLengths = append(o.KeyLengths, r.size())
		}
		if n := int(r.byte()) % 32; n > 0 {
			var equation strings.Builder
			for range n {
				equation.WriteByte("abcdij,->. .Z1"[r.byte()%14])
			}
			o.Strings = map[string]string{"equation": equation.String()}
		}
		if r.byte()%16 == 1 {
			o.Declared = &Declared{Forward: NumberOf(uint64(r.byte()))}
		}
		l.Operators = append(l.Operators, o)
	}
	return l
}

// FuzzCount: whatever the shapes are, the answer is a refusal that names its field, or totals whose shares add up.
func FuzzCount(f *testing.F) {
	var names []string
	for _, table := range [][3]string{
		{"formulas.go", "exactFormula", "aten."},
		{"estimates.go", "estimatedFormula", "aten."},
		{"formulas.go", "visionFormula", "torchvision."},
		{"formulas.go", "libraryAttention", "flash_attn."},
	} {
		for _, n := range caseLabels(f, table[0], table[1]) {
			names = append(names, table[2]+n)
		}
	}
	names = append(names, "mylib.op", "aten.view", "aten.cat", "torch_attn._varlen_attn", "")
	arguments := []string{
		"", "input", "data", "weight", "hx", "cx", "params", "query", "key", "value", "attn_mask", "cum_seq_q", "src", "qkv_weight",
		"proj_weight", "ffn_weight_1", "ffn_weight_2", "w_ih", "w_hh", "weight0", "weight1", "weight2", "hx_", "cx_", "tensors", "offset",
	}
	scalars := []string{
		"transposed", "output_mask", "is_causal", "custom_mask_type", "window_size", "window_size_left", "window_size_right", "bidirectional",
		"num_layers", "reverse", "expand1.0", "expand1.1", "expand2.0", "expand3.0", "expand3.1", "dims_self.0", "dims_other.0", "path.0", "path.1",
		"path.2", "path.3", "kernel_size.0", "kernel_size.1", "dim.0", "dim.1", "training", "sampling_ratio",
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		l := (&reader{data: data}).list(names, arguments, scalars)
		totals, err := Count(l)
		if err != nil {
			refused, ok := err.(*FieldError)
			if !ok || refused.Field == "" || totals != nil {
				t.Fatalf("refusal without a field: %v", err)
			}
			return
		}
		for _, groups := range [][]Group{totals.Operators, totals.Modules, totals.DTypes} {
			var s Sums
			for _, g := range groups {
				s = s.plus(g.Sums)
			}
			if !s.FLOPs().Equal(totals.FLOPs()) || !s.Executed().Equal(totals.Executed()) {
				t.Fatalf("shares %v, total %v", s.FLOPs(), totals.FLOPs())
			}
		}
		if totals.CausalDiscount().Compare(totals.FLOPs()) > 0 {
			t.Fatalf("causal discount %v of %v", totals.CausalDiscount(), totals.FLOPs())
		}
		Epoch([]Batches{{totals, 3}})
	})
}

// FuzzOverride: an accepted override has peaks that are finite and above 0.
func FuzzOverride(f *testing.F) {
	for _, s := range []string{"", "bf16=989e12,tf32=494.7e12", "fp8=1e999", "=", ",,", "float64=0x1p40"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		o, err := ParseOverride(s)
		if err != nil || o == nil {
			return
		}
		p, ok := o.PeakOf("NVIDIA Unknown 1000")
		if !ok {
			t.Fatal("an override without a peak")
		}
		for _, dtype := range []string{"float64", "float32", "tfloat32", "bfloat16", "float16", "float8_e5m2", "fp4", "int8"} {
			if rate, ok := p.Of(dtype); ok && !(rate > 0 && rate <= maxOverrideFLOPS) {
				t.Fatalf("%s: %g", dtype, rate)
			}
		}
	})
}

// FuzzNumber: what is read is written back without leading zeros.
func FuzzNumber(f *testing.F) {
	for _, s := range []string{"0", "18446744073709551616", "-1", "007", "1e3"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := ParseNumber(s)
		if err != nil {
			return
		}
		want := strings.TrimLeft(s, "0")
		if want == "" {
			want = "0"
		}
		if n.String() != want {
			t.Fatalf("%q became %s", s, n)
		}
	})
}
