package flops

import (
	"fmt"
	"strings"
)

// Phase says when an operator ran.
type Phase uint8

// The phases of a training step.
const (
	Forward Phase = iota
	Backward
	// Recompute is forward work executed again by activation checkpointing.
	Recompute
)

// Tensor is one operand or result.
type Tensor struct {
	// Sizes >= 0; a scalar has none.
	Dims []int64
	// torch's name without the prefix: float32, bfloat16, int64.
	DType string
	// requires_grad AND grad mode, read when the operator ran.
	Grad bool
	// Name of the argument it fills in the operator's schema; may be empty.
	Argument string
}

// Operator is a number of identical executions of one operator.
type Operator struct {
	// Namespace and name without overload: aten.addmm.
	Name string
	// 0 is read as 1.
	Count uint64
	// In argument order, list arguments flattened, absent ones left out.
	Inputs, Outputs []Tensor
	// What shapes do not say: transposed, is_causal, kernel_size.0.
	Scalars map[string]int64
	Strings map[string]string
	// Path of the innermost module; empty = the root.
	Module string
	Phase  Phase
	// Rows per time step, per sequence or per group; KeyLengths where those of the keys differ.
	Lengths, KeyLengths []int64
	// The dtype of the products where the operands do not show it; empty = see List.
	ComputeDType string
	// Cost of one execution by the user's own formula; nil = by this package's.
	Declared *Declared
}

// Declared is a cost that the user registered for an operator.
type Declared struct {
	Forward, Backward Number
	// Empty = the first operand's.
	DType string
}

// List is what one input signature executes.
type List struct {
	// Names the list afterwards.
	Signature string
	Operators []Operator
	// dtype under autocast; empty = off.
	AutocastDType string
	// Whether backward is counted.
	Training bool
	// meta, fake, observed, closed_form.
	Method string
	// Why nothing could be counted.
	MissingReason string
	Notes         []string
	// Samples in the batch; 0 = unknown.
	BatchSize int64
	// The phase Backward is in the list; else it is derived from the grad bits.
	BackwardRecorded bool
	// tfloat32 where the process has allowed it; empty = float32.
	Float32MatmulDType, Float32ConvolutionDType string
}

// Limits on a list. Sizes are those that a message of 1 MiB can hold with room to spare; a tensor's elements are
// what torch itself can count (int64).
const (
	MaxOperators   = 20_000
	MaxDims        = 32
	MaxDim         = int64(1) << 40
	MaxOperands    = 65_536
	MaxName        = 256
	MaxModule      = 1_024
	MaxDType       = 64
	MaxSignature   = 64
	MaxScalars     = 64
	MaxStrings     = 16
	MaxLengths     = 65_536
	MaxNotes       = 64
	MaxNote        = 1_024
	maxElements    = 1<<63 - 1
	maxStringValue = 256
)

// FieldError says which field of a list was refused and why.
type FieldError struct {
	// Path of the field: operators[3].inputs[0].dims[1].
	Field string
	// What is wrong, with the limit and the cure.
	Problem string
}

func (e *FieldError) Error() string { return e.Field + ": " + e.Problem }

func refuse(field, format string, args ...any) error {
	return &FieldError{Field: field, Problem: fmt.Sprintf(format, args...)}
}

// Check refuses a list that exceeds a limit or contradicts itself; the error is a *FieldError. It does not check that
// shapes fit each other: an operator whose shapes do not is unknown.
func (l *List) Check() error {
	if len(l.Signature) > MaxSignature {
		return refuse("signature", "%d bytes: the limit is %d", len(l.Signature), MaxSignature)
	}
	if len(l.Operators) > MaxOperators {
		return refuse("operators", "%d records: the limit is %d; merge equal executions with count", len(l.Operators), MaxOperators)
	}
	if l.MissingReason != "" && len(l.Operators) > 0 {
		return refuse("missing_reason", "given together with %d operators: send one or the other", len(l.Operators))
	}
	if len(l.MissingReason) > MaxNote {
		return refuse("missing_reason", "%d bytes: the limit is %d", len(l.MissingReason), MaxNote)
	}
	if l.BatchSize < 0 {
		return refuse("batch_size", "%d: send 0 when it is unknown", l.BatchSize)
	}
	if len(l.Notes) > MaxNotes {
		return refuse("notes", "%d: the limit is %d", len(l.Notes), MaxNotes)
	}
	for i, n := range l.Notes {
		if len(n) > MaxNote {
			return refuse(fmt.Sprintf("notes[%d]", i), "%d bytes: the limit is %d", len(n), MaxNote)
		}
	}
	for _, f := range [...]struct{ field, value string }{
		{"autocast_dtype", l.AutocastDType},
		{"method", l.Method},
		{"float32_matmul_dtype", l.Float32MatmulDType},
		{"float32_convolution_dtype", l.Float32ConvolutionDType},
	} {
		if len(f.value) > MaxDType {
			return refuse(f.field, "%d bytes: the limit is %d", len(f.value), MaxDType)
		}
	}
	for i := range l.Operators {
		if err := l.Operators[i].check(l, i); err != nil {
			return err
		}
	}
	return nil
}

// check formats a field's path only when it refuses it: lists have thousands of fields.
func (o *Operator) check(l *List, index int) error {
	at := func(field string) string { return fmt.Sprintf("operators[%d].%s", index, field) }
	if o.Name == "" || len(o.Name) > MaxName {
		return refuse(at("name"), "%d bytes: want 1 to %d", len(o.Name), MaxName)
	}
	if len(o.Module) > MaxModule {
		return refuse(at("module"), "%d bytes: the limit is %d", len(o.Module), MaxModule)
	}
	if len(o.ComputeDType) > MaxDType {
		return refuse(at("compute_dtype"), "%d bytes: the limit is %d", len(o.ComputeDType), MaxDType)
	}
	switch o.Phase {
	case Forward:
	case Backward:
		if !l.Training {
			return refuse(at("phase"), "backward in a list that is not training: leave it out or set training")
		}
		if !l.BackwardRecorded {
			return refuse(at("phase"), "backward in a list whose backward is derived from the grad bits: set backward_recorded or leave it out")
		}
	case Recompute:
		if !l.Training {
			return refuse(at("phase"), "recompute in a list that is not training: leave it out or set training")
		}
	default:
		return refuse(at("phase"), "%d is no phase: want forward, backward or recompute", o.Phase)
	}
	if len(o.Scalars) > MaxScalars {
		return refuse(at("scalars"), "%d: the limit is %d", len(o.Scalars), MaxScalars)
	}
	for k := range o.Scalars {
		if len(k) > MaxDType {
			return refuse(at("scalars"), "name of %d bytes: the limit is %d", len(k), MaxDType)
		}
	}
	if len(o.Strings) > MaxStrings {
		return refuse(at("strings"), "%d: the limit is %d", len(o.Strings), MaxStrings)
	}
	for k, v := range o.Strings {
		if len(k) > MaxDType || len(v) > maxStringValue {
			return refuse(at("strings"), "name of %d and value of %d bytes: the limits are %d and %d", len(k), len(v), MaxDType, maxStringValue)
		}
	}
	if o.Declared != nil && len(o.Declared.DType) > MaxDType {
		return refuse(at("declared.dtype"), "%d bytes: the limit is %d", len(o.Declared.DType), MaxDType)
	}
	for _, f := range [...]struct {
		field   string
		lengths []int64
	}{{"lengths", o.Lengths}, {"key_lengths", o.KeyLengths}} {
		if len(f.lengths) > MaxLengths {
			return refuse(at(f.field), "%d: the limit is %d", len(f.lengths), MaxLengths)
		}
		for i, n := range f.lengths {
			if n < 0 || n > MaxDim {
				return refuse(at(fmt.Sprintf("%s[%d]", f.field, i)), "%d: want 0 to 2^40", n)
			}
		}
	}
	for _, f := range [...]struct {
		field   string
		tensors []Tensor
	}{{"inputs", o.Inputs}, {"outputs", o.Outputs}} {
		if len(f.tensors) > MaxOperands {
			return refuse(at(f.field), "%d tensors: the limit is %d", len(f.tensors), MaxOperands)
		}
		for i := range f.tensors {
			if field, problem := f.tensors[i].check(); problem != "" {
				return refuse(at(fmt.Sprintf("%s[%d].%s", f.field, i, field)), "%s", problem)
			}
		}
	}
	return nil
}

func (t *Tensor) check() (field, problem string) {
	if len(t.Dims) > MaxDims {
		return "dims", fmt.Sprintf("%d dimensions: the limit is %d", len(t.Dims), MaxDims)
	}
	for i, d := range t.Dims {
		if d < 0 || d > MaxDim {
			return fmt.Sprintf("dims[%d]", i), fmt.Sprintf("%d: want 0 to 2^40", d)
		}
	}
	if t.elements().Compare(NumberOf(maxElements)) > 0 {
		return "dims", "more than 2^63-1 elements: no tensor has so many"
	}
	if len(t.DType) > MaxDType {
		return "dtype", fmt.Sprintf("%d bytes: the limit is %d", len(t.DType), MaxDType)
	}
	if len(t.Argument) > MaxDType {
		return "argument", fmt.Sprintf("%d bytes: the limit is %d", len(t.Argument), MaxDType)
	}
	return "", ""
}

func (t *Tensor) elements() Number { return product(t.Dims...) }

// executions is the number of times the operator ran.
func (o *Operator) executions() uint64 { return max(o.Count, 1) }

// operand returns the first operand that fills one of the named arguments; nil = there is none.
func (o *Operator) operand(arguments ...string) *Tensor {
	for i := range o.Inputs {
		for _, a := range arguments {
			if o.Inputs[i].Argument == a {
				return &o.Inputs[i]
			}
		}
	}
	return nil
}

// operands returns all operands that fill the named list argument.
func (o *Operator) operands(argument string) []*Tensor {
	var list []*Tensor
	for i := range o.Inputs {
		if o.Inputs[i].Argument == argument {
			list = append(list, &o.Inputs[i])
		}
	}
	return list
}

// input returns operand i, nil where there is none.
func (o *Operator) input(i int) *Tensor {
	if i < len(o.Inputs) {
		return &o.Inputs[i]
	}
	return nil
}

// output returns result i, nil where there is none.
func (o *Operator) output(i int) *Tensor {
	if i < len(o.Outputs) {
		return &o.Outputs[i]
	}
	return nil
}

// list returns the elements NAME.0, NAME.1 ... of an integer list, or the one that is given as NAME.
func (o *Operator) list(name string) []int64 {
	if v, ok := o.Scalars[name]; ok {
		return []int64{v}
	}
	var values []int64
	for i := range MaxScalars {
		v, ok := o.Scalars[fmt.Sprintf("%s.%d", name, i)]
		if !ok {
			break
		}
		values = append(values, v)
	}
	return values
}

// baseName splits a name into namespace and operator, without the mark of an in-place form: aten.add_ is aten, add.
func baseName(name string) (namespace, base string) {
	namespace, base, ok := strings.Cut(name, ".")
	if !ok {
		return "", name
	}
	if i := strings.IndexByte(base, '.'); i >= 0 {
		// An overload that was sent all the same.
		base = base[:i]
	}
	if strings.HasSuffix(base, "_") && !strings.HasSuffix(base, "__") {
		base = strings.TrimSuffix(base, "_")
	}
	return namespace, base
}
