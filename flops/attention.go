package flops

// Scaled dot-product attention as one operator: QK^T and PV, the full square of pairs whatever the mask. The part
// outside a causal or windowed mask is given apart, since most published figures and Megatron's halve it and most
// counters do not.

// layout says where an attention operator keeps its dimensions.
type layout uint8

const (
	// [..., heads, sequence, width], as scaled_dot_product_attention has it.
	headsFirst layout = iota
	// [batch, sequence, heads, width], as flash-attention has it; [tokens, heads, width] with sequence lengths.
	sequenceFirst
	// [tokens, heads, width] or [1, tokens, heads, width], always with sequence lengths.
	packed
)

// alignment says where the diagonal of a causal mask ends when queries and keys differ in number.
type alignment uint8

const (
	// Query i sees keys 0..i: torch's is_causal.
	topLeft alignment = iota
	// The last query sees the last key: flash-attention since its version 2.1.
	bottomRight
)

// mask is the band of keys that query i may see: from i+offset-left to i+offset+right; less than 0 = unbounded.
type mask struct {
	align       alignment
	left, right int64
}

func (m mask) none() bool { return m.left < 0 && m.right < 0 }

// attention counts operators whose first three operands are query, key and value. Fused kernels recompute QK^T in
// their backward.
func attention(l layout, align alignment, fused bool) formula {
	return func(o *Operator) cost {
		shape, reason := attentionShape(o, l)
		if reason != "" {
			return unknownBecause(reason)
		}
		q, k, v := o.input(0), o.input(1), o.input(2)
		band := attentionMask(o, align)
		bias := o.operand("attn_mask", "attn_bias", "bias")
		full, seen := shape.pairs(band)
		masked := full.Minus(seen)

		// Gradients: dQ and dK take the scores' gradient once each; the scores' gradient takes dO V^T; dV takes P^T
		// dO. A trained bias needs the scores' gradient too.
		scores := q.Grad || k.Grad || (bias != nil && bias.Grad)
		qk, pv := uint64(shape.qkWidth), uint64(shape.vWidth)
		forwardPerPair := NumberOf(qk).Add(NumberOf(pv))
		backwardPerPair := NumberOf(qk).Times(grads(q, k)).
			Add(times(v.Grad, NumberOf(pv))).Add(times(scores, NumberOf(pv)))
		c := products(matmul, q, full.Mul(forwardPerPair), full.Mul(backwardPerPair))
		perMAC := flopsPerMAC(q)
		c.causalForward = masked.Mul(forwardPerPair).Times(perMAC)
		c.causalBackward = masked.Mul(backwardPerPair).Times(perMAC)
		if fused && (scores || v.Grad) {
			c.kernelRecompute = full.Times(qk).Times(perMAC)
		}
		// Scale, softmax of 4 operations and one exponential.
		c.forward.Elementwise = full.Times(5)
		c.forward.Transcendentals = full
		if scores {
			c.backward.Elementwise = full.Times(5)
		}
		return c
	}
}

// attentionGradient is the recorded backward of a fused attention operator(grad_out, query, key, value, ...): all
// four products; the recomputed QK^T stands apart. Which gradients were wanted is not in its operands.
func attentionGradient(l layout, align alignment) formula {
	return func(o *Operator) cost {
		inner := Operator{
			Inputs: o.Inputs[min(1, len(o.Inputs)):], Scalars: o.Scalars,
			Lengths: o.Lengths, KeyLengths: o.KeyLengths,
		}
		shape, reason := attentionShape(&inner, l)
		if reason != "" {
			return unknownBecause(reason)
		}
		full, seen := shape.pairs(attentionMask(o, align))
		perPair := NumberOf(uint64(shape.qkWidth)).Add(NumberOf(uint64(shape.vWidth))).Times(2)
		q := inner.input(0)
		c := products(matmul, q, full.Mul(perPair), Number{})
		perMAC := flopsPerMAC(q)
		c.causalForward = full.Minus(seen).Mul(perPair).Times(perMAC)
		c.kernelRecompute = full.Times(uint64(shape.qkWidth)).Times(perMAC)
		c.forward.Elementwise = full.Times(5)
		return c
	}
}

// attentionSizes are the sizes of one attention.
type attentionSizes struct {
	// Batch times query heads.
	heads Number
	// One pair of sequence lengths per sequence; one for all where the batch is dense.
	queries, keys []int64
	// Widths of query and key, and of value.
	qkWidth, vWidth int64
}

func attentionShape(o *Operator, l layout) (attentionSizes, string) {
	var s attentionSizes
	q, k, v := o.input(0), o.input(1), o.input(2)
	if q == nil || k == nil || v == nil {
		return s, "operands are not query, key and value"
	}
	n := len(q.Dims)
	if n < 2 || len(k.Dims) != n || len(v.Dims) != n {
		return s, "query, key and value differ in their number of dimensions"
	}
	s.qkWidth, s.vWidth = q.Dims[n-1], v.Dims[n-1]
	if k.Dims[n-1] != s.qkWidth {
		return s, "query and key differ in width"
	}
	variable := l == packed || o.operand("cum_seq_q", "cu_seqlens_q", "cu_seq_q", "cum_seqlens_q") != nil
	switch {
	case variable:
		return s, s.variable(o, q, k, v)
	case l == headsFirst:
		if k.Dims[n-2] != v.Dims[n-2] {
			return s, "key and value differ in length"
		}
		s.heads = product(q.Dims[:n-2]...)
		s.queries, s.keys = []int64{q.Dims[n-2]}, []int64{k.Dims[n-2]}
	default:
		if n != 4 || k.Dims[1] != v.Dims[1] || q.Dims[0] != k.Dims[0] {
			return s, "operands are not [batch, sequence, heads, width]"
		}
		s.heads = product(q.Dims[0], q.Dims[2])
		s.queries, s.keys = []int64{q.Dims[1]}, []int64{k.Dims[1]}
	}
	return s, ""
}

// variable fills the sizes of sequences that lie end to end.
func (s *attentionSizes) variable(o *Operator, q, k, v *Tensor) string {
	n := len(q.Dims)
	if n < 3 || n > 4 || (n == 4 && q.Dims[0] != 1) {
		return "operands are not [tokens, heads, width]"
	}
	if len(o.Lengths) == 0 {
		return "sequence lengths are missing"
	}
	keyLengths := o.KeyLengths
	if len(keyLengths) == 0 {
		keyLengths = o.Lengths
	}
	if len(keyLengths) != len(o.Lengths) {
		return "queries and keys have different numbers of sequences"
	}
	if sum(o.Lengths).Compare(NumberOf(uint64(q.Dims[n-3]))) > 0 ||
		sum(keyLengths).Compare(NumberOf(uint64(k.Dims[n-3]))) > 0 || k.Dims[n-3] != v.Dims[n-3] {
		return "sequence lengths exceed the tokens"
	}
	s.heads = NumberOf(uint64(q.Dims[n-2]))
	s.queries, s.keys = o.Lengths, keyLengths
	return ""
}

// pairs returns heads times the pairs of query and key: all, and those inside the mask.
func (s *attentionSizes) pairs(m mask) (full, seen Number) {
	for i := range s.queries {
		full = full.Add(product(s.queries[i], s.keys[i]))
		seen = seen.Add(m.pairs(s.queries[i], s.keys[i]))
	}
	return full.Mul(s.heads), seen.Mul(s.heads)
}

// attentionMask reads is_causal (causal), the efficient kernel's custom_mask_type (1 top-left, 2 bottom-right) with
// window_size, and the window on both sides that flash-attention has as window_size_left and window_size_right and
// _varlen_attn as window_size.0 and window_size.1, where a negative size is no bound.
func attentionMask(o *Operator, align alignment) mask {
	m := mask{align: align, left: -1, right: -1}
	if left, ok := o.Scalars["window_size_left"]; ok {
		m.left = left
	}
	if right, ok := o.Scalars["window_size_right"]; ok {
		m.right = right
	}
	if o.Scalars["is_causal"] != 0 || o.Scalars["causal"] != 0 {
		m.right = 0
	}
	switch o.Scalars["custom_mask_type"] {
	case 1:
		m.align, m.right = topLeft, 0
	case 2:
		m.align, m.right = bottomRight, 0
	}
	if window, ok := o.Scalars["window_size"]; ok && window > 0 {
		m.left = window - 1
	}
	if window := o.list("window_size"); len(window) == 2 {
		m.left = window[0]
		if m.right != 0 {
			m.right = window[1]
		}
	}
	return m
}

// pairs counts the pairs of q queries and k keys inside the mask, without a loop: sizes are the client's.
func (m mask) pairs(q, k int64) Number {
	if m.none() {
		return product(q, k)
	}
	offset := int64(0)
	if m.align == bottomRight {
		offset = k - q
	}
	// Keys below the upper edge of the band, less those below its lower edge.
	below := product(q, k)
	if m.right >= 0 {
		below = clampedSum(q, offset+min(m.right, MaxDim)+1, k)
	}
	var before Number
	if m.left >= 0 {
		before = clampedSum(q, offset-min(m.left, MaxDim), k)
	}
	return below.Minus(before)
}

// clampedSum is the sum of min(max(i+c, 0), top) over i from 0 to n-1.
func clampedSum(n, c, top int64) Number {
	first := min(max(-c, 0), n)
	last := min(max(top-c, first), n)
	// From first to last the terms rise by one; from last on they are top.
	rising := NumberOf(uint64(last - first))
	var total Number
	if last > first {
		total = rising.Times(uint64(first + c + last - 1 + c)).Over(2)
	}
	return total.Add(product(n-last, top))
}

// nativeAttention is the fast path _native_multi_head_attention(query, key, value, ..., qkv_weight, qkv_bias,
// proj_weight, ...): three projections, attention of the full square, the output projection. It has no backward.
func nativeAttention(o *Operator) cost {
	q, k, v := o.operand("query"), o.operand("key"), o.operand("value")
	in, out := o.operand("qkv_weight"), o.operand("proj_weight")
	if !rank(q, 3) || !rank(k, 3) || !rank(v, 3) {
		return unknownBecause("query, key or value is missing")
	}
	macs, pairs, reason := selfAttention(q, k, v, in, out)
	if reason != "" {
		return unknownBecause(reason)
	}
	c := products(matmul, q, macs, Number{})
	c.forward.Elementwise, c.forward.Transcendentals = pairs, Number{}
	return c
}

// encoderLayer is the fast path _transformer_encoder_layer_fwd: self-attention and two linear layers. It has no
// backward.
func encoderLayer(o *Operator) cost {
	x := o.operand("src")
	first, second := o.operand("ffn_weight_1"), o.operand("ffn_weight_2")
	if !rank(x, 3) || !rank(first, 2) || !rank(second, 2) {
		return unknownBecause("src or a feed-forward weight is missing")
	}
	macs, pairs, reason := selfAttention(x, x, x, o.operand("qkv_weight"), o.operand("proj_weight"))
	if reason != "" {
		return unknownBecause(reason)
	}
	width := x.Dims[2]
	if first.Dims[1] != width || second.Dims[0] != width || second.Dims[1] != first.Dims[0] {
		return unknownBecause("feed-forward weights do not fit")
	}
	rows := product(x.Dims[0], x.Dims[1])
	macs = macs.Add(rows.Mul(first.elements().Add(second.elements())))
	c := products(matmul, x, macs, Number{})
	// Two norms of 5 operations and two additions an element, one activation.
	c.forward.Elementwise = pairs.Add(x.elements().Times(12)).Add(rows.Times(uint64(first.Dims[0])))
	return c
}

// selfAttention returns the products of projections and attention, and 5 operations for each element of the scores of
// one head.
func selfAttention(q, k, v, in, out *Tensor) (macs, elementwise Number, reason string) {
	if !rank(in, 2) || !rank(out, 2) || in.Dims[0]%3 != 0 {
		return Number{}, Number{}, "qkv_weight or proj_weight is missing"
	}
	width, embed := in.Dims[1], in.Dims[0]/3
	if q.Dims[2] != width || k.Dims[2] != width || v.Dims[2] != width || out.Dims[1] != embed {
		return Number{}, Number{}, "projection weights do not fit"
	}
	if q.Dims[0] != k.Dims[0] || q.Dims[0] != v.Dims[0] || k.Dims[1] != v.Dims[1] {
		return Number{}, Number{}, "query, key and value do not fit"
	}
	for _, t := range [...]*Tensor{q, k, v} {
		macs = macs.Add(t.elements().Times(uint64(embed)))
	}
	pairs := product(q.Dims[0], q.Dims[1], k.Dims[1])
	macs = macs.Add(pairs.Times(uint64(embed)).Times(2))
	macs = macs.Add(product(q.Dims[0], q.Dims[1]).Mul(out.elements()))
	return macs, pairs.Times(5), ""
}
