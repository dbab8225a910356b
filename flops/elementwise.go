package flops

// The estimates: work per element. They are never part of the headline; their purpose is the arithmetic intensity and
// the question whether a model is bound by its elementwise part.

// estimate is a cost of class estimated. Backward is as much again for each operand that needs a gradient.
func estimate(o *Operator, elementwise, transcendentals Number) cost {
	c := cost{class: estimated}
	c.forward = Work{Elementwise: elementwise, Transcendentals: transcendentals, Bytes: sizesOf(o)}
	var gradients uint64
	for i := range o.Inputs {
		if o.Inputs[i].Grad {
			gradients++
		}
	}
	// A fused list operator has hundreds of operands, yet each element only a few gradients.
	gradients = min(gradients, 3)
	c.backward = Work{Elementwise: elementwise.Times(gradients), Bytes: c.forward.Bytes.Times(min(gradients, 1))}
	return c
}

// elements is the number of elements that the operator produces: of its results, or of its first operand and those of
// the same list where an in-place form shows no result.
func elements(o *Operator) Number {
	var n Number
	if len(o.Outputs) > 0 {
		for i := range o.Outputs {
			n = n.Add(o.Outputs[i].elements())
		}
		return n
	}
	for i := range o.Inputs {
		if i == 0 || (o.Inputs[i].Argument != "" && o.Inputs[i].Argument == o.Inputs[0].Argument) {
			n = n.Add(o.Inputs[i].elements())
		}
	}
	return n
}

// elementwiseOperation is so many operations and transcendental functions per element produced.
func elementwiseOperation(operations, transcendentals uint64) formula {
	return func(o *Operator) cost {
		n := elements(o)
		return estimate(o, n.Times(operations), n.Times(transcendentals))
	}
}

// perInput is so many operations and transcendental functions per element of the first operand: reductions, norms,
// softmax.
func perInput(operations, transcendentals uint64) formula {
	return func(o *Operator) cost {
		x := o.input(0)
		if x == nil {
			return unknownBecause("input is missing")
		}
		n := x.elements()
		return estimate(o, n.Times(operations), n.Times(transcendentals))
	}
}

// batchNorm is 5 operations an element in training (mean, variance, difference, two factors, less one without
// weight), 2 or 1 with the running statistics.
func batchNorm(training func(o *Operator) bool) formula {
	return func(o *Operator) cost {
		affine := uint64(1)
		if o.operand("weight") == nil {
			affine = 0
		}
		if training(o) {
			return perInput(4+affine, 0)(o)
		}
		return perInput(1+affine, 0)(o)
	}
}

// trainingFlag reads the flag under the names that torch's norms give it.
func trainingFlag(o *Operator) bool {
	return o.Scalars["training"] != 0 || o.Scalars["train"] != 0 || o.Scalars["use_input_stats"] != 0
}

// pooling is one operation per tap of each result, less one for a maximum.
func pooling(maximum bool) formula {
	return func(o *Operator) cost {
		x, y := o.input(0), o.output(0)
		if x == nil || y == nil {
			return unknownBecause("input or result is missing")
		}
		kernel := o.list("kernel_size")
		if len(kernel) == 0 {
			// Not said: pooling without overlap reads each element once.
			return perInput(1, 0)(o)
		}
		taps := NumberOf(1)
		for _, k := range kernel {
			if k < 0 {
				return unknownBecause("kernel_size is negative")
			}
			taps = taps.Times(uint64(k))
		}
		if maximum {
			taps = taps.Minus(NumberOf(1))
		}
		return estimate(o, y.elements().Mul(taps), Number{})
	}
}

// transform is an FFT over the dimensions dim: 5 n log2 n for complex and half of it for real data, as FFTW counts,
// with log2 rounded up.
func transform(real bool) formula {
	return func(o *Operator) cost {
		x, y := o.input(0), o.output(0)
		if x == nil {
			return unknownBecause("input is missing")
		}
		// The longer of the two sides has the full length of the transformed dimensions.
		full := x
		if y != nil && y.elements().Compare(x.elements()) > 0 {
			full = y
		}
		n := NumberOf(1)
		dims := o.list("dim")
		for _, d := range dims {
			i := dimension(d, len(full.Dims))
			if i < 0 {
				return unknownBecause("dim is out of range")
			}
			n = n.Times(uint64(full.Dims[i]))
		}
		if len(dims) == 0 {
			n = full.elements()
		}
		log := uint64(0)
		if b := n.Big(); b.Sign() > 0 {
			log = uint64(b.Sub(b, NumberOf(1).Big()).BitLen())
		}
		work := full.elements().Times(5 * log)
		if real {
			work = work.Over(2)
		}
		return estimate(o, work, Number{})
	}
}

// decomposition is the order of a dense factorisation of [..., m, n]: numerator/denominator of the cube of the sizes,
// as LAPACK working note 41 gives the leading terms.
func decomposition(leading func(m, n Number) Number) formula {
	return func(o *Operator) cost {
		x := o.input(0)
		if x == nil || len(x.Dims) < 2 {
			return unknownBecause("operand is no matrix")
		}
		batch := product(x.Dims[:len(x.Dims)-2]...)
		m, n := NumberOf(uint64(x.Dims[len(x.Dims)-2])), NumberOf(uint64(x.Dims[len(x.Dims)-1]))
		return estimate(o, batch.Mul(leading(m, n)), Number{})
	}
}

func cube(numerator, denominator uint64) func(m, n Number) Number {
	return func(_, n Number) Number { return n.Mul(n).Mul(n).Times(numerator).Over(denominator) }
}

// householder is QR: 2 m n^2 - 2 n^3 / 3.
func householder(m, n Number) Number {
	return m.Mul(n).Mul(n).Times(2).Minus(n.Mul(n).Mul(n).Times(2).Over(3))
}

// singularValues is SVD: 4 m^2 n + 8 m n^2 + 9 n^3.
func singularValues(m, n Number) Number {
	return m.Mul(m).Mul(n).Times(4).Add(m.Mul(n).Mul(n).Times(8)).Add(n.Mul(n).Mul(n).Times(9))
}

// solve is LU and two substitutions for each right-hand side: 2 n^3 / 3 + 2 n^2 k.
func solve(o *Operator) cost {
	a, b := o.input(0), o.input(1)
	if a == nil || b == nil || len(a.Dims) < 2 || len(b.Dims) < 1 {
		return unknownBecause("operands are not a matrix and its right-hand sides")
	}
	c := decomposition(cube(2, 3))(o)
	n := NumberOf(uint64(a.Dims[len(a.Dims)-1]))
	c.forward.Elementwise = c.forward.Elementwise.Add(b.elements().Mul(n).Times(2))
	return c
}

// distances is _cdist_forward: 3 operations per pair of rows and element.
func distances(o *Operator) cost {
	a, b := o.input(0), o.input(1)
	if a == nil || b == nil || len(a.Dims) < 2 || len(b.Dims) < 2 {
		return unknownBecause("operands are not two sets of rows")
	}
	return estimate(o, a.elements().Times(uint64(b.Dims[len(b.Dims)-2])).Times(3), Number{})
}

// suppression is torchvision.nms: 10 operations for each pair of boxes, an upper bound since it stops at suppressed
// ones.
func suppression(o *Operator) cost {
	x := o.input(0)
	if x == nil || len(x.Dims) < 1 {
		return unknownBecause("boxes are missing")
	}
	n := uint64(x.Dims[0])
	return estimate(o, NumberOf(n).Times(max(n, 1)-1).Over(2).Times(10), Number{})
}

// regionAlignment is torchvision.roi_align: 7 operations per sample, sampling_ratio^2 samples per result, 4 where it
// is adaptive.
func regionAlignment(o *Operator) cost {
	samples := uint64(4)
	if r := o.Scalars["sampling_ratio"]; r > 0 && r < 1<<16 {
		samples = uint64(r * r)
	}
	return elementwiseOperation(7*samples, 0)(o)
}

// bags is embedding_bag: one addition per gathered element.
func bags(o *Operator) cost {
	w, indices := o.input(0), o.input(1)
	if !rank(w, 2) || indices == nil {
		return unknownBecause("weight or indices are missing")
	}
	return estimate(o, indices.elements().Times(uint64(w.Dims[1])), Number{})
}

// scattered is the recorded backward of a gather (embedding, index_select): one addition per element of the incoming
// gradient.
func scattered(o *Operator) cost {
	if len(o.Inputs) == 0 {
		return unknownBecause("gradient is missing")
	}
	return estimate(o, o.Inputs[0].elements(), Number{})
}

// gradient is the recorded backward of an estimated operator: per element of its largest result, twice what the
// forward is.
func gradient(operations uint64) formula {
	return func(o *Operator) cost {
		var n Number
		for i := range o.Outputs {
			if e := o.Outputs[i].elements(); e.Compare(n) > 0 {
				n = e
			}
		}
		return estimate(o, n.Times(operations), Number{})
	}
}

// view is an operator that moves nothing.
func view(*Operator) cost { return cost{class: zero} }

// move is an operator that copies, gathers or fills: no arithmetic; what it writes it has read, roughly.
func move(o *Operator) cost {
	var n Number
	for i := range o.Outputs {
		n = n.Add(o.Outputs[i].size())
	}
	c := cost{class: zero, forward: Work{Bytes: n.Times(2)}}
	if len(o.Inputs) > 0 && grads(o.input(0)) > 0 {
		c.backward.Bytes = c.forward.Bytes
	}
	return c
}
