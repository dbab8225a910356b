package server

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	prov4mlv1 "github.com/prov4ml/agent/api/prov4ml/v1"
)

// Each limit, at it and one over it: what is over gets a status that names field and limit, is counted, and is not taken.
func TestLimits(t *testing.T) {
	text := func(n int) string { return strings.Repeat("x", n) }
	texts := func(n, keyBytes, valueBytes int) map[string]string {
		m := map[string]string{}
		for i := range n {
			m[fmt.Sprintf("%0*d", keyBytes, i)] = text(valueBytes)
		}
		return m
	}
	operators := func(n int) []*prov4mlv1.Operator {
		ops := make([]*prov4mlv1.Operator, n)
		for i := range ops {
			ops[i] = &prov4mlv1.Operator{Name: "aten.mm", Count: 1}
		}
		return ops
	}
	batch := func(list *prov4mlv1.OperatorList) *prov4mlv1.LogFlopsPerBatchRequest {
		return &prov4mlv1.LogFlopsPerBatchRequest{Label: "l", Cost: &prov4mlv1.LogFlopsPerBatchRequest_Operators{Operators: list}}
	}
	shape := func(dims ...int64) *prov4mlv1.LogFlopsPerBatchRequest {
		return batch(&prov4mlv1.OperatorList{Operators: []*prov4mlv1.Operator{{Name: "aten.mm", Inputs: []*prov4mlv1.Tensor{{}, {Dims: dims}}}}})
	}
	count := func(number string) *prov4mlv1.LogFlopsPerBatchRequest {
		return &prov4mlv1.LogFlopsPerBatchRequest{Cost: &prov4mlv1.LogFlopsPerBatchRequest_Count{Count: &prov4mlv1.FlopsCount{Forward: "1", Backward: number}}}
	}
	metrics := func(n int, m *prov4mlv1.LoggedMetric) *prov4mlv1.DescribeRunRequest {
		list := make([]*prov4mlv1.LoggedMetric, n)
		for i := range list {
			list[i] = m
		}
		return &prov4mlv1.DescribeRunRequest{Metrics: list}
	}

	for name, tt := range map[string]struct {
		method   string
		at, over proto.Message
		sentence string
		counter  string
	}{
		"context": {
			"LogSystemMetrics", &prov4mlv1.LogSystemMetricsRequest{Context: proto.String(text(1024))}, &prov4mlv1.LogSystemMetricsRequest{Context: proto.String(text(1025))},
			"context has 1025 bytes, the limit is 1024", refusedTextBytes,
		},
		"traceparent": {
			"LogSystemMetrics", &prov4mlv1.LogSystemMetricsRequest{Traceparent: text(1024)}, &prov4mlv1.LogSystemMetricsRequest{Traceparent: text(1025)},
			"traceparent has 1025 bytes, the limit is 1024", refusedTextBytes,
		},
		"name": {
			"DescribeRun", &prov4mlv1.DescribeRunRequest{Name: text(1024)}, &prov4mlv1.DescribeRunRequest{Name: text(1025)},
			"name has 1025 bytes, the limit is 1024", refusedTextBytes,
		},
		"script": {
			"DescribeRun", &prov4mlv1.DescribeRunRequest{Script: text(1024)}, &prov4mlv1.DescribeRunRequest{Script: text(1025)},
			"script has 1025 bytes, the limit is 1024", refusedTextBytes,
		},
		"client version": {
			"DescribeRun", &prov4mlv1.DescribeRunRequest{ClientVersion: text(1024)}, &prov4mlv1.DescribeRunRequest{ClientVersion: text(1025)},
			"client_version has 1025 bytes, the limit is 1024", refusedTextBytes,
		},
		"attributes": {
			"DescribeRun", &prov4mlv1.DescribeRunRequest{Attributes: texts(128, 4, 1)}, &prov4mlv1.DescribeRunRequest{Attributes: texts(129, 4, 1)},
			"attributes has 129 entries, the limit is 128", refusedCount,
		},
		"attribute key": {
			"DescribeRun", &prov4mlv1.DescribeRunRequest{Attributes: texts(1, 1024, 1)}, &prov4mlv1.DescribeRunRequest{Attributes: texts(1, 1025, 1)},
			"attributes has a key of 1025 bytes, the limit is 1024", refusedTextBytes,
		},
		"attribute value": {
			"DescribeRun", &prov4mlv1.DescribeRunRequest{Attributes: texts(1, 1, 1024)}, &prov4mlv1.DescribeRunRequest{Attributes: texts(1, 1, 1025)},
			`attributes["0"] has 1025 bytes, the limit is 1024`, refusedTextBytes,
		},
		"variables": {
			"DescribeRun", &prov4mlv1.DescribeRunRequest{Environment: texts(1024, 4, 1)}, &prov4mlv1.DescribeRunRequest{Environment: texts(1025, 4, 1)},
			"environment has 1025 entries, the limit is 1024", refusedCount,
		},
		"variable": {
			"DescribeRun", &prov4mlv1.DescribeRunRequest{Environment: texts(1, 1, 32768)}, &prov4mlv1.DescribeRunRequest{Environment: texts(1, 1, 32769)},
			`environment["0"] has 32769 bytes, the limit is 32768`, refusedTextBytes,
		},
		"metrics": {
			"DescribeRun", metrics(10_000, &prov4mlv1.LoggedMetric{}), metrics(10_001, &prov4mlv1.LoggedMetric{}),
			"metrics has 10001 entries, the limit is 10000", refusedCount,
		},
		"metric key": {
			"DescribeRun", metrics(1, &prov4mlv1.LoggedMetric{Key: text(1024)}), metrics(2, &prov4mlv1.LoggedMetric{Key: text(1025)}),
			"metrics[0].key has 1025 bytes, the limit is 1024", refusedTextBytes,
		},
		"metric timestamp": {
			"DescribeRun", metrics(1, &prov4mlv1.LoggedMetric{Timestamp: 9223372036854}), metrics(1, &prov4mlv1.LoggedMetric{Timestamp: 9223372036855}),
			"metrics[0].timestamp is 9223372036855", refusedValue,
		},
		"timestamp": {
			"LogSystemMetrics", &prov4mlv1.LogSystemMetricsRequest{Timestamp: proto.Int64(-9223372036854)}, &prov4mlv1.LogSystemMetricsRequest{Timestamp: proto.Int64(1700000000000000000)},
			"timestamp is 1700000000000000000", refusedValue,
		},
		"operator strings": {
			"LogFlopsPerBatch",
			batch(&prov4mlv1.OperatorList{Operators: []*prov4mlv1.Operator{{Strings: texts(1, 1, 1024)}}}),
			batch(&prov4mlv1.OperatorList{Operators: []*prov4mlv1.Operator{{Strings: texts(1, 1, 1025)}}}),
			`operators.operators[0].strings["0"] has 1025 bytes, the limit is 1024`, refusedTextBytes,
		},
		"operator scalars": {
			"LogFlopsPerBatch",
			batch(&prov4mlv1.OperatorList{Operators: []*prov4mlv1.Operator{{Scalars: map[string]int64{text(1024): 1}}}}),
			batch(&prov4mlv1.OperatorList{Operators: []*prov4mlv1.Operator{{Scalars: map[string]int64{text(1025): 1}}}}),
			"operators.operators[0].scalars has a key of 1025 bytes, the limit is 1024", refusedTextBytes,
		},
		"notes": {
			"LogFlopsPerBatch",
			batch(&prov4mlv1.OperatorList{Notes: []string{text(1024)}}), batch(&prov4mlv1.OperatorList{Notes: []string{"", text(1025)}}),
			"operators.notes[1] has 1025 bytes, the limit is 1024", refusedTextBytes,
		},
		"metric context": {
			"DescribeRun", metrics(1, &prov4mlv1.LoggedMetric{Context: proto.String(text(1024))}), metrics(1, &prov4mlv1.LoggedMetric{Context: proto.String(text(1025))}),
			"metrics[0].context has 1025 bytes, the limit is 1024", refusedTextBytes,
		},
		"batch label": {
			"LogFlopsPerBatch",
			&prov4mlv1.LogFlopsPerBatchRequest{Label: text(1024), Cost: &prov4mlv1.LogFlopsPerBatchRequest_Signature{}},
			&prov4mlv1.LogFlopsPerBatchRequest{Label: text(1025), Cost: &prov4mlv1.LogFlopsPerBatchRequest_Signature{}},
			"label has 1025 bytes, the limit is 1024", refusedTextBytes,
		},
		"batch context": {
			"LogFlopsPerBatch",
			&prov4mlv1.LogFlopsPerBatchRequest{Context: proto.String(text(1024)), Cost: &prov4mlv1.LogFlopsPerBatchRequest_Signature{}},
			&prov4mlv1.LogFlopsPerBatchRequest{Context: proto.String(text(1025)), Cost: &prov4mlv1.LogFlopsPerBatchRequest_Signature{}},
			"context has 1025 bytes, the limit is 1024", refusedTextBytes,
		},
		"signature": {
			"LogFlopsPerBatch",
			&prov4mlv1.LogFlopsPerBatchRequest{Cost: &prov4mlv1.LogFlopsPerBatchRequest_Signature{Signature: text(64)}},
			&prov4mlv1.LogFlopsPerBatchRequest{Cost: &prov4mlv1.LogFlopsPerBatchRequest_Signature{Signature: text(65)}},
			"signature has 65 bytes, the limit is 64", refusedTextBytes,
		},
		"no cost": {
			"LogFlopsPerBatch", count("1"), &prov4mlv1.LogFlopsPerBatchRequest{},
			"none of operators, signature and count is set", refusedValue,
		},
		"operators": {
			"LogFlopsPerBatch", batch(&prov4mlv1.OperatorList{Operators: operators(20_000)}), batch(&prov4mlv1.OperatorList{Operators: operators(20_001)}),
			"operators.operators has 20001 records, the limit is 20000", refusedOperators,
		},
		"operator name": {
			"LogFlopsPerBatch",
			batch(&prov4mlv1.OperatorList{Operators: []*prov4mlv1.Operator{{Name: text(1024)}}}),
			batch(&prov4mlv1.OperatorList{Operators: []*prov4mlv1.Operator{{}, {Name: text(1025)}}}),
			"operators.operators[1].name has 1025 bytes, the limit is 1024", refusedTextBytes,
		},
		"dimensions": {
			"LogFlopsPerBatch", shape(make([]int64, 32)...), shape(make([]int64, 33)...),
			"operators.operators[0].inputs[1].dims has 33 dimensions, the limit is 32", refusedDims,
		},
		"dimension": {
			"LogFlopsPerBatch", shape(0, 1<<62), shape(3, -1),
			"operators.operators[0].inputs[1].dims holds -1", refusedValue,
		},
		"count": {
			"LogFlopsPerBatch", count("123456789012345678901234567890"), count("-1"),
			`count.backward is "-1"`, refusedValue,
		},
		"count no integer": {
			"LogFlopsPerBatch", count(""), count("1e9"),
			`count.backward is "1e9"`, refusedValue,
		},
		"epoch label": {
			"LogFlopsPerEpoch", &prov4mlv1.LogFlopsPerEpochRequest{Label: text(1024)}, &prov4mlv1.LogFlopsPerEpochRequest{Label: text(1025)},
			"label has 1025 bytes, the limit is 1024", refusedTextBytes,
		},
		"epoch operators": {
			"LogFlopsPerEpoch",
			&prov4mlv1.LogFlopsPerEpochRequest{Operators: []*prov4mlv1.OperatorList{{Operators: operators(10_000)}, {Operators: operators(10_000)}}},
			&prov4mlv1.LogFlopsPerEpochRequest{Operators: []*prov4mlv1.OperatorList{{Operators: operators(10_000)}, {Operators: operators(10_001)}}},
			"operators has 20001 records in its lists, the limit is 20000", refusedOperators,
		},
		"epoch signature": {
			"LogFlopsPerEpoch",
			&prov4mlv1.LogFlopsPerEpochRequest{Batches: []*prov4mlv1.BatchCount{{Signature: text(64)}}},
			&prov4mlv1.LogFlopsPerEpochRequest{Batches: []*prov4mlv1.BatchCount{{Signature: text(65)}}},
			"batches[0].signature has 65 bytes, the limit is 64", refusedTextBytes,
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := start(t, &fakeTracker{})
			send := func(m proto.Message) answer {
				data, err := proto.Marshal(m)
				if err != nil {
					t.Fatal(err)
				}
				binary := r.do(r.httpClient(false), "/prov4ml.v1.AgentService/"+tt.method, "application/proto", data)
				data, err = protojson.Marshal(m)
				if err != nil {
					t.Fatal(err)
				}
				if len(data) <= MaxMessageBytes {
					// What passes as JSON passes as bytes.
					if a := r.post(tt.method, string(data)); a.status != binary.status {
						t.Errorf("JSON %d %s, binary %d %s", a.status, a.raw, binary.status, binary.raw)
					}
				}
				return binary
			}
			// A FLOPs call within this limit may lack what another rule asks for: operands, a known signature.
			mayLack := strings.HasPrefix(tt.method, "LogFlops")
			a := send(tt.at)
			if a.status != http.StatusOK && !mayLack || strings.Contains(a.text("message"), "the limit is") {
				t.Errorf("at the limit: %d %s", a.status, a.raw)
			}
			if n := r.counter(tt.counter); n != 0 && !mayLack {
				t.Errorf("at the limit %s = %d", tt.counter, n)
			}
			before := len(r.tracker.taken()) + len(r.tracker.descs)
			if a := send(tt.over); a.status != http.StatusBadRequest || a.text("code") != "invalid_argument" || !strings.Contains(a.text("message"), tt.sentence) {
				t.Errorf("over the limit: %d %s", a.status, a.raw)
			}
			if r.counter(tt.counter) == 0 {
				t.Error("not counted")
			}
			if after := len(r.tracker.taken()) + len(r.tracker.descs); after != before {
				t.Error("it was taken")
			}
		})
	}
}

// More objects than can mean anything are refused before they are decoded, in both encodings.
func TestObjectLimit(t *testing.T) {
	const path = "/prov4ml.v1.AgentService/LogFlopsPerBatch"
	list := func(n int) (json, binary []byte) {
		json = []byte(`{"operators":{"operators":[` + strings.Repeat(`{},`, n-1) + `{}]}}`)
		binary, err := proto.Marshal(&prov4mlv1.LogFlopsPerBatchRequest{Cost: &prov4mlv1.LogFlopsPerBatchRequest_Operators{
			Operators: &prov4mlv1.OperatorList{Operators: make([]*prov4mlv1.Operator, n)},
		}})
		if err != nil {
			t.Fatal(err)
		}
		return json, binary
	}
	// The list is an object too, and in JSON so is the message.
	for n, sentence := range map[int]string{
		MaxObjects - 2: "the limit is 20000",
		MaxObjects + 1: "objects, the limit is 65536: split it",
		300_000:        "objects, the limit is 65536: split it",
	} {
		r := start(t, &fakeTracker{})
		json, binary := list(n)
		for contentType, body := range map[string][]byte{"application/json": json, "application/json; charset=utf-8": json, "application/proto": binary} {
			if a := r.do(r.httpClient(false), path, contentType, body); !strings.Contains(a.text("message"), sentence) {
				t.Errorf("%d as %s: %d %s", n, contentType, a.status, a.raw)
			}
		}
		if want := uint64(3); n > MaxObjects && r.counter(refusedObjects) != want {
			t.Errorf("%d counted", r.counter(refusedObjects))
		}
	}
}

// A string of the binary form that is no UTF-8 is named.
func TestNotUTF8(t *testing.T) {
	for body, field := range map[string]string{
		"\x0a\x01\xff":                  "context",
		"\x10\x03\x42\x02a\xff":         "traceparent",
		"\x0a\x01a\x42\x03\xed\xa0\x80": "traceparent", // a surrogate
	} {
		r := start(t, &fakeTracker{})
		a := r.do(r.httpClient(false), logSystemMetrics, "application/proto", []byte(body))
		if a.status != http.StatusBadRequest || !strings.Contains(a.text("message"), field+" is no UTF-8") {
			t.Errorf("%q: %d %s", body, a.status, a.raw)
		}
	}
	r := start(t, &fakeTracker{})
	inner := []byte("\x0a\x03\x0a\x01\xff")
	message, end := rawStream(t, r, "application/connect+proto", envelope(0, inner))
	var answer prov4mlv1.LogStreamResponse
	if err := proto.Unmarshal(message, &answer); err != nil || !strings.Contains(answer.GetFirstRefusal(), "log_system_metrics.context is no UTF-8") {
		t.Errorf("%v, %s, %v", &answer, end, err)
	}
}
