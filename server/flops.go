package server

import (
	"errors"
	"fmt"

	"connectrpc.com/connect"

	prov4mlv1 "github.com/prov4ml/agent/api/prov4ml/v1"
	"github.com/prov4ml/agent/flops"
)

// refusedSignature counts signatures that the agent no longer knows: the client then sends the operators again.
const refusedSignature = "refused.signature"

// OperatorList takes an operator list from the socket. Its errors are *flops.FieldError; limits are for flops.Count to
// check.
func OperatorList(m *prov4mlv1.OperatorList) (*flops.List, error) {
	l := &flops.List{
		Signature:               m.GetSignature(),
		AutocastDType:           m.GetAutocastDtype(),
		Training:                m.GetTraining(),
		Method:                  m.GetMethod(),
		MissingReason:           m.GetMissingReason(),
		Notes:                   m.GetNotes(),
		BatchSize:               m.GetBatchSize(),
		BackwardRecorded:        m.GetBackwardRecorded(),
		Float32MatmulDType:      m.GetFloat32MatmulDtype(),
		Float32ConvolutionDType: m.GetFloat32ConvolutionDtype(),
		Operators:               make([]flops.Operator, len(m.GetOperators())),
	}
	for i, o := range m.GetOperators() {
		to := &l.Operators[i]
		*to = flops.Operator{
			Name:         o.GetName(),
			Count:        o.GetCount(),
			Inputs:       tensors(o.GetInputs()),
			Outputs:      tensors(o.GetOutputs()),
			Scalars:      o.GetScalars(),
			Strings:      o.GetStrings(),
			Module:       o.GetModule(),
			Lengths:      o.GetLengths(),
			KeyLengths:   o.GetKeyLengths(),
			ComputeDType: o.GetComputeDtype(),
		}
		switch o.GetPhase() {
		case prov4mlv1.Phase_PHASE_UNSPECIFIED, prov4mlv1.Phase_FORWARD:
			to.Phase = flops.Forward
		case prov4mlv1.Phase_BACKWARD:
			to.Phase = flops.Backward
		case prov4mlv1.Phase_RECOMPUTE:
			to.Phase = flops.Recompute
		default:
			return nil, &flops.FieldError{
				Field:   fmt.Sprintf("operators[%d].phase", i),
				Problem: fmt.Sprintf("%d is no phase: want FORWARD, BACKWARD or RECOMPUTE", o.GetPhase()),
			}
		}
		if d := o.GetDeclared(); d != nil {
			declared, err := flops.Declare(d.GetForward(), d.GetBackward(), d.GetDtype())
			if err != nil {
				return nil, within(fmt.Sprintf("operators[%d].declared.", i), err)
			}
			to.Declared = declared
		}
	}
	return l, nil
}

func tensors(list []*prov4mlv1.Tensor) []flops.Tensor {
	if len(list) == 0 {
		return nil
	}
	to := make([]flops.Tensor, len(list))
	for i, t := range list {
		to[i] = flops.Tensor{Dims: t.GetDims(), DType: t.GetDtype(), Grad: t.GetGrad(), Argument: t.GetArgument()}
	}
	return to
}

// within puts the path of the message before the field that an error of flops names.
func within(path string, err error) error {
	var field *flops.FieldError
	if errors.As(err, &field) {
		return &flops.FieldError{Field: path + field.Field, Problem: field.Problem}
	}
	return err
}

// costs turns what a FLOPs call says into totals. Signatures are remembered per process.
type costs struct {
	memo *flops.Memo
}

// batch returns the totals of one batch; process is the key of the calling process. Its errors are *refusal.
func (c costs) batch(process string, m *prov4mlv1.LogFlopsPerBatchRequest) (*flops.Totals, error) {
	switch cost := m.GetCost().(type) {
	case *prov4mlv1.LogFlopsPerBatchRequest_Operators:
		return c.learn(process, "operators.", cost.Operators)
	case *prov4mlv1.LogFlopsPerBatchRequest_Signature:
		return c.recall(process, "signature", cost.Signature)
	case *prov4mlv1.LogFlopsPerBatchRequest_Count:
		return declared(cost.Count)
	}
	return nil, refusef(refusedValue, connect.CodeInvalidArgument, "none of operators, signature and count is set: exactly one says what the batch costs")
}

// epoch returns the totals of an epoch: the sum over its batch shapes, or a count from elsewhere. Lists that came
// with the call are remembered even if it is refused for another reason.
func (c costs) epoch(process string, m *prov4mlv1.LogFlopsPerEpochRequest) (*flops.Totals, error) {
	if m.GetCount() != nil && (len(m.GetOperators()) > 0 || len(m.GetBatches()) > 0) {
		return nil, refusef(refusedValue, connect.CodeInvalidArgument, "count is set together with operators or batches: send one or the other")
	}
	learned := make(map[string]*flops.Totals, len(m.GetOperators()))
	for i, list := range m.GetOperators() {
		if list.GetSignature() == "" {
			return nil, refusef(refusedValue, connect.CodeInvalidArgument, "operators[%d].signature is empty: batches refers to lists by their signature", i)
		}
		totals, err := c.learn(process, fmt.Sprintf("operators[%d].", i), list)
		if err != nil {
			return nil, err
		}
		learned[list.GetSignature()] = totals
	}
	if m.GetCount() != nil {
		return declared(m.GetCount())
	}
	batches := make([]flops.Batches, 0, len(m.GetBatches()))
	for i, b := range m.GetBatches() {
		totals, ok := learned[b.GetSignature()]
		if !ok {
			var err error
			if totals, err = c.recall(process, fmt.Sprintf("batches[%d].signature", i), b.GetSignature()); err != nil {
				return nil, err
			}
		}
		batches = append(batches, flops.Batches{Totals: totals, Count: b.GetBatches()})
	}
	t := flops.Epoch(batches)
	switch reason := m.GetIncompleteReason(); {
	case reason == "" && len(batches) == 0:
		return nil, refusef(refusedValue, connect.CodeInvalidArgument, "the epoch has neither batches nor a count: say why in incomplete_reason")
	case reason != "" && t.MissingReason != "":
		t.MissingReason = reason + "; " + t.MissingReason
	case reason != "":
		t.MissingReason = reason
	}
	return t, nil
}

// learn counts an operator list and remembers it under its signature.
func (c costs) learn(process, path string, m *prov4mlv1.OperatorList) (*flops.Totals, error) {
	list, err := OperatorList(m)
	if err != nil {
		return nil, refusef(refusedValue, connect.CodeInvalidArgument, "%s", within(path, err))
	}
	totals, err := flops.Count(list)
	if err != nil {
		return nil, refusef(refusedValue, connect.CodeInvalidArgument, "%s", within(path, err))
	}
	if list.Signature != "" {
		c.memo.Put(process, list.Signature, totals)
	}
	return totals, nil
}

func (c costs) recall(process, field, signature string) (*flops.Totals, error) {
	totals, ok := c.memo.Get(process, signature)
	if !ok {
		return nil, refusef(refusedSignature, connect.CodeNotFound,
			"%s %q is not known of this process (the agent has restarted, or has given it up for lack of room): send its operators", field, signature)
	}
	return totals, nil
}

// declared takes a count that was made elsewhere, or the reason why there is none.
func declared(m *prov4mlv1.FlopsCount) (*flops.Totals, error) {
	if m.GetForward() == "" && m.GetBackward() == "" && m.GetMissingReason() != "" {
		return flops.Missing(m.GetMethod(), m.GetMissingReason()), nil
	}
	if m.GetMissingReason() != "" {
		return nil, refusef(refusedValue, connect.CodeInvalidArgument, "count.missing_reason is set together with a number: send one or the other")
	}
	d, err := flops.Declare(m.GetForward(), m.GetBackward(), m.GetDtype())
	if err != nil {
		return nil, refusef(refusedValue, connect.CodeInvalidArgument, "%s", within("count.", err))
	}
	return d.Totals(m.GetMethod()), nil
}
