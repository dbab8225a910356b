package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	prov4mlv1 "github.com/prov4ml/agent/api/prov4ml/v1"
	"github.com/prov4ml/agent/flops"
	"github.com/prov4ml/agent/server"
)

const sample = `{
	"training": true, "autocastDtype": "bfloat16", "method": "meta",
	"operators": [
		{"name": "aten.addmm", "count": "2", "module": "fc", "inputs": [
			{"dims": ["10"], "dtype": "float32", "grad": true, "argument": "self"},
			{"dims": ["32", "100"], "dtype": "float32", "argument": "mat1"},
			{"dims": ["100", "10"], "dtype": "float32", "grad": true, "argument": "mat2"}]},
		{"name": "aten.scaled_dot_product_attention", "scalars": {"is_causal": "1"}, "inputs": [
			{"dims": ["1", "1", "2", "4"], "dtype": "float32", "argument": "query"},
			{"dims": ["1", "1", "2", "4"], "dtype": "float32", "argument": "key"},
			{"dims": ["1", "1", "2", "4"], "dtype": "float32", "argument": "value"}]},
		{"name": "mylib.scan", "count": "3"},
		{"name": "mylib.kernel", "declared": {"forward": "12345678901234567890123", "backward": "1", "dtype": "float8"}},
		{"name": "aten.mm", "phase": "RECOMPUTE", "inputs": [{"dims": ["2", "3"]}, {"dims": ["3", "5"]}]}
	]}`

func TestRun(t *testing.T) {
	var out bytes.Buffer
	if err := run(strings.NewReader(sample), &out); err != nil {
		t.Fatal(err)
	}
	var a answer
	if err := json.Unmarshal(out.Bytes(), &a); err != nil {
		t.Fatal(err)
	}
	// 2 x 64,000, attention 2 x 2 x 2 x 8, and the declared count.
	if got := a.Forward.String(); got != "12345678901234568018187" {
		t.Errorf("forward %s", got)
	}
	if got := a.Backward.String(); got != "128001" {
		t.Errorf("backward %s", got)
	}
	if a.Recompute.String() != "60" || a.CausalDiscount.String() != "16" {
		t.Errorf("recompute %v, causal discount %v", a.Recompute, a.CausalDiscount)
	}
	if a.Complete || len(a.Unknown) != 1 || a.Unknown[0] != "mylib.scan" || a.UnknownDetails[0].Executions.String() != "3" {
		t.Errorf("unknown %+v", a)
	}
	if a.Modules["fc"].Forward.String() != "128000" || a.DTypes["bfloat16"].Backward.String() != "128000" {
		t.Errorf("shares %+v", a)
	}
}

func TestRunRefuses(t *testing.T) {
	for input, want := range map[string]string{
		"":  "decode list",
		"{": "decode list",
		`{"operators": [{"name": "aten.mm", "inputs": [{"dims": ["-1"]}]}]}`:                    "operators[0].inputs[0].dims[0]",
		`{"operators": [{"name": "aten.mm", "phase": 9}]}`:                                      "operators[0].phase",
		`{"operators": [{"name": "aten.mm", "declared": {"forward": "-1"}}]}`:                   "operators[0].declared.forward",
		`{"operators": [{"name": "aten.mm", "declared": {"forward": "1", "backward": "0.5"}}]}`: "operators[0].declared.backward",
		`{"batchSize": "-4"}`: "batch_size",
	} {
		var out bytes.Buffer
		if err := run(strings.NewReader(input), &out); err == nil || !strings.Contains(err.Error(), want) || out.Len() > 0 {
			t.Errorf("%s: %v, want %s", input, err, want)
		}
	}
}

// FuzzMessage: bytes from the socket that decode as an operator list are counted or refused by field, whatever they
// say.
func FuzzMessage(f *testing.F) {
	var message prov4mlv1.OperatorList
	if err := protojson.Unmarshal([]byte(sample), &message); err != nil {
		f.Fatal(err)
	}
	whole, err := proto.Marshal(&message)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
	f.Add(whole[:len(whole)/2])
	f.Fuzz(func(t *testing.T, data []byte) {
		var message prov4mlv1.OperatorList
		if proto.Unmarshal(data, &message) != nil {
			return
		}
		list, err := server.OperatorList(&message)
		if err == nil {
			_, err = flops.Count(list)
		}
		if err == nil {
			return
		}
		var refused *flops.FieldError
		if !errors.As(err, &refused) {
			t.Fatalf("refusal without a field: %v", err)
		}
	})
}
