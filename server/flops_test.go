package server

import (
	"errors"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"

	prov4mlv1 "github.com/prov4ml/agent/api/prov4ml/v1"
	"github.com/prov4ml/agent/flops"
)

// linearList is a layer of 100 x 10 on so many rows.
func linearList(signature string, rows int64) *prov4mlv1.OperatorList {
	return &prov4mlv1.OperatorList{
		Signature: signature, Training: true, Method: "meta", BatchSize: rows, AutocastDtype: "bfloat16",
		Operators: []*prov4mlv1.Operator{{
			Name: "aten.addmm", Module: "fc", Phase: prov4mlv1.Phase_FORWARD,
			Inputs: []*prov4mlv1.Tensor{
				{Dims: []int64{10}, Dtype: "float32", Grad: true, Argument: "self"},
				{Dims: []int64{rows, 100}, Dtype: "float32", Argument: "mat1"},
				{Dims: []int64{100, 10}, Dtype: "float32", Grad: true, Argument: "mat2"},
			},
		}},
	}
}

func batchOf(list *prov4mlv1.OperatorList) *prov4mlv1.LogFlopsPerBatchRequest {
	return &prov4mlv1.LogFlopsPerBatchRequest{Cost: &prov4mlv1.LogFlopsPerBatchRequest_Operators{Operators: list}}
}

func signatureOf(s string) *prov4mlv1.LogFlopsPerBatchRequest {
	return &prov4mlv1.LogFlopsPerBatchRequest{Cost: &prov4mlv1.LogFlopsPerBatchRequest_Signature{Signature: s}}
}

func countOf(c *prov4mlv1.FlopsCount) *prov4mlv1.LogFlopsPerBatchRequest {
	return &prov4mlv1.LogFlopsPerBatchRequest{Cost: &prov4mlv1.LogFlopsPerBatchRequest_Count{Count: c}}
}

// refusedWith checks the code of a refusal and that its sentence names the field.
func refusedWith(t *testing.T, err error, code connect.Code, field string) {
	t.Helper()
	var r *refusal
	if !errors.As(err, &r) || r.code != code || !strings.Contains(r.sentence, field) {
		t.Errorf("%v: want %v about %s", err, code, field)
	}
}

func TestBatchCosts(t *testing.T) {
	c := costs{flops.NewMemo(0)}
	first, err := c.batch("a", batchOf(linearList("s", 32)))
	if err != nil {
		t.Fatal(err)
	}
	if first.Forward.FLOPs.String() != "64000" || first.Backward.FLOPs.String() != "64000" || first.DTypes[0].Name != "bfloat16" {
		t.Errorf("%+v", first)
	}
	again, err := c.batch("a", signatureOf("s"))
	if err != nil || again != first {
		t.Errorf("%+v %v", again, err)
	}
	_, err = c.batch("b", signatureOf("s"))
	refusedWith(t, err, connect.CodeNotFound, `signature "s"`)
	_, err = c.batch("a", &prov4mlv1.LogFlopsPerBatchRequest{})
	refusedWith(t, err, connect.CodeInvalidArgument, "operators, signature and count")

	given, err := c.batch("a", countOf(&prov4mlv1.FlopsCount{Forward: "340282366920938463463374607431768211456", Method: "cost_analysis", Dtype: "float32"}))
	if err != nil || given.FLOPs().String() != "340282366920938463463374607431768211456" || given.Method != "cost_analysis" {
		t.Errorf("%+v %v", given, err)
	}
	missing, err := c.batch("a", countOf(&prov4mlv1.FlopsCount{Method: "cost_analysis", MissingReason: "the analysis gave None"}))
	if err != nil || missing.Complete() || missing.MissingReason != "the analysis gave None" {
		t.Errorf("%+v %v", missing, err)
	}
	for field, count := range map[string]*prov4mlv1.FlopsCount{
		"count.forward":        {Forward: "-1"},
		"count.forward: 0":     {Forward: "0"},
		"count.forward: empty": {},
		"count.backward":       {Forward: "1", Backward: "x"},
		"count.missing_reason": {Forward: "1", MissingReason: "why"},
	} {
		_, err := c.batch("a", countOf(count))
		refusedWith(t, err, connect.CodeInvalidArgument, field)
	}
}

func TestBatchRefusesByField(t *testing.T) {
	c := costs{flops.NewMemo(0)}
	for field, change := range map[string]func(*prov4mlv1.OperatorList){
		"operators.operators[0].inputs[1].dims[0]": func(l *prov4mlv1.OperatorList) { l.Operators[0].Inputs[1].Dims[0] = -1 },
		"operators.operators[0].phase":             func(l *prov4mlv1.OperatorList) { l.Operators[0].Phase = 9 },
		"operators.operators[0].declared.forward":  func(l *prov4mlv1.OperatorList) { l.Operators[0].Declared = &prov4mlv1.FlopsCount{} },
		"operators.batch_size":                     func(l *prov4mlv1.OperatorList) { l.BatchSize = -1 },
	} {
		l := linearList("s", 4)
		change(l)
		_, err := c.batch("a", batchOf(l))
		refusedWith(t, err, connect.CodeInvalidArgument, field)
	}
	_, err := c.batch("a", signatureOf("s"))
	refusedWith(t, err, connect.CodeNotFound, "signature")
}

func TestEpochCosts(t *testing.T) {
	c := costs{flops.NewMemo(0)}
	if _, err := c.batch("a", batchOf(linearList("full", 32))); err != nil {
		t.Fatal(err)
	}
	epoch, err := c.epoch("a", &prov4mlv1.LogFlopsPerEpochRequest{
		Operators: []*prov4mlv1.OperatorList{linearList("last", 5)},
		Batches:   []*prov4mlv1.BatchCount{{Signature: "full", Batches: 56}, {Signature: "last", Batches: 1}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if epoch.FLOPs().String() != "7188000" || epoch.Samples.String() != "1797" || !epoch.Complete() {
		t.Errorf("%+v", epoch)
	}
	if _, err := c.batch("a", signatureOf("last")); err != nil {
		t.Errorf("the epoch's list is not remembered: %v", err)
	}
	partial, err := c.epoch("a", &prov4mlv1.LogFlopsPerEpochRequest{IncompleteReason: "IterableDataset has no length"})
	if err != nil || partial.Complete() || partial.MissingReason != "IterableDataset has no length" {
		t.Errorf("%+v %v", partial, err)
	}
	given, err := c.epoch("a", &prov4mlv1.LogFlopsPerEpochRequest{Count: &prov4mlv1.FlopsCount{Forward: "7", Method: "user"}})
	if err != nil || given.FLOPs().String() != "7" {
		t.Errorf("%+v %v", given, err)
	}
	for field, m := range map[string]*prov4mlv1.LogFlopsPerEpochRequest{
		"incomplete_reason":      {},
		"operators[0].signature": {Operators: []*prov4mlv1.OperatorList{linearList("", 1)}},
		"count is set together":  {Count: &prov4mlv1.FlopsCount{Forward: "7"}, Batches: []*prov4mlv1.BatchCount{{Signature: "full"}}},
		"operators[0].operators[0].inputs[0].dims[0]": {Operators: []*prov4mlv1.OperatorList{{Signature: "x", Operators: []*prov4mlv1.Operator{
			{Name: "aten.mm", Inputs: []*prov4mlv1.Tensor{{Dims: []int64{-1}}}},
		}}}},
	} {
		_, err := c.epoch("a", m)
		refusedWith(t, err, connect.CodeInvalidArgument, field)
	}
	_, err = c.epoch("a", &prov4mlv1.LogFlopsPerEpochRequest{Batches: []*prov4mlv1.BatchCount{{Signature: "other", Batches: 1}}})
	refusedWith(t, err, connect.CodeNotFound, "batches[0].signature")
}

func TestOperatorListKeepsEveryField(t *testing.T) {
	m := &prov4mlv1.OperatorList{
		Signature: "s", AutocastDtype: "bfloat16", Training: true, Method: "fake", Notes: []string{"n"}, BatchSize: 3,
		BackwardRecorded: true, Float32MatmulDtype: "tfloat32", Float32ConvolutionDtype: "tfloat32", MissingReason: "m",
		Operators: []*prov4mlv1.Operator{{
			Name: "aten.einsum", Count: 7, Module: "a.b", Phase: prov4mlv1.Phase_RECOMPUTE, Lengths: []int64{1}, KeyLengths: []int64{2},
			Inputs:  []*prov4mlv1.Tensor{{Dims: []int64{2, 3}, Dtype: "float16", Grad: true, Argument: "tensors"}},
			Outputs: []*prov4mlv1.Tensor{{Dims: []int64{4}, Dtype: "int64"}},
			Scalars: map[string]int64{"path.0": 1}, Strings: map[string]string{"equation": "ij->i"}, ComputeDtype: "tfloat32",
			Declared: &prov4mlv1.FlopsCount{Forward: "5", Backward: "6", Dtype: "float8"},
		}},
	}
	got, err := OperatorList(m)
	if err != nil {
		t.Fatal(err)
	}
	want := &flops.List{
		Signature: "s", AutocastDType: "bfloat16", Training: true, Method: "fake", Notes: []string{"n"}, BatchSize: 3,
		BackwardRecorded: true, Float32MatmulDType: "tfloat32", Float32ConvolutionDType: "tfloat32", MissingReason: "m",
		Operators: []flops.Operator{{
			Name: "aten.einsum", Count: 7, Module: "a.b", Phase: flops.Recompute, Lengths: []int64{1}, KeyLengths: []int64{2},
			Inputs:  []flops.Tensor{{Dims: []int64{2, 3}, DType: "float16", Grad: true, Argument: "tensors"}},
			Outputs: []flops.Tensor{{Dims: []int64{4}, DType: "int64"}},
			Scalars: map[string]int64{"path.0": 1}, Strings: map[string]string{"equation": "ij->i"}, ComputeDType: "tfloat32",
			Declared: &flops.Declared{Forward: flops.NumberOf(5), Backward: flops.NumberOf(6), DType: "float8"},
		}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	// A field that is added to the contract must be taken here too.
	if n := m.ProtoReflect().Descriptor().Fields().Len(); n != 11 {
		t.Errorf("OperatorList has %d fields", n)
	}
	if n := m.GetOperators()[0].ProtoReflect().Descriptor().Fields().Len(); n != 12 {
		t.Errorf("Operator has %d fields", n)
	}
}
