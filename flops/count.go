package flops

import (
	"cmp"
	"maps"
	"slices"
	"strings"
)

// Sums is work by phase.
type Sums struct {
	// Model FLOPs are Forward and Backward. Recompute is forward work executed again by activation checkpointing.
	Forward, Backward, Recompute Work
	// FLOP that fused attention kernels execute again inside their backward.
	KernelRecompute Number
	// FLOP of Forward and Backward outside causal and windowed masks: contained in them, never subtracted.
	CausalForward, CausalBackward Number
}

// FLOPs is the headline: the model's, forward and backward.
func (s Sums) FLOPs() Number { return s.Forward.FLOPs.Add(s.Backward.FLOPs) }

// MACs are the multiply-accumulates of the headline.
func (s Sums) MACs() Number { return s.Forward.MACs.Add(s.Backward.MACs) }

// Executed is the headline with everything that was computed twice.
func (s Sums) Executed() Number {
	return s.FLOPs().Add(s.Recompute.FLOPs).Add(s.KernelRecompute)
}

// CausalDiscount is the part of the headline outside causal and windowed masks.
func (s Sums) CausalDiscount() Number { return s.CausalForward.Add(s.CausalBackward) }

func (s Sums) plus(v Sums) Sums {
	return Sums{
		Forward:         s.Forward.plus(v.Forward),
		Backward:        s.Backward.plus(v.Backward),
		Recompute:       s.Recompute.plus(v.Recompute),
		KernelRecompute: s.KernelRecompute.Add(v.KernelRecompute),
		CausalForward:   s.CausalForward.Add(v.CausalForward),
		CausalBackward:  s.CausalBackward.Add(v.CausalBackward),
	}
}

func (s Sums) times(n Number) Sums {
	return Sums{
		Forward:         s.Forward.times(n),
		Backward:        s.Backward.times(n),
		Recompute:       s.Recompute.times(n),
		KernelRecompute: s.KernelRecompute.Mul(n),
		CausalForward:   s.CausalForward.Mul(n),
		CausalBackward:  s.CausalBackward.Mul(n),
	}
}

func (s Sums) isZero() bool {
	return s.Forward.isZero() && s.Backward.isZero() && s.Recompute.isZero() && s.KernelRecompute.IsZero()
}

// Group is the share of one operator, module or dtype.
type Group struct {
	Name string
	// Executions with any cost.
	Executions Number
	Sums
}

// UnknownOperator is an operator that has no cost here.
type UnknownOperator struct {
	Name string
	// Why: no formula, or what did not fit.
	Reason     string
	Executions Number
}

// Coverage says what the sums contain, in executions.
type Coverage struct {
	// Exact by a formula, by a formula that the user declared, estimated, and zero by definition.
	Exact, Declared, Estimated, Zero Number
	// In the order of their names.
	Unknown []UnknownOperator
}

// Totals is the cost of one batch or, after Epoch, of many.
type Totals struct {
	Sums
	// Largest headline first, then by name. Each adds up to Sums.
	Operators, Modules, DTypes []Group
	Coverage                   Coverage
	// Rung or source of the numbers; several are joined by "+".
	Method string
	// Why nothing was counted; then the sums are zero and mean nothing.
	MissingReason string
	Notes         []string
	// Whether backward was to be counted.
	Training bool
	// Samples; 0 = unknown.
	Samples Number
	// Whether a tensor's dtype was unknown, so that Bytes lacks it.
	BytesIncomplete bool
}

// Complete reports whether nothing is unknown.
func (t *Totals) Complete() bool { return t.MissingReason == "" && len(t.Coverage.Unknown) == 0 }

// UnknownNames returns the distinct names of the unknown operators, in order.
func (t *Totals) UnknownNames() []string {
	var names []string
	for _, u := range t.Coverage.Unknown {
		if len(names) == 0 || names[len(names)-1] != u.Name {
			names = append(names, u.Name)
		}
	}
	return names
}

// Under sums the modules at a path and below it: a parent is the sum of its parts.
func (t *Totals) Under(path string) Sums {
	var s Sums
	for _, g := range t.Modules {
		if path == "" || g.Name == path || strings.HasPrefix(g.Name, path+".") {
			s = s.plus(g.Sums)
		}
	}
	return s
}

// Count adds up a list. Where the list did not record its backward, that is derived: each product or convolution
// costs its forward again for each operand whose grad bit is set; attention and recurrent layers follow their own
// rules. A list that is not training has none. The error is a *FieldError and means that nothing was counted.
func Count(l *List) (*Totals, error) {
	if err := l.Check(); err != nil {
		return nil, err
	}
	t := &Totals{
		Method:        l.Method,
		MissingReason: l.MissingReason,
		Notes:         slices.Clone(l.Notes),
		Training:      l.Training,
		Samples:       NumberOf(uint64(l.BatchSize)),
	}
	operators, modules, dtypes := groups{}, groups{}, groups{}
	unknowns := map[[2]string]Number{}
	for i := range l.Operators {
		o := &l.Operators[i]
		executions := NumberOf(o.executions())
		c := costOf(o)
		switch {
		case c.class == unknown:
			key := [2]string{o.Name, c.reason}
			unknowns[key] = unknowns[key].Add(executions)
			continue
		case o.Declared != nil:
			t.Coverage.Declared = t.Coverage.Declared.Add(executions)
		case c.class == exact:
			t.Coverage.Exact = t.Coverage.Exact.Add(executions)
		case c.class == estimated:
			t.Coverage.Estimated = t.Coverage.Estimated.Add(executions)
		default:
			t.Coverage.Zero = t.Coverage.Zero.Add(executions)
		}
		t.BytesIncomplete = t.BytesIncomplete || !o.sized()
		sums := l.phased(o, c).times(executions)
		if sums.isZero() {
			continue
		}
		t.Sums = t.plus(sums)
		operators.add(o.Name, executions, sums)
		modules.add(o.Module, executions, sums)
		dtypes.add(l.dtypeOf(o, c), executions, sums)
	}
	t.Operators, t.Modules, t.DTypes = operators.sorted(), modules.sorted(), dtypes.sorted()
	t.Coverage.Unknown = sortedUnknowns(unknowns)
	return t, nil
}

// costOf evaluates an operator's formula, or takes what the user declared.
func costOf(o *Operator) cost {
	if d := o.Declared; d != nil {
		return cost{
			class:    exact,
			forward:  Work{FLOPs: d.Forward, MACs: d.Forward.Over(2)},
			backward: Work{FLOPs: d.Backward, MACs: d.Backward.Over(2)},
		}
	}
	f := formulaFor(o.Name)
	if f == nil {
		return unknownBecause("no formula")
	}
	c := f(o)
	if c.class == exact && c.forward.Bytes.IsZero() {
		c.forward.Bytes = sizesOf(o)
		if !c.backward.FLOPs.IsZero() {
			// Each operand is read again and each gradient written, about.
			c.backward.Bytes = c.forward.Bytes.Times(2)
		}
	}
	return c
}

// phased puts a cost where it belongs. The backward that the grad bits imply counts only for a forward operator of a
// training list that did not record its backward: a recomputed operator's gradients are those of the first execution.
func (l *List) phased(o *Operator, c cost) Sums {
	var s Sums
	switch o.Phase {
	case Backward:
		s.Backward = c.forward
		s.CausalBackward = c.causalForward
		s.KernelRecompute = c.kernelRecompute
	case Recompute:
		s.Recompute = c.forward
	default:
		s.Forward = c.forward
		s.CausalForward = c.causalForward
		if l.Training && !l.BackwardRecorded {
			s.Backward = c.backward
			s.CausalBackward = c.causalBackward
			s.KernelRecompute = c.kernelRecompute
		}
	}
	return s
}

// dtypeOf is the dtype that an operator computes in. Meta tensors do not show autocast, so the list says it; it
// lowers float32, float16 and bfloat16 operands of the operators that torch autocasts, and never float64.
func (l *List) dtypeOf(o *Operator, c cost) string {
	if c.class == exact && o.ComputeDType != "" {
		return canonicalDType(o.ComputeDType)
	}
	lead := c.lead
	if lead == nil {
		lead = o.input(0)
	}
	if o.Declared != nil && o.Declared.DType != "" {
		return canonicalDType(o.Declared.DType)
	}
	if lead == nil {
		if lead = o.output(0); lead == nil {
			return ""
		}
	}
	dtype := canonicalDType(lead.DType)
	if c.class != exact {
		return dtype
	}
	autocasts := c.family != asOperands && l.AutocastDType != ""
	switch dtype {
	case "float16", "bfloat16", "float32":
		if autocasts {
			dtype = canonicalDType(l.AutocastDType)
		}
	}
	if dtype == "float32" {
		switch {
		case c.family == convolution && l.Float32ConvolutionDType != "":
			return canonicalDType(l.Float32ConvolutionDType)
		case c.family != convolution && l.Float32MatmulDType != "":
			return canonicalDType(l.Float32MatmulDType)
		}
	}
	return dtype
}

// canonicalDType gives torch's several names of one dtype one name.
func canonicalDType(dtype string) string {
	dtype = strings.TrimPrefix(dtype, "torch.")
	switch dtype {
	case "float":
		return "float32"
	case "double":
		return "float64"
	case "half", "fp16":
		return "float16"
	case "bf16":
		return "bfloat16"
	case "fp32":
		return "float32"
	case "fp64":
		return "float64"
	case "tf32":
		return "tfloat32"
	}
	return dtype
}

// sized reports whether the size of every tensor's dtype is known.
func (o *Operator) sized() bool {
	for _, tensors := range [...][]Tensor{o.Inputs, o.Outputs} {
		for i := range tensors {
			if elementBits(tensors[i].DType) == 0 {
				return false
			}
		}
	}
	return true
}

// groups adds up by name.
type groups map[string]*Group

func (g groups) add(name string, executions Number, s Sums) {
	group := g[name]
	if group == nil {
		group = &Group{Name: name}
		g[name] = group
	}
	group.Executions = group.Executions.Add(executions)
	group.Sums = group.plus(s)
}

func (g groups) sorted() []Group {
	list := make([]Group, 0, len(g))
	for _, name := range slices.Sorted(maps.Keys(g)) {
		list = append(list, *g[name])
	}
	slices.SortStableFunc(list, func(a, b Group) int { return b.FLOPs().Compare(a.FLOPs()) })
	return list
}

func sortedUnknowns(unknowns map[[2]string]Number) []UnknownOperator {
	list := make([]UnknownOperator, 0, len(unknowns))
	for key, n := range unknowns {
		list = append(list, UnknownOperator{Name: key[0], Reason: key[1], Executions: n})
	}
	slices.SortFunc(list, func(a, b UnknownOperator) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Reason, b.Reason))
	})
	return list
}
