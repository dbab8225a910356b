package server

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"connectrpc.com/connect"

	prov4mlv1 "github.com/prov4ml/agent/api/prov4ml/v1"
)

// What one caller may ask for. The socket may be open to every user of the node, so nothing that a caller sends may cost
// more than this.
const (
	// MaxMessageBytes bounds one message, before and after decompression.
	MaxMessageBytes = 1 << 20
	// MaxObjects bounds the messages inside one message, before they are decoded: a MiB of empty ones would become some 80 MiB
	// of memory. 20,000 operators with their tensors do not fit into MaxMessageBytes before they come near it.
	MaxObjects = 1 << 16
	// MaxTextBytes bounds a label, a context, a name, and the keys and values of attributes.
	MaxTextBytes = 1 << 10
	// MaxAttributes bounds the run attributes of one message.
	MaxAttributes = 128
	// MaxVariables bounds the launcher's environment variables of one message, and MaxVariableBytes one value: a node list of
	// SLURM is longer than a text.
	MaxVariables     = 1024
	MaxVariableBytes = 32 << 10
	// MaxLoggedMetrics bounds the metrics of one message.
	MaxLoggedMetrics = 10_000
	// MaxOperators bounds the operator records of one message, all its lists together.
	MaxOperators = 20_000
	// MaxDims bounds the dimensions of a tensor.
	MaxDims = 32
	// MaxSignatureBytes bounds the name of an input signature.
	MaxSignatureBytes = 64
	// MaxConnections bounds the open connections; the longest idle is closed for a new one.
	MaxConnections = 4096
	// MaxCallsPerSecond bounds the calls of one connection, unary and streamed together.
	MaxCallsPerSecond = 50_000
)

// A refusal is an answer that is no success: the caller's fault or a limit. Its kind is the name of the counter.
type refusal struct {
	kind     string
	code     connect.Code
	sentence string
}

func (r *refusal) Error() string { return r.sentence }

func refusef(kind string, code connect.Code, format string, args ...any) *refusal {
	return &refusal{kind: kind, code: code, sentence: fmt.Sprintf(format, args...)}
}

// Each check returns nil or a *refusal, as an error.

func checkText(field, text string, limit int) error {
	if len(text) <= limit {
		return nil
	}
	return refusef(refusedTextBytes, connect.CodeInvalidArgument, "%s has %d bytes, the limit is %d: shorten it", field, len(text), limit)
}

func checkCount(field string, n, limit int) error {
	if n <= limit {
		return nil
	}
	return refusef(refusedCount, connect.CodeInvalidArgument, "%s has %d entries, the limit is %d: send fewer", field, n, limit)
}

func checkMap(field string, m map[string]string, entries, valueBytes int) error {
	if err := checkCount(field, len(m), entries); err != nil {
		return err
	}
	for k, v := range m {
		if err := checkKey(field, k); err != nil {
			return err
		}
		if len(v) > valueBytes {
			return refusef(refusedTextBytes, connect.CodeInvalidArgument, "%s[%q] has %d bytes, the limit is %d: shorten it", field, k, len(v), valueBytes)
		}
	}
	return nil
}

func checkKey(field, key string) error {
	if len(key) <= MaxTextBytes {
		return nil
	}
	return refusef(refusedTextBytes, connect.CodeInvalidArgument, "%s has a key of %d bytes, the limit is %d: shorten it", field, len(key), MaxTextBytes)
}

// checkMillis keeps a time in what the nanoseconds of 64 bits can say, the years 1678 to 2262.
func checkMillis(field string, millis int64) error {
	const most = math.MaxInt64 / int64(time.Millisecond)
	if millis >= -most && millis <= most {
		return nil
	}
	return refusef(refusedValue, connect.CodeInvalidArgument, "%s is %d: it must be milliseconds since 1970, and that is no year of this time", field, millis)
}

// inField says where a refused field is: each sentence of a check begins with the field.
func inField(err error, format string, args ...any) error {
	var r *refusal
	if !errors.As(err, &r) {
		return err
	}
	return &refusal{kind: r.kind, code: r.code, sentence: fmt.Sprintf(format, args...) + "." + r.sentence}
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func checkDescription(m *prov4mlv1.DescribeRunRequest) error {
	if err := firstError(
		checkText("name", m.GetName(), MaxTextBytes),
		checkText("script", m.GetScript(), MaxTextBytes),
		checkText("client_version", m.GetClientVersion(), MaxTextBytes),
		checkText("traceparent", m.GetTraceparent(), MaxTextBytes),
		checkMap("environment", m.GetEnvironment(), MaxVariables, MaxVariableBytes),
		checkMap("attributes", m.GetAttributes(), MaxAttributes, MaxTextBytes),
		checkCount("metrics", len(m.GetMetrics()), MaxLoggedMetrics),
	); err != nil {
		return err
	}
	for i, metric := range m.GetMetrics() {
		if err := firstError(
			checkText("key", metric.GetKey(), MaxTextBytes),
			checkText("context", metric.GetContext(), MaxTextBytes),
			checkMillis("timestamp", metric.GetTimestamp()),
		); err != nil {
			return inField(err, "metrics[%d]", i)
		}
	}
	return nil
}

func checkDecimal(field, number string) error {
	if err := checkText(field, number, MaxTextBytes); err != nil {
		return err
	}
	if strings.Trim(number, "0123456789") != "" {
		return refusef(refusedValue, connect.CodeInvalidArgument, "%s is %q: it must be a decimal integer, at least 0, or empty when it is not known", field, number)
	}
	return nil
}

func checkFlopsCount(c *prov4mlv1.FlopsCount) error {
	err := firstError(
		checkDecimal("forward", c.GetForward()),
		checkDecimal("backward", c.GetBackward()),
		checkText("method", c.GetMethod(), MaxTextBytes),
		checkText("dtype", c.GetDtype(), MaxTextBytes),
		checkText("missing_reason", c.GetMissingReason(), MaxTextBytes),
	)
	return inField(err, "count")
}

func checkTensors(field string, tensors []*prov4mlv1.Tensor) error {
	for i, t := range tensors {
		if err := checkTensor(t); err != nil {
			return inField(err, "%s[%d]", field, i)
		}
	}
	return nil
}

func checkTensor(t *prov4mlv1.Tensor) error {
	if n := len(t.GetDims()); n > MaxDims {
		return refusef(refusedDims, connect.CodeInvalidArgument, "dims has %d dimensions, the limit is %d", n, MaxDims)
	}
	for _, d := range t.GetDims() {
		if d < 0 {
			return refusef(refusedValue, connect.CodeInvalidArgument, "dims holds %d: a dimension is at least 0", d)
		}
	}
	return checkText("dtype", t.GetDtype(), MaxTextBytes)
}

func checkOperator(op *prov4mlv1.Operator) error {
	if err := firstError(
		checkText("name", op.GetName(), MaxTextBytes),
		checkText("module", op.GetModule(), MaxTextBytes),
		checkTensors("inputs", op.GetInputs()),
		checkTensors("outputs", op.GetOutputs()),
		checkMap("strings", op.GetStrings(), MaxAttributes, MaxTextBytes),
		checkCount("scalars", len(op.GetScalars()), MaxAttributes),
	); err != nil {
		return err
	}
	for key := range op.GetScalars() {
		if err := checkKey("scalars", key); err != nil {
			return err
		}
	}
	return nil
}

func checkOperators(list *prov4mlv1.OperatorList) error {
	if err := firstError(
		checkText("signature", list.GetSignature(), MaxSignatureBytes),
		checkText("autocast_dtype", list.GetAutocastDtype(), MaxTextBytes),
		checkText("method", list.GetMethod(), MaxTextBytes),
		checkText("missing_reason", list.GetMissingReason(), MaxTextBytes),
		checkCount("notes", len(list.GetNotes()), MaxAttributes),
	); err != nil {
		return err
	}
	for i, note := range list.GetNotes() {
		if len(note) > MaxTextBytes {
			return checkText(fmt.Sprintf("notes[%d]", i), note, MaxTextBytes)
		}
	}
	if n := len(list.GetOperators()); n > MaxOperators {
		return refusef(refusedOperators, connect.CodeInvalidArgument, "operators has %d records, the limit is %d: merge identical operators by their count", n, MaxOperators)
	}
	for i, op := range list.GetOperators() {
		if err := checkOperator(op); err != nil {
			return inField(err, "operators[%d]", i)
		}
	}
	return nil
}

func checkBatch(m *prov4mlv1.LogFlopsPerBatchRequest) error {
	if err := checkText("label", m.GetLabel(), MaxTextBytes); err != nil {
		return err
	}
	switch cost := m.GetCost().(type) {
	case *prov4mlv1.LogFlopsPerBatchRequest_Operators:
		return inField(checkOperators(cost.Operators), "operators")
	case *prov4mlv1.LogFlopsPerBatchRequest_Signature:
		return checkText("signature", cost.Signature, MaxSignatureBytes)
	case *prov4mlv1.LogFlopsPerBatchRequest_Count:
		return checkFlopsCount(cost.Count)
	}
	return refusef(refusedValue, connect.CodeInvalidArgument, "none of operators, signature and count is set: exactly one says what the batch costs")
}

func checkEpoch(m *prov4mlv1.LogFlopsPerEpochRequest) error {
	if err := firstError(
		checkText("label", m.GetLabel(), MaxTextBytes),
		checkText("incomplete_reason", m.GetIncompleteReason(), MaxTextBytes),
		checkFlopsCount(m.GetCount()),
		checkCount("batches", len(m.GetBatches()), MaxOperators),
	); err != nil {
		return err
	}
	total := 0
	for i, list := range m.GetOperators() {
		if err := checkOperators(list); err != nil {
			return inField(err, "operators[%d]", i)
		}
		total += len(list.GetOperators())
	}
	if total > MaxOperators {
		return refusef(refusedOperators, connect.CodeInvalidArgument, "operators has %d records in its lists, the limit is %d: send the signatures in several calls", total, MaxOperators)
	}
	for i, b := range m.GetBatches() {
		if len(b.GetSignature()) > MaxSignatureBytes {
			return checkText(fmt.Sprintf("batches[%d].signature", i), b.GetSignature(), MaxSignatureBytes)
		}
	}
	return nil
}
