package flops

// The convolutions. Strides, padding and dilation are inside the result's shape, groups inside the weight's: a
// weight is [Co, Ci/g, kernel...], transposed [Ci, Co/g, kernel...].

// convolutionForward takes transposed from the scalars: convolution and _convolution.
func convolutionForward(o *Operator) cost {
	transposed, given := o.Scalars["transposed"]
	if !given {
		return unknownBecause("transposed is missing")
	}
	return convolutionOf(o, transposed != 0)
}

func plainConvolution(o *Operator) cost      { return convolutionOf(o, false) }
func transposedConvolution(o *Operator) cost { return convolutionOf(o, true) }

func convolutionOf(o *Operator, transposed bool) cost {
	x, w := o.input(0), o.input(1)
	if x == nil || w == nil {
		return unknownBecause("operands are not an input and a weight")
	}
	macs, reason := convolutionMACs(x, w, o.output(0), transposed)
	if reason != "" {
		return unknownBecause(reason)
	}
	return bilinear(convolution, x, w, macs)
}

// convolutionMACs is N O Co (Ci/g) K for a plain and N I Ci (Co/g) K for a transposed convolution. Taps on padding
// count, as do those that a transposed convolution crops.
func convolutionMACs(x, w, y *Tensor, transposed bool) (macs Number, reason string) {
	if len(w.Dims) < 3 {
		return Number{}, "weight has no kernel dimensions"
	}
	moved := y
	if transposed {
		moved = x
	}
	if moved == nil {
		return Number{}, "result is missing"
	}
	channels := len(moved.Dims) - (len(w.Dims) - 2) - 1
	if channels < 0 || channels > 1 {
		return Number{}, "weight has another number of dimensions"
	}
	if moved.Dims[channels] != w.Dims[0] {
		return Number{}, "channels differ from the weight's"
	}
	return moved.elements().Mul(product(w.Dims[1:]...)), ""
}

// convolutionBackward is aten.convolution_backward(grad_output, input, weight): the gradient of input and of weight
// cost the forward each, by output_mask, whatever the groups.
func convolutionBackward(o *Operator) cost {
	grad, x, w := o.input(0), o.input(1), o.input(2)
	if grad == nil || x == nil || w == nil {
		return unknownBecause("operands are not a gradient, an input and a weight")
	}
	mask, given := o.Scalars["output_mask"]
	transposed, known := o.Scalars["transposed"]
	if !given || !known {
		return unknownBecause("output_mask or transposed is missing")
	}
	macs, reason := convolutionMACs(x, w, grad, transposed != 0)
	if reason != "" {
		return unknownBecause(reason)
	}
	gradients := uint64(mask&1) + uint64(mask>>1&1)
	return products(convolution, x, macs.Times(gradients), Number{})
}

// timeConvolution is conv_tbc: [T,B,Ci] with a weight [K,Ci,Co].
func timeConvolution(o *Operator) cost {
	x, w, y := o.input(0), o.input(1), o.output(0)
	if !rank(x, 3) || !rank(w, 3) || !rank(y, 3) || x.Dims[2] != w.Dims[1] || y.Dims[2] != w.Dims[2] {
		return unknownBecause("operands are not an input and a weight that fits it")
	}
	return bilinear(convolution, x, w, y.elements().Mul(product(w.Dims[0], w.Dims[1])))
}

// deformableConvolution is torchvision.deform_conv2d(input, weight, offset, mask, bias): a product over sampled
// columns, 7 operations a sample estimated. The columns' gradient is needed by input, offset and mask alike.
func deformableConvolution(o *Operator) cost {
	x, w := o.input(0), o.input(1)
	if !rank(x, 4) || !rank(w, 4) {
		return unknownBecause("operands are not an input and a weight")
	}
	macs, reason := convolutionMACs(x, w, o.output(0), false)
	if reason != "" {
		return unknownBecause(reason)
	}
	columns := x.Grad
	for i := 2; i < len(o.Inputs); i++ {
		if a := o.Inputs[i].Argument; o.Inputs[i].Grad && (a == "offset" || a == "mask") {
			columns = true
		}
	}
	c := products(asOperands, x, macs, times(columns, macs).Add(times(w.Grad, macs)))
	if w.Dims[0] > 0 {
		samples := o.output(0).elements().Over(uint64(w.Dims[0])).Mul(product(x.Dims[1], w.Dims[2], w.Dims[3]))
		c.forward.Elementwise = samples.Times(7)
		c.backward.Elementwise = times(columns, c.forward.Elementwise)
	}
	return c
}
