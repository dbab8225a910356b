package main

import (
	"fmt"

	prov4mlv1 "github.com/prov4ml/agent/api/prov4ml/v1"
	"github.com/prov4ml/agent/flops"
)

// convert takes a message as the agent's server does.
func convert(m *prov4mlv1.OperatorList) (*flops.List, error) {
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
			return nil, &flops.FieldError{Field: fmt.Sprintf("operators[%d].phase", i), Problem: fmt.Sprintf("%d is no phase", o.GetPhase())}
		}
		if d := o.GetDeclared(); d != nil {
			declared, err := flops.Declare(d.GetForward(), d.GetBackward(), d.GetDtype())
			if err != nil {
				return nil, fmt.Errorf("operators[%d].declared.%w", i, err)
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
