package flops

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// The counters here walk the definition of each operator, one multiply-accumulate at a time, over small random shapes.

const bruteCases = 150

func random(t *testing.T, name string) *rand.Rand {
	t.Helper()
	var seed uint64
	for _, r := range name {
		seed = seed*31 + uint64(r)
	}
	return rand.New(rand.NewPCG(seed, 1))
}

func tensor(argument string, grad bool, dims ...int64) Tensor {
	return Tensor{Dims: dims, DType: "float32", Grad: grad, Argument: argument}
}

func coin(r *rand.Rand) bool { return r.IntN(2) == 0 }

func between(r *rand.Rand, low, high int) int64 { return int64(low + r.IntN(high-low+1)) }

// counted runs one operator in a training list and returns its forward and derived backward FLOP.
func counted(t *testing.T, o Operator) (forward, backward uint64) {
	t.Helper()
	totals, err := Count(&List{Operators: []Operator{o}, Training: true})
	if err != nil {
		t.Fatalf("count %s: %v", o.Name, err)
	}
	if !totals.Complete() {
		t.Fatalf("%s is unknown: %+v", o.Name, totals.Coverage.Unknown)
	}
	return small(t, totals.Forward.FLOPs), small(t, totals.Backward.FLOPs)
}

func small(t *testing.T, n Number) uint64 {
	t.Helper()
	if n.large != nil {
		t.Fatalf("%v exceeds 64 bits", n)
	}
	return n.small
}

// perOperand is the backward of a bilinear operator: the forward again for each operand that needs a gradient.
func perOperand(macs uint64, bits ...bool) uint64 {
	var n uint64
	for _, b := range bits {
		if b {
			n += 2 * macs
		}
	}
	return n
}

func check(t *testing.T, what string, forward, backward, macs, wantBackward uint64) {
	t.Helper()
	if forward != 2*macs || backward != wantBackward {
		t.Errorf("%s: forward %d, backward %d; the loops make %d and %d", what, forward, backward, 2*macs, wantBackward)
	}
}

func TestMatrixProductsAgainstLoops(t *testing.T) {
	r := random(t, t.Name())
	for range bruteCases {
		b, m, k, n := between(r, 0, 4), between(r, 0, 5), between(r, 0, 5), between(r, 0, 5)
		ga, gb := coin(r), coin(r)
		var macs uint64
		for range m {
			for range n {
				for range k {
					macs++
				}
			}
		}
		for _, o := range []Operator{
			{Name: "aten.mm", Inputs: []Tensor{tensor("self", ga, m, k), tensor("mat2", gb, k, n)}},
			{Name: "aten.addmm", Inputs: []Tensor{tensor("self", true, n), tensor("mat1", ga, m, k), tensor("mat2", gb, k, n)}},
			{Name: "aten.linear", Inputs: []Tensor{tensor("input", ga, m, k), tensor("weight", gb, n, k), tensor("bias", true, n)}},
			{Name: "aten.matmul", Inputs: []Tensor{tensor("self", ga, m, k), tensor("other", gb, k, n)}},
			{Name: "aten.inner", Inputs: []Tensor{tensor("self", ga, m, k), tensor("other", gb, n, k)}},
			{Name: "aten.tensordot", Inputs: []Tensor{tensor("self", ga, k, m), tensor("other", gb, n, k)}, Scalars: map[string]int64{"dims_self.0": 0, "dims_other.0": -1}},
			{Name: "aten._int_mm", Inputs: []Tensor{tensor("self", ga, m, k), tensor("mat2", gb, k, n)}},
		} {
			forward, backward := counted(t, o)
			check(t, fmt.Sprintf("%s [%d,%d]x[%d,%d]", o.Name, m, k, k, n), forward, backward, macs, perOperand(macs, ga, gb))
		}
		var batched uint64
		for range b {
			batched += macs
		}
		for _, o := range []Operator{
			{Name: "aten.bmm", Inputs: []Tensor{tensor("self", ga, b, m, k), tensor("mat2", gb, b, k, n)}},
			{Name: "aten.baddbmm", Inputs: []Tensor{tensor("self", true, b, m, n), tensor("batch1", ga, b, m, k), tensor("batch2", gb, b, k, n)}},
			{Name: "aten.matmul", Inputs: []Tensor{tensor("self", ga, b, 1, m, k), tensor("other", gb, 1, k, n)}},
			{Name: "aten._grouped_mm", Inputs: []Tensor{tensor("self", ga, b, m, k), tensor("mat2", gb, b, k, n)}},
			{Name: "aten.linear", Inputs: []Tensor{tensor("input", ga, b, m, k), tensor("weight", gb, n, k)}},
		} {
			forward, backward := counted(t, o)
			check(t, fmt.Sprintf("%s %dx[%d,%d]x[%d,%d]", o.Name, b, m, k, k, n), forward, backward, batched, perOperand(batched, ga, gb))
		}
		var vector, dot uint64
		for range m {
			for range k {
				vector++
			}
		}
		for range k {
			dot++
		}
		forward, backward := counted(t, Operator{Name: "aten.mv", Inputs: []Tensor{tensor("self", ga, m, k), tensor("vec", gb, k)}})
		check(t, "mv", forward, backward, vector, perOperand(vector, ga, gb))
		forward, backward = counted(t, Operator{Name: "aten.dot", Inputs: []Tensor{tensor("self", ga, k), tensor("tensor", gb, k)}})
		check(t, "dot", forward, backward, dot, perOperand(dot, ga, gb))
		// An outer product multiplies and adds nothing; its gradients are matrix-vector products.
		forward, backward = counted(t, Operator{Name: "aten.addr", Inputs: []Tensor{tensor("self", true, m, k), tensor("vec1", ga, m), tensor("vec2", gb, k)}})
		if forward != vector || backward != perOperand(vector, ga, gb) {
			t.Errorf("addr: forward %d, backward %d; want %d and %d", forward, backward, vector, perOperand(vector, ga, gb))
		}
	}
}

func TestGroupedProductAgainstLoops(t *testing.T) {
	r := random(t, t.Name())
	for range bruteCases {
		k, n := between(r, 1, 5), between(r, 1, 5)
		groups := make([]int64, between(r, 1, 4))
		var rows int64
		var macs uint64
		for g := range groups {
			groups[g] = between(r, 0, 4)
			rows += groups[g]
			for range groups[g] {
				for range k {
					for range n {
						macs++
					}
				}
			}
		}
		ga, gb := coin(r), coin(r)
		// Without the group lengths all rows count; with them, rows beyond the last group do not.
		for _, o := range []Operator{
			{Inputs: []Tensor{tensor("self", ga, rows, k), tensor("mat2", gb, int64(len(groups)), k, n)}},
			{Inputs: []Tensor{tensor("self", ga, rows+3, k), tensor("mat2", gb, int64(len(groups)), k, n)}, Lengths: groups},
			{Inputs: []Tensor{tensor("self", ga, k, rows), tensor("mat2", gb, rows, n)}, Lengths: groups},
			{Inputs: []Tensor{tensor("self", ga, int64(len(groups)), n, k), tensor("mat2", gb, k, rows+1)}, Lengths: groups},
		} {
			o.Name = "aten._grouped_mm"
			forward, backward := counted(t, o)
			check(t, "grouped", forward, backward, macs, perOperand(macs, ga, gb))
		}
	}
}

func TestBilinearLayersAgainstLoops(t *testing.T) {
	r := random(t, t.Name())
	for range bruteCases {
		n, out, i1, i2 := between(r, 1, 4), between(r, 1, 4), between(r, 1, 4), between(r, 1, 4)
		ga, gb, gw := coin(r), coin(r), coin(r)
		var macs uint64
		for range n {
			for range out {
				for range i1 {
					for range i2 {
						macs++
					}
				}
			}
		}
		want := perOperand(macs, ga, gb, gw)
		forward, backward := counted(t, Operator{
			Name:   "aten._trilinear",
			Inputs: []Tensor{tensor("i1", ga, n, i1), tensor("i2", gw, out, i1, i2), tensor("i3", gb, n, i2)},
			Scalars: map[string]int64{
				"expand1.0": 1, "expand1.1": 3, "expand2.0": 0, "expand3.0": 1, "expand3.1": 2,
			},
		})
		check(t, "_trilinear", forward, backward, macs, want)
		forward, backward = counted(t, Operator{
			Name:   "aten.bilinear",
			Inputs: []Tensor{tensor("input1", ga, n, i1), tensor("input2", gb, n, i2), tensor("weight", gw, out, i1, i2)},
		})
		check(t, "bilinear", forward, backward, macs, want)
	}
}

// convolutionCase is a random convolution of one to three dimensions.
type convolutionCase struct {
	batch, in, out, groups    int64
	size, kernel              []int64
	stride, padding, dilation []int64
	transposed                bool
	result                    []int64
}

func randomConvolution(r *rand.Rand) convolutionCase {
	for {
		c := convolutionCase{batch: between(r, 1, 2), groups: between(r, 1, 3), transposed: coin(r)}
		c.in, c.out = c.groups*between(r, 1, 2), c.groups*between(r, 1, 2)
		if r.IntN(4) == 0 {
			// Depthwise.
			c.groups = c.in
			c.out = c.in * between(r, 1, 2)
		}
		dims := 1 + r.IntN(3)
		ok := true
		for range dims {
			size, kernel := between(r, 1, 6), between(r, 1, 3)
			stride, padding, dilation := between(r, 1, 3), between(r, 0, 2), between(r, 1, 2)
			extra := int64(0)
			var result int64
			if c.transposed {
				if extra = between(r, 0, 1); extra >= max(stride, dilation) {
					extra = 0
				}
				result = (size-1)*stride - 2*padding + dilation*(kernel-1) + extra + 1
			} else {
				span := size + 2*padding - dilation*(kernel-1) - 1
				ok = ok && span >= 0
				result = span/stride + 1
			}
			ok = ok && result >= 1
			c.size, c.kernel, c.result = append(c.size, size), append(c.kernel, kernel), append(c.result, result)
			c.stride, c.padding, c.dilation = append(c.stride, stride), append(c.padding, padding), append(c.dilation, dilation)
		}
		if ok {
			return c
		}
	}
}

// positions counts the points of a grid one by one.
func positions(sizes []int64) uint64 {
	if len(sizes) == 0 {
		return 1
	}
	var n uint64
	for range sizes[0] {
		n += positions(sizes[1:])
	}
	return n
}

// macs walks the definition: a plain convolution gathers, for each result, every tap of its kernel from each channel
// of its group, padding included; a transposed one scatters, for each input, every tap to each channel of its group,
// those that are cropped included.
func (c convolutionCase) macs() uint64 {
	var n uint64
	for range c.batch {
		if c.transposed {
			for range c.in {
				for range positions(c.size) {
					for range c.out / c.groups {
						n += positions(c.kernel)
					}
				}
			}
			continue
		}
		for range c.out {
			for range positions(c.result) {
				for range c.in / c.groups {
					n += positions(c.kernel)
				}
			}
		}
	}
	return n
}

func (c convolutionCase) tensors(gx, gw bool) (x, w, y Tensor) {
	x = tensor("input", gx, append([]int64{c.batch, c.in}, c.size...)...)
	y = tensor("", false, append([]int64{c.batch, c.out}, c.result...)...)
	if c.transposed {
		return x, tensor("weight", gw, append([]int64{c.in, c.out / c.groups}, c.kernel...)...), y
	}
	return x, tensor("weight", gw, append([]int64{c.out, c.in / c.groups}, c.kernel...)...), y
}

func TestConvolutionsAgainstLoops(t *testing.T) {
	r := random(t, t.Name())
	for range 4 * bruteCases {
		c := randomConvolution(r)
		gx, gw := coin(r), coin(r)
		x, w, y := c.tensors(gx, gw)
		macs := c.macs()
		transposed := int64(0)
		whole := fmt.Sprintf("aten.conv%dd", len(c.size))
		if c.transposed {
			transposed = 1
			whole = fmt.Sprintf("aten.conv_transpose%dd", len(c.size))
		}
		for _, o := range []Operator{
			{Name: "aten.convolution", Inputs: []Tensor{x, w, tensor("bias", true, c.out)}, Scalars: map[string]int64{"transposed": transposed}},
			{Name: whole, Inputs: []Tensor{x, w}},
		} {
			o.Outputs = []Tensor{y}
			forward, backward := counted(t, o)
			check(t, fmt.Sprintf("%s %+v", o.Name, c), forward, backward, macs, perOperand(macs, gx, gw))
		}
		// The recorded backward gives each gradient by the mask.
		for mask := range int64(8) {
			y.Argument = "grad_output"
			totals, err := Count(&List{Training: true, BackwardRecorded: true, Operators: []Operator{{
				Name: "aten.convolution_backward", Phase: Backward, Inputs: []Tensor{y, x, w},
				Scalars: map[string]int64{"transposed": transposed, "output_mask": mask},
			}}})
			if err != nil {
				t.Fatal(err)
			}
			want := perOperand(macs, mask&1 != 0, mask&2 != 0)
			if got := small(t, totals.Backward.FLOPs); got != want || !totals.Forward.FLOPs.IsZero() {
				t.Errorf("convolution_backward mask %d %+v: %d, want %d", mask, c, got, want)
			}
		}
	}
}

func TestDeformableConvolutionAgainstLoops(t *testing.T) {
	r := random(t, t.Name())
	for range bruteCases {
		n, out, in, h, w, k := between(r, 1, 2), between(r, 1, 3), between(r, 1, 3), between(r, 1, 4), between(r, 1, 4), between(r, 1, 3)
		var macs uint64
		for range n * out * h * w {
			for range in * k * k {
				macs++
			}
		}
		gx, gw, goff := coin(r), coin(r), coin(r)
		forward, backward := counted(t, Operator{
			Name: "torchvision.deform_conv2d",
			Inputs: []Tensor{
				tensor("input", gx, n, in, h, w), tensor("weight", gw, out, in, k, k), tensor("offset", goff, n, 2*k*k, h, w),
			},
			Outputs: []Tensor{tensor("", false, n, out, h, w)},
		})
		check(t, "deform_conv2d", forward, backward, macs, perOperand(macs, gx || goff, gw))
	}
}

func TestAttentionAgainstLoops(t *testing.T) {
	r := random(t, t.Name())
	for range 2 * bruteCases {
		b, hk := between(r, 1, 2), between(r, 1, 2)
		hq := hk * between(r, 1, 3)
		sq, sk, d, dv := between(r, 1, 6), between(r, 1, 6), between(r, 1, 4), between(r, 1, 4)
		gq, gk, gv, gm := coin(r), coin(r), coin(r), coin(r)
		causal := coin(r)
		left, right := int64(-1), int64(-1)
		kernel := r.IntN(3)
		align := topLeft
		o := Operator{Scalars: map[string]int64{}}
		bias := "attn_mask"
		switch kernel {
		case 0:
			o.Name = "aten.scaled_dot_product_attention"
		case 1:
			o.Name = "aten._scaled_dot_product_efficient_attention"
			bias = "attn_bias"
		case 2:
			o.Name = "aten._flash_attention_forward"
			align = bottomRight
			left, right = between(r, -1, 3), between(r, -1, 3)
			o.Scalars["window_size_left"], o.Scalars["window_size_right"] = left, right
			gm = false
		}
		if causal {
			o.Scalars["is_causal"] = 1
			right = 0
		}
		if kernel == 2 {
			o.Inputs = []Tensor{tensor("query", gq, b, sq, hq, d), tensor("key", gk, b, sk, hk, d), tensor("value", gv, b, sk, hk, dv)}
		} else {
			o.Inputs = []Tensor{
				tensor("query", gq, b, hq, sq, d), tensor("key", gk, b, hk, sk, d), tensor("value", gv, b, hk, sk, dv),
				tensor(bias, gm, b, 1, sq, sk),
			}
		}
		var macs, backward, masked, maskedBackward uint64
		for range b * hq {
			for i := range sq {
				for j := range sk {
					var pair, gradient uint64
					for range d {
						pair++ // q k
						if gq {
							gradient++ // dS k
						}
						if gk {
							gradient++ // dS q
						}
					}
					for range dv {
						pair++ // p v
						if gv {
							gradient++ // p dO
						}
						if gq || gk || gm {
							gradient++ // dO v
						}
					}
					macs += pair
					backward += gradient
					diagonal := i
					if align == bottomRight {
						diagonal = i + sk - sq
					}
					if (right >= 0 && j > diagonal+right) || (left >= 0 && j < diagonal-left) {
						masked += pair
						maskedBackward += gradient
					}
				}
			}
		}
		totals, err := Count(&List{Operators: []Operator{o}, Training: true})
		if err != nil || !totals.Complete() {
			t.Fatalf("%s: %v %+v", o.Name, err, totals)
		}
		what := fmt.Sprintf("%s b%d hq%d hk%d sq%d sk%d d%d dv%d causal %v left %d right %d", o.Name, b, hq, hk, sq, sk, d, dv, causal, left, right)
		check(t, what, small(t, totals.Forward.FLOPs), small(t, totals.Backward.FLOPs), macs, 2*backward)
		if got := small(t, totals.CausalForward); got != 2*masked {
			t.Errorf("%s: causal forward %d, the loops make %d", what, got, 2*masked)
		}
		if got := small(t, totals.CausalBackward); got != 2*maskedBackward {
			t.Errorf("%s: causal backward %d, the loops make %d", what, got, 2*maskedBackward)
		}
	}
}

func TestVariableLengthAttentionAgainstLoops(t *testing.T) {
	r := random(t, t.Name())
	for range bruteCases {
		h, d := between(r, 1, 3), between(r, 1, 4)
		var queries, keys []int64
		var tq, tk int64
		var macs uint64
		for range between(r, 1, 4) {
			q, k := between(r, 0, 4), between(r, 0, 4)
			queries, keys = append(queries, q), append(keys, k)
			tq, tk = tq+q, tk+k
			for range h {
				for range q {
					for range k {
						for range 2 * d {
							macs++
						}
					}
				}
			}
		}
		for _, name := range []string{"torch_attn._varlen_attn", "flash_attn._flash_attn_varlen_forward", "aten._flash_attention_forward"} {
			o := Operator{
				Name: name,
				Inputs: []Tensor{
					tensor("query", true, tq, h, d), tensor("key", true, tk, h, d), tensor("value", true, tk, h, d),
					tensor("cum_seq_q", false, int64(len(queries)+1)),
				},
				Lengths: queries, KeyLengths: keys,
			}
			forward, backward := counted(t, o)
			check(t, name, forward, backward, macs, 4*macs)
			if name == "torch_attn._varlen_attn" {
				// A window of this key and none before it, aligned to the end: one pair a query that has a key.
				var pairs int64
				for i := range queries {
					pairs += min(queries[i], keys[i])
				}
				o.Scalars = map[string]int64{"window_size.0": 0, "window_size.1": 0}
				totals, err := Count(&List{Operators: []Operator{o}})
				if err != nil {
					t.Fatal(err)
				}
				if seen := totals.Forward.FLOPs.Minus(totals.CausalForward); small(t, seen) != uint64(4*d*h*pairs) {
					t.Errorf("window: %v seen, want %d", seen, 4*d*h*pairs)
				}
			}
			o.Lengths, o.KeyLengths = nil, nil
			totals, err := Count(&List{Operators: []Operator{o}})
			if err != nil || totals.Complete() {
				t.Errorf("%s without its lengths must be unknown: %v", name, err)
			}
		}
	}
}

// recurrentCase is a random recurrent layer, some of it frozen.
type recurrentCase struct {
	gates, width, hidden, projection, layers int64
	bidirectional                            bool
	lengths                                  []int64
	x, h0, c0                                bool
	// Per layer and direction: w_ih, w_hh, a bias, w_hr.
	trained [][4]bool
}

func randomRecurrent(r *rand.Rand) recurrentCase {
	c := recurrentCase{
		gates: []int64{4, 3, 1}[r.IntN(3)], width: between(r, 1, 4), hidden: between(r, 2, 4), layers: between(r, 1, 3),
		bidirectional: coin(r), x: coin(r), h0: r.IntN(4) == 0, c0: r.IntN(4) == 0,
	}
	if coin(r) {
		c.projection = between(r, 1, int(c.hidden)-1)
	}
	rows := between(r, 1, 4)
	for range between(r, 1, 5) {
		c.lengths = append(c.lengths, rows)
		rows = between(r, 1, int(rows))
	}
	for range c.cells() {
		c.trained = append(c.trained, [4]bool{r.IntN(3) > 0, r.IntN(3) > 0, r.IntN(3) > 0, r.IntN(3) > 0})
	}
	return c
}

func (c recurrentCase) directions() int64 {
	if c.bidirectional {
		return 2
	}
	return 1
}

func (c recurrentCase) cells() int64 { return c.layers * c.directions() }

// walk executes the layer step by step as autograd sees it and counts products, each with the gradients of its
// operands.
func (c recurrentCase) walk() (macs, backward uint64) {
	state := c.hidden
	if c.projection > 0 {
		state = c.projection
	}
	product := func(rows, m, n int64, weight, operand bool) {
		for range rows * m * n {
			macs++
			if weight {
				backward++
			}
			if operand {
				backward++
			}
		}
	}
	width, input := c.width, c.x
	for layer := range c.layers {
		output := false
		for d := range c.directions() {
			bits := c.trained[layer*c.directions()+d]
			h, cell := c.h0, c.c0
			for step := range c.lengths {
				rows := c.lengths[step]
				if d == 1 {
					rows = c.lengths[len(c.lengths)-1-step]
				}
				gates := input || bits[0] || bits[1] || bits[2] || h
				product(rows, c.gates*c.hidden, width, bits[0], gates && input)
				product(rows, c.gates*c.hidden, state, bits[1], gates && h)
				unprojected := gates || cell
				cell = unprojected
				h = unprojected
				if c.projection > 0 {
					product(rows, c.projection, c.hidden, bits[3], unprojected)
					h = unprojected || bits[3]
				}
				if c.gates != 4 {
					cell = false
				}
			}
			output = output || h
		}
		input, width = output, state*c.directions()
	}
	return macs, backward
}

func (c recurrentCase) operator() Operator {
	o := Operator{Name: "aten.lstm", Scalars: map[string]int64{"num_layers": c.layers}}
	if c.bidirectional {
		o.Scalars["bidirectional"] = 1
	}
	var rows int64
	for _, n := range c.lengths {
		rows += n
	}
	state := c.hidden
	if c.projection > 0 {
		state = c.projection
	}
	o.Lengths = c.lengths
	o.Inputs = []Tensor{tensor("data", c.x, rows, c.width), tensor("hx", c.h0, c.cells(), c.lengths[0], state)}
	if c.gates == 4 {
		o.Inputs = append(o.Inputs, tensor("hx", c.c0, c.cells(), c.lengths[0], c.hidden))
	}
	width := c.width
	for layer := range c.layers {
		for d := range c.directions() {
			bits := c.trained[layer*c.directions()+d]
			o.Inputs = append(o.Inputs,
				tensor("params", bits[0], c.gates*c.hidden, width), tensor("params", bits[1], c.gates*c.hidden, state),
				tensor("params", bits[2], c.gates*c.hidden), tensor("params", false, c.gates*c.hidden))
			if c.projection > 0 {
				o.Inputs = append(o.Inputs, tensor("params", bits[3], c.projection, c.hidden))
			}
		}
		width = state * c.directions()
	}
	return o
}

func TestRecurrentLayersAgainstSteps(t *testing.T) {
	r := random(t, t.Name())
	for range 10 * bruteCases {
		c := randomRecurrent(r)
		if c.gates != 4 {
			c.c0, c.projection = false, 0
		}
		macs, backward := c.walk()
		o := c.operator()
		forward, got := counted(t, o)
		check(t, fmt.Sprintf("packed %+v", c), forward, got, macs, 2*backward)
		for i, n := range c.lengths {
			if n != c.lengths[0] {
				break
			}
			if i < len(c.lengths)-1 {
				continue
			}
			// All steps are equally long: the dense form must agree.
			o.Lengths = nil
			o.Inputs[0] = tensor("input", c.x, int64(len(c.lengths)), n, c.width)
			forward, got = counted(t, o)
			check(t, fmt.Sprintf("dense %+v", c), forward, got, macs, 2*backward)
		}
	}
}

func TestEncoderLayerAgainstLoops(t *testing.T) {
	r := random(t, t.Name())
	for range bruteCases {
		b, s, heads, width, ff := between(r, 1, 2), between(r, 1, 4), between(r, 1, 3), between(r, 1, 3), between(r, 1, 5)
		d := heads * width
		var attention, feedForward uint64
		for range b * s {
			for range 3 * d { // q, k, v
				for range d {
					attention++
				}
			}
			for range heads {
				for range s {
					for range 2 * width { // scores and values
						attention++
					}
				}
			}
			for range d * d { // output projection
				attention++
			}
			for range 2 * d * ff {
				feedForward++
			}
		}
		weights := []Tensor{tensor("qkv_weight", false, 3*d, d), tensor("qkv_bias", false, 3*d), tensor("proj_weight", false, d, d), tensor("proj_bias", false, d)}
		x := []int64{b, s, d}
		forward, backward := counted(t, Operator{Name: "aten._native_multi_head_attention", Inputs: append([]Tensor{
			tensor("query", false, x...), tensor("key", false, x...), tensor("value", false, x...),
		}, weights...)})
		check(t, "native attention", forward, backward, attention, 0)
		forward, backward = counted(t, Operator{Name: "aten._transformer_encoder_layer_fwd", Inputs: append(append([]Tensor{tensor("src", false, x...)}, weights...),
			tensor("ffn_weight_1", false, ff, d), tensor("ffn_weight_2", false, d, ff))})
		check(t, "encoder layer", forward, backward, attention+feedForward, 0)
	}
}

// The totals of these equations are those of the bmm operators that torch 2.15 shows for them outside inference mode.
func TestEinsum(t *testing.T) {
	for _, c := range []struct {
		equation string
		shapes   [][]int64
		flops    uint64
	}{
		{"ij,jk->ik", [][]int64{{3, 4}, {4, 5}}, 120},
		{"bij,bjk,kl->bil", [][]int64{{2, 3, 4}, {2, 4, 5}, {5, 6}}, 600},
		{"i,j->ij", [][]int64{{3}, {4}}, 0},
		{"bhid,bhjd->bhij", [][]int64{{2, 3, 4, 5}, {2, 3, 6, 5}}, 1440},
		{"...ij,...jk->...ik", [][]int64{{2, 3, 4}, {2, 4, 5}}, 240},
		{"ijk,j->ik", [][]int64{{3, 4, 5}, {4}}, 120},
		{"ij,kl->k", [][]int64{{3, 4}, {5, 6}}, 0},
		{"ij,j", [][]int64{{3, 4}, {4}}, 24},
		{"bn,anm,bm->ba", [][]int64{{2, 3}, {4, 3, 5}, {2, 5}}, 320},
		{"ii,i->i", [][]int64{{3, 3}, {3}}, 0},
		{"abc,acd,ade->abe", [][]int64{{2, 3, 4}, {2, 4, 5}, {2, 5, 6}}, 600},
	} {
		o := Operator{Name: "aten.einsum", Strings: map[string]string{"equation": c.equation}}
		for _, s := range c.shapes {
			o.Inputs = append(o.Inputs, tensor("tensors", false, s...))
		}
		if forward, _ := counted(t, o); forward != c.flops {
			t.Errorf("%s: %d, want %d", c.equation, forward, c.flops)
		}
	}
	// A path contracts the pair that it names first: (bc,cd) then ab.
	forward, _ := counted(t, Operator{
		Name: "aten.einsum", Strings: map[string]string{"equation": "ab,bc,cd->ad"},
		Inputs:  []Tensor{tensor("tensors", false, 10, 2), tensor("tensors", false, 2, 10), tensor("tensors", false, 10, 2)},
		Scalars: map[string]int64{"path.0": 1, "path.1": 2, "path.2": 0, "path.3": 1},
	})
	if want := uint64(2*2*10*2 + 2*10*2*2); forward != want {
		t.Errorf("einsum along a path: %d, want %d", forward, want)
	}
}

func TestEquationsThatDoNotFit(t *testing.T) {
	two := []Tensor{tensor("tensors", false, 2, 3), tensor("tensors", false, 3, 4)}
	for _, text := range []string{
		"", "->", "ij", "ij,jk,kl", "ij,jk->il", "i,jk->ik", "ijk,jk->ik", "ij,ij->i", "i1,1k->ik", "ij,jk->i.k", "ij,jk->ik->ik", "....ij,jk->ik",
		"...ijk,jk->ik", "ij;jk->ik", "ij,jk->iké",
	} {
		totals := mustCount(t, &List{Operators: []Operator{{Name: "aten.einsum", Inputs: two, Strings: map[string]string{"equation": text}}}})
		if totals.Complete() {
			t.Errorf("%q was counted: %+v", text, totals.Sums)
		}
	}
	for _, text := range []string{"ij,jk->ik", "ij,jk", " i j , j k -> i k ", "...j,j...->...", "ij,jk->", "iJ,Jk->ki", "...,...k->...k"} {
		o := Operator{Name: "aten.einsum", Inputs: two, Strings: map[string]string{"equation": text}}
		if text == "...,...k->...k" {
			o.Inputs = []Tensor{tensor("tensors", false, 3), tensor("tensors", false, 3, 4)}
		}
		if text == "...j,j...->..." {
			o.Inputs = []Tensor{tensor("tensors", false, 4, 3), tensor("tensors", false, 3, 4)}
		}
		if totals := mustCount(t, &List{Operators: []Operator{o}}); !totals.Complete() {
			t.Errorf("%q: %+v", text, totals.Coverage.Unknown)
		}
	}
}
