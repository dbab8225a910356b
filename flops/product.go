package flops

// The matrix products. Shapes are resolved by the operands, never by the result, except for packed weights, whose own
// shapes say nothing.

// rank reports whether the operand is there and has n dimensions.
func rank(t *Tensor, n int) bool { return t != nil && len(t.Dims) == n }

// matrixProduct is [m,k] x [k,n] at operands i and i+1: mm, addmm and their kin. Each operand's gradient costs the
// product again.
func matrixProduct(i int) formula {
	return func(o *Operator) cost {
		a, b := o.input(i), o.input(i+1)
		if !rank(a, 2) || !rank(b, 2) {
			return unknownBecause("operands are not two matrices")
		}
		if a.Dims[1] != b.Dims[0] {
			return unknownBecause("inner sizes differ")
		}
		return bilinear(matmul, a, b, product(a.Dims[0], a.Dims[1], b.Dims[1]))
	}
}

// fixedMatrixProduct is matrixProduct for operators that autocast leaves alone.
func fixedMatrixProduct(i int) formula {
	return func(o *Operator) cost {
		c := matrixProduct(i)(o)
		c.family = asOperands
		return c
	}
}

// bilinear is a product of two operands: forward macs, and the same again per operand that needs a gradient.
func bilinear(f family, a, b *Tensor, macs Number) cost {
	return products(f, a, macs, macs.Times(grads(a, b)))
}

// batchedProduct is [b,m,k] x [b,k,n] at operands i and i+1: bmm, baddbmm, addbmm.
func batchedProduct(i int) formula {
	return func(o *Operator) cost {
		a, b := o.input(i), o.input(i+1)
		if !rank(a, 3) || !rank(b, 3) {
			return unknownBecause("operands are not two batches of matrices")
		}
		if a.Dims[0] != b.Dims[0] || a.Dims[2] != b.Dims[1] {
			return unknownBecause("batch or inner sizes differ")
		}
		return bilinear(matmul, a, b, product(a.Dims[0], a.Dims[1], a.Dims[2], b.Dims[2]))
	}
}

// matmulProduct is torch.matmul whole, as inference mode shows it: batch dimensions broadcast, vectors are rows or
// columns.
func matmulProduct(o *Operator) cost {
	a, b := o.input(0), o.input(1)
	if a == nil || b == nil || len(a.Dims) == 0 || len(b.Dims) == 0 {
		return unknownBecause("operands are not two tensors of at least one dimension")
	}
	left, right := a.Dims, b.Dims
	if len(left) == 1 {
		left = []int64{1, left[0]}
	}
	if len(right) == 1 {
		right = []int64{right[0], 1}
	}
	batch, ok := broadcast(left[:len(left)-2], right[:len(right)-2])
	m, k := left[len(left)-2], left[len(left)-1]
	n := right[len(right)-1]
	if !ok || k != right[len(right)-2] {
		return unknownBecause("batch or inner sizes differ")
	}
	return bilinear(matmul, a, b, product(batch...).Mul(product(m, k, n)))
}

// broadcast returns the common shape of two shapes.
func broadcast(a, b []int64) ([]int64, bool) {
	if len(a) < len(b) {
		a, b = b, a
	}
	shape := append([]int64(nil), a...)
	offset := len(a) - len(b)
	for i, d := range b {
		switch {
		case shape[offset+i] == 1:
			shape[offset+i] = d
		case d != 1 && d != shape[offset+i]:
			return nil, false
		}
	}
	return shape, true
}

// linear is [...,k] x [n,k]: the weight is transposed; a weight of one dimension has n = 1.
func linear(o *Operator) cost {
	x, w := o.input(0), o.input(1)
	if x == nil || w == nil || len(x.Dims) == 0 || len(w.Dims) == 0 || len(w.Dims) > 2 {
		return unknownBecause("operands are not an input and a weight")
	}
	if x.Dims[len(x.Dims)-1] != w.Dims[len(w.Dims)-1] {
		return unknownBecause("inner sizes differ")
	}
	macs := x.elements()
	if len(w.Dims) == 2 {
		macs = macs.Times(uint64(w.Dims[0]))
	}
	return bilinear(matmul, x, w, macs)
}

// packedProduct is [...,k] x a weight packed for a kernel: its width is the result's.
func packedProduct(o *Operator) cost {
	x, y := o.input(0), o.output(0)
	if x == nil || y == nil || len(x.Dims) == 0 || len(y.Dims) == 0 {
		return unknownBecause("input or result is missing")
	}
	k, n := x.Dims[len(x.Dims)-1], y.Dims[len(y.Dims)-1]
	rows := product(x.Dims[:len(x.Dims)-1]...)
	if !rows.Equal(product(y.Dims[:len(y.Dims)-1]...)) {
		return unknownBecause("input and result have different numbers of rows")
	}
	macs := rows.Mul(product(k, n))
	// The packed weight is not differentiable.
	return products(asOperands, x, macs, times(x.Grad, macs))
}

// matrixVector is [m,k] x [k] at operands i and i+1: mv, addmv.
func matrixVector(i int) formula {
	return func(o *Operator) cost {
		a, v := o.input(i), o.input(i+1)
		if !rank(a, 2) || !rank(v, 1) || a.Dims[1] != v.Dims[0] {
			return unknownBecause("operands are not a matrix and a vector that fits it")
		}
		return bilinear(matmul, a, v, product(a.Dims...))
	}
}

// dotProduct is k x k: dot, vdot. Autocast leaves it alone.
func dotProduct(o *Operator) cost {
	a, b := o.input(0), o.input(1)
	if !rank(a, 1) || !rank(b, 1) || a.Dims[0] != b.Dims[0] {
		return unknownBecause("operands are not two vectors of one length")
	}
	return bilinear(asOperands, a, b, product(a.Dims...))
}

// outerSum is addr(self, vec1, vec2): m x n multiplications, added to self. They accumulate nothing, so they are FLOP
// but no MAC; each gradient is a matrix-vector product, 2mn.
func outerSum(o *Operator) cost {
	a, b := o.input(1), o.input(2)
	if !rank(a, 1) || !rank(b, 1) {
		return unknownBecause("operands are not two vectors")
	}
	mn := product(a.Dims[0], b.Dims[0])
	c := products(matmul, a, Number{}, mn.Times(grads(a, b)))
	// One complex product is six real operations.
	c.forward.FLOPs = mn
	if isComplex(a.DType) {
		c.forward.FLOPs = mn.Times(6)
	}
	return c
}

// innerProduct is [...,k] x [...,k] over the last dimension: inner.
func innerProduct(o *Operator) cost {
	a, b := o.input(0), o.input(1)
	if a == nil || b == nil {
		return unknownBecause("operands are missing")
	}
	if len(a.Dims) == 0 || len(b.Dims) == 0 {
		// A scalar multiplies elementwise.
		return elementwiseOperation(1, 0)(o)
	}
	k := a.Dims[len(a.Dims)-1]
	if k != b.Dims[len(b.Dims)-1] {
		return unknownBecause("inner sizes differ")
	}
	return bilinear(matmul, a, b, a.elements().Mul(product(b.Dims[:len(b.Dims)-1]...)))
}

// tensorProduct is tensordot: dims_self of the first operand are contracted with dims_other of the second.
func tensorProduct(o *Operator) cost {
	a, b := o.input(0), o.input(1)
	if a == nil || b == nil {
		return unknownBecause("operands are missing")
	}
	left, right := o.list("dims_self"), o.list("dims_other")
	if len(left) != len(right) {
		return unknownBecause("dims_self and dims_other differ in length")
	}
	contracted := make([]bool, len(b.Dims))
	for i := range left {
		p, q := dimension(left[i], len(a.Dims)), dimension(right[i], len(b.Dims))
		if p < 0 || q < 0 || contracted[q] || a.Dims[p] != b.Dims[q] {
			return unknownBecause("contracted dimensions do not fit")
		}
		contracted[q] = true
	}
	macs := a.elements()
	for i, d := range b.Dims {
		if !contracted[i] {
			macs = macs.Times(uint64(d))
		}
	}
	return bilinear(matmul, a, b, macs)
}

// dimension resolves a dimension number that may count from the end; -1 = out of range.
func dimension(d int64, dims int) int {
	if d < 0 {
		d += int64(dims)
	}
	if d < 0 || d >= int64(dims) {
		return -1
	}
	return int(d)
}

// vectorDot is linalg_vecdot: a dot product of two vectors; of more dimensions torch multiplies elementwise and sums.
func vectorDot(o *Operator) cost {
	a, b := o.input(0), o.input(1)
	if a == nil || b == nil {
		return unknownBecause("operands are missing")
	}
	if len(a.Dims) == 1 && len(b.Dims) == 1 {
		return dotProduct(o)
	}
	shape, ok := broadcast(a.Dims, b.Dims)
	if !ok {
		return unknownBecause("shapes do not broadcast")
	}
	return estimate(o, product(shape...).Times(2), Number{})
}

// groupedProduct is _grouped_mm, the mixture of experts: the rows of one operand fall into groups, each with its own
// matrix. The routed rows are the cost; which expert takes them is not.
func groupedProduct(o *Operator) cost {
	a, b := o.input(0), o.input(1)
	if a == nil || b == nil {
		return unknownBecause("operands are missing")
	}
	rows := func(total int64) (Number, bool) {
		if len(o.Lengths) == 0 {
			return NumberOf(uint64(total)), true
		}
		n := sum(o.Lengths)
		return n, n.Compare(NumberOf(uint64(total))) <= 0
	}
	var macs Number
	fits := true
	switch {
	case len(a.Dims) == 2 && len(b.Dims) == 3:
		// Rows of a in groups: [rows,k] x [groups,k,n].
		fits = a.Dims[1] == b.Dims[1]
		n, ok := rows(a.Dims[0])
		fits = fits && ok
		macs = n.Mul(product(a.Dims[1], b.Dims[2]))
	case len(a.Dims) == 3 && len(b.Dims) == 2:
		// Columns of b in groups: [groups,m,k] x [k,columns].
		fits = a.Dims[2] == b.Dims[0]
		n, ok := rows(b.Dims[1])
		fits = fits && ok
		macs = n.Mul(product(a.Dims[1], a.Dims[2]))
	case len(a.Dims) == 2 && len(b.Dims) == 2:
		// The inner dimension in groups, as a weight's gradient needs it: [m,inner] x [inner,n].
		fits = a.Dims[1] == b.Dims[0]
		n, ok := rows(a.Dims[1])
		fits = fits && ok
		macs = n.Mul(product(a.Dims[0], b.Dims[1]))
	case len(a.Dims) == 3 && len(b.Dims) == 3:
		fits = a.Dims[0] == b.Dims[0] && a.Dims[2] == b.Dims[1]
		macs = product(a.Dims[0], a.Dims[1], a.Dims[2], b.Dims[2])
	default:
		fits = false
	}
	if !fits {
		return unknownBecause("operands or group lengths do not fit")
	}
	return bilinear(asOperands, a, b, macs)
}

func sum(lengths []int64) Number {
	var n Number
	for _, l := range lengths {
		n = n.Add(NumberOf(uint64(l)))
	}
	return n
}

// trilinear is aten._trilinear, to which nn.Bilinear comes down: three operands, each with dimensions inserted where
// its expand list says, multiplied elementwise and summed. One multiply-accumulate per element of the common shape,
// as 2 N o i1 i2 has it; each gradient is a _trilinear again.
func trilinear(o *Operator) cost {
	if len(o.Inputs) < 3 {
		return unknownBecause("operands are not three tensors")
	}
	var shape []int64
	for i, name := range [...]string{"expand1", "expand2", "expand3"} {
		expanded, ok := unsqueezed(o.Inputs[i].Dims, o.list(name))
		if !ok {
			return unknownBecause("expand lists do not fit")
		}
		if i == 0 {
			shape = expanded
			continue
		}
		if shape, ok = broadcast(shape, expanded); !ok {
			return unknownBecause("shapes do not broadcast")
		}
	}
	a, b, c := &o.Inputs[0], &o.Inputs[1], &o.Inputs[2]
	macs := product(shape...)
	return products(asOperands, a, macs, macs.Times(grads(a, b, c)))
}

// unsqueezed inserts dimensions of size 1 at the places that the sorted list names.
func unsqueezed(dims, at []int64) ([]int64, bool) {
	total := len(dims) + len(at)
	if total > 2*MaxDims {
		return nil, false
	}
	insert := make([]bool, total)
	for _, d := range at {
		if d < 0 || d >= int64(total) || insert[d] {
			return nil, false
		}
		insert[d] = true
	}
	shape := make([]int64, 0, total)
	next := 0
	for _, one := range insert {
		if one {
			shape = append(shape, 1)
			continue
		}
		shape = append(shape, dims[next])
		next++
	}
	return shape, true
}

// bilinearLayer is torch.nn.functional.bilinear whole: [...,i1], [...,i2], [o,i1,i2].
func bilinearLayer(o *Operator) cost {
	a, b, w := o.input(0), o.input(1), o.input(2)
	if a == nil || b == nil || !rank(w, 3) || len(a.Dims) == 0 || len(b.Dims) != len(a.Dims) {
		return unknownBecause("operands are not two inputs and a weight")
	}
	last := len(a.Dims) - 1
	if a.Dims[last] != w.Dims[1] || b.Dims[last] != w.Dims[2] {
		return unknownBecause("inner sizes differ")
	}
	macs := product(a.Dims[:last]...).Mul(w.elements())
	return products(asOperands, a, macs, macs.Times(grads(a, b, w)))
}
