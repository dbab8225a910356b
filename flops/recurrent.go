package flops

// Recurrent layers as one operator. Forward is the sum of 2 x elements over all weight matrices, times the steps of
// all sequences: 2 G H (In + H) per step, and 2 H P with a projection. Backward follows autograd over the steps: the
// first step's recurrent product has no gradient of its state, unless the initial state needs one.

// cell is one layer in one direction.
type cell struct {
	// [G H, In], [G H, Hr], and [P, H] or nil, where Hr is P with a projection, else H.
	input, recurrent, projection *Tensor
	// Whether a bias needs a gradient.
	bias bool
}

// steps says over how many rows a layer runs.
type steps struct {
	// Rows of all steps: T x batch, or the sum of batch_sizes.
	all Number
	// Rows of the first step in each direction.
	forward, reverse int64
}

// recurrentLayer is lstm, gru, rnn_tanh, rnn_relu (params), _cudnn_rnn and miopen_rnn (weight): all layers and
// directions in one.
func recurrentLayer(o *Operator) cost {
	x := o.operand("input", "data")
	hidden := o.operands("hx")
	if x == nil || len(hidden) == 0 {
		return unknownBecause("input or hx is missing")
	}
	params := o.operands("params")
	if len(params) == 0 {
		params = o.operands("weight")
	}
	layers, given := o.Scalars["num_layers"]
	if !given || layers < 1 || layers > MaxDims*MaxDims {
		return unknownBecause("num_layers is missing")
	}
	directions := int64(1)
	if o.Scalars["bidirectional"] != 0 {
		directions = 2
	}
	cells, ok := cellsOf(params, int(layers*directions))
	if !ok {
		return unknownBecause("weights do not fit num_layers and bidirectional")
	}
	rows, reason := recurrentSteps(o, x, hidden[0])
	if reason != "" {
		return unknownBecause(reason)
	}
	initial := hidden
	if cx := o.operand("cx"); cx != nil {
		initial = append(initial, cx)
	}
	return recurrentCost(x, cells, int(directions), hidden[0].Grad, grads(initial...) > 0, rows, false)
}

// recurrentSingle is mkldnn_rnn_layer: one layer, one direction.
func recurrentSingle(o *Operator) cost {
	x, input, recurrent := o.operand("input"), o.operand("weight0"), o.operand("weight1")
	h, c := o.operand("hx_"), o.operand("cx_")
	if !rank(x, 3) || !rank(input, 2) || !rank(recurrent, 2) || h == nil {
		return unknownBecause("input, a weight or the state is missing")
	}
	params := []*Tensor{input, recurrent}
	for _, b := range [...]string{"weight2", "weight3"} {
		if t := o.operand(b); t != nil {
			params = append(params, t)
		}
	}
	cells, ok := cellsOf(params, 1)
	if !ok {
		return unknownBecause("weights do not fit")
	}
	rows, reason := recurrentSteps(o, x, h)
	if reason != "" {
		return unknownBecause(reason)
	}
	return recurrentCost(x, cells, 1, h.Grad, grads(h, c) > 0, rows, o.Scalars["reverse"] != 0)
}

// recurrentStep is lstm_cell, gru_cell, rnn_tanh_cell, rnn_relu_cell: one step.
func recurrentStep(o *Operator) cost {
	x, input, recurrent := o.operand("input"), o.operand("w_ih"), o.operand("w_hh")
	hidden := o.operands("hx")
	if x == nil || len(x.Dims) == 0 || len(x.Dims) > 2 || len(hidden) == 0 {
		return unknownBecause("input or hx is missing")
	}
	params := []*Tensor{input, recurrent}
	for _, b := range [...]string{"b_ih", "b_hh"} {
		if t := o.operand(b); t != nil {
			params = append(params, t)
		}
	}
	cells, ok := cellsOf(params, 1)
	if !ok {
		return unknownBecause("weights are missing")
	}
	batch := int64(1)
	if len(x.Dims) == 2 {
		batch = x.Dims[0]
	}
	rows := steps{all: NumberOf(uint64(batch)), forward: batch, reverse: batch}
	return recurrentCost(x, cells, 1, hidden[0].Grad, grads(hidden...) > 0, rows, false)
}

// cellsOf reads the weights in torch's order: per layer and direction w_ih, w_hh, the biases, then w_hr; cuDNN keeps
// the same order. Matrices tell themselves from biases by their dimensions.
func cellsOf(params []*Tensor, n int) ([]cell, bool) {
	var matrices []*Tensor
	for _, p := range params {
		if rank(p, 2) {
			matrices = append(matrices, p)
		} else if !rank(p, 1) {
			return nil, false
		}
	}
	if n < 1 || len(params)%n != 0 || (len(matrices) != 2*n && len(matrices) != 3*n) {
		return nil, false
	}
	per := len(params) / n
	cells := make([]cell, n)
	for i := range cells {
		c := &cells[i]
		for _, p := range params[i*per : (i+1)*per] {
			switch {
			case !rank(p, 2):
				c.bias = c.bias || p.Grad
			case c.input == nil:
				c.input = p
			case c.recurrent == nil:
				c.recurrent = p
			case c.projection == nil:
				c.projection = p
			default:
				return nil, false
			}
		}
		if c.input == nil || c.recurrent == nil || c.input.Dims[0] != c.recurrent.Dims[0] {
			return nil, false
		}
	}
	return cells, true
}

// recurrentSteps reads the rows from a dense input of three dimensions or from a packed one [rows,In], whose batch
// sizes per step are the lengths. The batch is the initial state's [..., batch, H]: batch_first does not tell, since
// CPU kernels get their input transposed and the flag unchanged.
func recurrentSteps(o *Operator, x, state *Tensor) (steps, string) {
	if len(x.Dims) < 2 {
		return steps{}, "input has fewer than two dimensions"
	}
	all := product(x.Dims[:len(x.Dims)-1]...)
	if n := len(o.Lengths); n > 0 {
		if !sum(o.Lengths).Equal(all) {
			return steps{}, "lengths do not add up to the input's rows"
		}
		return steps{all: all, forward: o.Lengths[0], reverse: o.Lengths[n-1]}, ""
	}
	if len(x.Dims) != 3 {
		return steps{}, "input is packed and its batch sizes are missing"
	}
	if len(state.Dims) < 2 {
		return steps{}, "initial state has fewer than two dimensions"
	}
	batch := state.Dims[len(state.Dims)-2]
	if batch != x.Dims[0] && batch != x.Dims[1] {
		return steps{}, "initial state does not fit the input"
	}
	if all.IsZero() {
		batch = 0
	}
	return steps{all: all, forward: batch, reverse: batch}, ""
}

// recurrentCost adds up layers and directions. state says whether the initial hidden state needs a gradient, initial
// whether any part of the initial state does; reversed that the one direction runs backwards.
func recurrentCost(x *Tensor, cells []cell, directions int, state, initial bool, rows steps, reversed bool) cost {
	var macs, backward, hidden Number
	inputGrad := x.Grad
	width := x.Dims[len(x.Dims)-1]
	for layer := 0; layer < len(cells); layer += directions {
		outputGrad := false
		outputWidth := int64(0)
		for d := range directions {
			c := &cells[layer+d]
			first := rows.forward
			if d == 1 || reversed {
				first = rows.reverse
			}
			if c.input.Dims[1] != width {
				return unknownBecause("a layer's weight does not fit its input")
			}
			forward, gradient := c.products(inputGrad, state, initial, rows.all, first)
			macs, backward = macs.Add(forward), backward.Add(gradient)
			hidden = hidden.Add(rows.all.Times(uint64(c.input.Dims[0])))
			outputGrad = outputGrad || c.trained(inputGrad, initial)
			outputWidth += c.recurrent.Dims[1]
		}
		inputGrad, width = outputGrad, outputWidth
	}
	result := products(convolution, x, macs, backward)
	// A sigmoid or tanh a gate, and 3 operations to combine it.
	result.forward.Elementwise = hidden.Times(3)
	result.forward.Transcendentals = hidden
	if !backward.IsZero() {
		result.backward.Elementwise = hidden.Times(3)
	}
	return result
}

// trained reports whether the cell's output needs a gradient.
func (c *cell) trained(inputGrad, initial bool) bool {
	return inputGrad || initial || c.bias || grads(c.input, c.recurrent, c.projection) > 0
}

// products returns the cell's multiply-accumulates forward and backward over all rows, of which first belong to its
// first step.
func (c *cell) products(inputGrad, state, initial bool, all Number, first int64) (forward, backward Number) {
	input, recurrent := all.Mul(c.input.elements()), all.Mul(c.recurrent.elements())
	forward = input.Add(recurrent)
	if !c.trained(inputGrad, initial) {
		if c.projection != nil {
			forward = forward.Add(all.Mul(c.projection.elements()))
		}
		return forward, Number{}
	}
	beforeFirst := NumberOf(uint64(first))
	backward = times(inputGrad, input).Add(times(c.input.Grad, input)).Add(times(c.recurrent.Grad, recurrent))
	stateGradient := recurrent
	if !state {
		// The initial state needs no gradient.
		stateGradient = recurrent.Minus(beforeFirst.Mul(c.recurrent.elements()))
	}
	backward = backward.Add(stateGradient)
	if c.projection == nil {
		return forward, backward
	}
	projection := all.Mul(c.projection.elements())
	forward = forward.Add(projection)
	backward = backward.Add(times(c.projection.Grad, projection))
	unprojected := projection
	if !inputGrad && !initial && !c.bias && grads(c.input, c.recurrent) == 0 {
		// Only the projection is trained: the first step's unprojected state needs no gradient.
		unprojected = projection.Minus(beforeFirst.Mul(c.projection.elements()))
	}
	return forward, backward.Add(unprojected)
}

// recurrentGradient is the recorded backward of a fused recurrent kernel, _cudnn_rnn_backward or
// mkldnn_rnn_layer_backward. The kernel's own products are not visible; the model's are those of recurrentLayer with
// everything trained but the initial state, the input by output_mask.
func recurrentGradient(layer formula) formula {
	return func(o *Operator) cost {
		inner := *o
		inner.Inputs = append([]Tensor(nil), o.Inputs...)
		mask, given := o.Scalars["output_mask"]
		for i := range inner.Inputs {
			t := &inner.Inputs[i]
			switch {
			case t.Argument == "weight4":
				// mkldnn's backward numbers its weights from 1.
				t.Argument = "weight3"
			case t.Argument == "weight3":
				t.Argument = "weight2"
			case t.Argument == "weight2":
				t.Argument = "weight1"
			case t.Argument == "weight1":
				t.Argument = "weight0"
			}
			switch t.Argument {
			case "input":
				t.Grad = !given || mask&1 != 0
			case "hx", "hx_", "cx", "cx_", "cx_tmp":
				t.Grad = false
			default:
				t.Grad = true
			}
		}
		c := layer(&inner)
		if c.class == exact {
			c.forward = Work{FLOPs: c.backward.FLOPs, MACs: c.backward.MACs, Elementwise: c.backward.Elementwise}
			c.backward = Work{}
		}
		return c
	}
}
