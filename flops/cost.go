package flops

// class says how well an operator's cost is known.
type class uint8

const (
	unknown class = iota
	exact
	estimated
	zero
)

// family says which settings decide the dtype that an exact operator computes in.
type family uint8

const (
	// Computes in its operands' dtype whatever the settings are.
	asOperands family = iota
	// Matrix products and attention: autocast, and TF32 for matrix products.
	matmul
	// Convolutions and recurrent layers: autocast, and TF32 for convolutions.
	convolution
)

// Work is what was computed in one phase.
type Work struct {
	// Exact FLOP of products, convolutions, attention and recurrent layers, and of formulas that the user declared.
	FLOPs Number
	// Multiply-accumulates in FLOPs: half of it for real numbers.
	MACs Number
	// Estimated per-element operations, and those of them that are transcendental functions, counted apart from each
	// other as XLA does.
	Elementwise, Transcendentals Number
	// Estimated bytes that the operators read and wrote, each operand and result once.
	Bytes Number
}

func (w Work) plus(v Work) Work {
	return Work{
		FLOPs:           w.FLOPs.Add(v.FLOPs),
		MACs:            w.MACs.Add(v.MACs),
		Elementwise:     w.Elementwise.Add(v.Elementwise),
		Transcendentals: w.Transcendentals.Add(v.Transcendentals),
		Bytes:           w.Bytes.Add(v.Bytes),
	}
}

func (w Work) times(n Number) Work {
	return Work{
		FLOPs:           w.FLOPs.Mul(n),
		MACs:            w.MACs.Mul(n),
		Elementwise:     w.Elementwise.Mul(n),
		Transcendentals: w.Transcendentals.Mul(n),
		Bytes:           w.Bytes.Mul(n),
	}
}

func (w Work) isZero() bool {
	return w.FLOPs.IsZero() && w.MACs.IsZero() && w.Elementwise.IsZero() && w.Transcendentals.IsZero() && w.Bytes.IsZero()
}

// cost is what one execution of an operator takes.
type cost struct {
	class class
	// Why it is unknown.
	reason string
	family family
	// The operand whose dtype the products have; nil = the first.
	lead *Tensor
	// Backward is what the grad bits of the operands imply. The caller drops it where the list recorded its backward.
	forward, backward Work
	// Part of the forward that a fused kernel executes again in its backward; no model FLOP.
	kernelRecompute Number
	// Parts of forward and backward that lie outside a causal or windowed mask.
	causalForward, causalBackward Number
}

// formula gives the cost of one execution. The operator has passed Check; its shapes need not fit each other.
type formula func(o *Operator) cost

func unknownBecause(reason string) cost { return cost{class: unknown, reason: reason} }

// products is an exact cost: macs multiply-accumulates forward, and gradients of them backward, per execution.
func products(f family, lead *Tensor, macs, backwardMACs Number) cost {
	perMAC := flopsPerMAC(lead)
	return cost{
		class:    exact,
		family:   f,
		lead:     lead,
		forward:  Work{FLOPs: macs.Times(perMAC), MACs: macs},
		backward: Work{FLOPs: backwardMACs.Times(perMAC), MACs: backwardMACs},
	}
}

// flopsPerMAC is 2, or 8 for complex numbers: four real products, two sums inside the product and two to accumulate,
// as BLAS counts zgemm.
func flopsPerMAC(t *Tensor) uint64 {
	if t != nil && isComplex(t.DType) {
		return 8
	}
	return 2
}

func isComplex(dtype string) bool {
	switch dtype {
	case "complex32", "complex64", "complex128":
		return true
	}
	return false
}

// times returns n for a true bit and 0 for a false one.
func times(bit bool, n Number) Number {
	if bit {
		return n
	}
	return Number{}
}

// grads counts the operands that need a gradient.
func grads(operands ...*Tensor) uint64 {
	var n uint64
	for _, t := range operands {
		if t != nil && t.Grad {
			n++
		}
	}
	return n
}

// elementBits returns the size of a dtype's element; 0 = not known.
func elementBits(dtype string) uint64 {
	switch dtype {
	case "complex128":
		return 128
	case "float64", "double", "int64", "long", "complex64", "uint64":
		return 64
	case "float32", "float", "int32", "int", "complex32", "uint32", "qint32":
		return 32
	case "float16", "half", "bfloat16", "int16", "short", "uint16":
		return 16
	case "int8", "uint8", "bool", "qint8", "quint8",
		"float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu":
		return 8
	case "float4_e2m1fn_x2", "quint4x2", "bits8":
		return 8
	}
	return 0
}

// size returns the bytes of a tensor, 0 where its dtype is not known.
func (t *Tensor) size() Number { return t.elements().Times(elementBits(t.DType) / 8) }

func sizes(tensors []Tensor) Number {
	var n Number
	for i := range tensors {
		n = n.Add(tensors[i].size())
	}
	return n
}
