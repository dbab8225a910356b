package server

import (
	"bytes"
	"errors"
	"io"
	"net"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	prov4mlv1 "github.com/prov4ml/agent/api/prov4ml/v1"
)

// untrusted are the messages that callers send, with the checks that follow decoding.
func untrusted() map[string]struct {
	message proto.Message
	check   func(proto.Message) error
} {
	none := func(proto.Message) error { return nil }
	return map[string]struct {
		message proto.Message
		check   func(proto.Message) error
	}{
		"LogSystemMetricsRequest": {new(prov4mlv1.LogSystemMetricsRequest), none},
		"LogFlopsPerBatchRequest": {new(prov4mlv1.LogFlopsPerBatchRequest), func(m proto.Message) error { return checkBatch(m.(*prov4mlv1.LogFlopsPerBatchRequest)) }},
		"LogFlopsPerEpochRequest": {new(prov4mlv1.LogFlopsPerEpochRequest), func(m proto.Message) error { return checkEpoch(m.(*prov4mlv1.LogFlopsPerEpochRequest)) }},
		"DescribeRunRequest":      {new(prov4mlv1.DescribeRunRequest), func(m proto.Message) error { return checkDescription(m.(*prov4mlv1.DescribeRunRequest)) }},
		"LogStreamRequest":        {new(prov4mlv1.LogStreamRequest), none},
	}
}

// decoded proves what holds for every message that the decoder takes: it survives both encodings, and the checks answer.
func decoded(t *testing.T, name string, m proto.Message, check func(proto.Message) error) {
	binary, err := proto.Marshal(m)
	if err != nil {
		t.Fatalf("%s does not encode: %v", name, err)
	}
	again := m.ProtoReflect().New().Interface()
	if r := decodeProto(binary, again); r != nil {
		t.Fatalf("%s does not decode again: %v", name, r)
	}
	text, err := protojson.Marshal(m)
	if err != nil {
		t.Fatalf("%s has no JSON: %v", name, err)
	}
	fromText := m.ProtoReflect().New().Interface()
	if r := decodeJSON(text, fromText); r != nil {
		t.Fatalf("%s does not decode again from %s: %v", name, text, r)
	}
	if err := check(m); err != nil {
		refused(t, err)
	}
}

// refused proves what holds for every refusal: a kind, and a sentence that is short text.
func refused(t *testing.T, err error) {
	var r *refusal
	if !errors.As(err, &r) || r.kind == "" || r.sentence == "" {
		t.Fatalf("a refusal without kind or sentence: %#v", err)
	}
	if len(r.sentence) > 2*MaxTextBytes {
		t.Fatalf("a sentence of %d bytes", len(r.sentence))
	}
	if strings.ToValidUTF8(r.sentence, "?") != r.sentence {
		t.Fatalf("a sentence that is no text: %q", r.sentence)
	}
}

func FuzzJSON(f *testing.F) {
	for _, seed := range []string{
		``, `{}`, `[]`, `{"context":"TRAINING","step":"3","subject":"PARENT"}`, `{"context":5}`, `{"step":1.5}`, `{"context":"\ud800"}`,
		`{"label":"a","operators":{"signature":"s","operators":[{"name":"aten.mm","inputs":[{"dims":["1",2]}],"scalars":{"groups":"1"}}]}}`,
		`{"operators":[{"operators":[{}]}],"batches":[{"batches":3}],"count":{"forward":"12"}}`,
		`{"attributes":{"a":"b"},"metrics":[{"key":"loss","value":"NaN"}],"environment":{"RANK":"0"},"end":true}`,
		`{"logSystemMetrics":{"seq":"7","monotonicNanos":"1"}}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		for name, m := range untrusted() {
			if r := decodeJSON(data, m.message); r != nil {
				refused(t, r)
				continue
			}
			decoded(t, name, m.message, m.check)
		}
	})
}

func FuzzProto(f *testing.F) {
	phase, step := "training", int64(-1)
	for _, m := range []proto.Message{
		&prov4mlv1.LogSystemMetricsRequest{Context: &phase, Step: &step, Seq: 3, Subject: prov4mlv1.Subject_PARENT},
		&prov4mlv1.LogFlopsPerBatchRequest{Label: "a", Cost: &prov4mlv1.LogFlopsPerBatchRequest_Operators{Operators: &prov4mlv1.OperatorList{
			Operators: []*prov4mlv1.Operator{{Name: "aten.mm", Inputs: []*prov4mlv1.Tensor{{Dims: []int64{1, 2}, Dtype: "float32"}}, Scalars: map[string]int64{"groups": 1}}},
		}}},
		&prov4mlv1.DescribeRunRequest{Attributes: map[string]string{"a": "b"}, Metrics: []*prov4mlv1.LoggedMetric{{Key: "k"}}},
		streamedCall(3, 4),
	} {
		data, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte("\x0a\x01\xff"))
	f.Fuzz(func(t *testing.T, data []byte) {
		for name, m := range untrusted() {
			if r := decodeProto(data, m.message); r != nil {
				refused(t, r)
				continue
			}
			// An unknown field of the binary form is kept by protobuf and has no JSON.
			m.message.ProtoReflect().SetUnknown(nil)
			decoded(t, name, m.message, m.check)
		}
	})
}

// The envelopes that come out are those that went in, without the ones over the limit, whatever the reads are cut into.
func FuzzEnvelopes(f *testing.F) {
	f.Add([]byte{}, uint8(1))
	f.Add(envelope(0, []byte(`{}`)), uint8(1))
	f.Add(append(envelope(0, []byte("abc")), envelope(2, nil)...), uint8(3))
	f.Add([]byte{0, 0xff, 0xff, 0xff, 0xff, 1, 2, 3}, uint8(9))
	f.Add([]byte{1, 0, 0, 0}, uint8(4))
	f.Fuzz(func(t *testing.T, data []byte, cut uint8) {
		s := &Server{largeReads: make(chan struct{}, 1)}
		body := &envelopes{ReadCloser: io.NopCloser(bytes.NewReader(data)), slot: slot{server: s}}
		defer body.release()
		var got []byte
		refusals := 0
		buf := make([]byte, int(cut)+1)
		for range 10*len(data) + 10 {
			n, err := body.Read(buf)
			got = append(got, buf[:n]...)
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				want, over := withoutLarge(data)
				if !bytes.Equal(got, want) || refusals != over {
					t.Fatalf("%x became %x with %d refusals, not %x with %d", data, got, refusals, want, over)
				}
				return
			}
			if err != nil {
				refused(t, err)
				refusals++
			}
		}
		t.Fatalf("%x does not end", data)
	})
}

// withoutLarge is the plain way to say what envelopes does.
func withoutLarge(data []byte) (kept []byte, refusals int) {
	for len(data) >= 5 {
		size := int(data[1])<<24 | int(data[2])<<16 | int(data[3])<<8 | int(data[4])
		end := min(5+size, len(data))
		switch {
		case size <= MaxMessageBytes:
			kept = append(kept, data[:end]...)
		case end == 5+size:
			refusals++
		}
		data = data[end:]
	}
	return kept, refusals
}

// Whatever bytes come, the agent answers or closes, and goes on.
func FuzzSocket(f *testing.F) {
	head := "POST " + logSystemMetrics + " HTTP/1.1\r\nHost: a\r\n"
	for _, seed := range []string{
		"", "\x16\x03\x01", "GET / HTTP/1.0\r\n\r\n", head + "Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
		head + "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
		"POST /prov4ml.v1.AgentService/LogStream HTTP/1.1\r\nHost: a\r\nContent-Type: application/connect+json\r\nContent-Length: 7\r\n\r\n\x00\x00\x00\x00\x02{}",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
		head + "Content-Type: application/grpc\r\nContent-Length: 5\r\n\r\n\x00\x00\x00\x00\x00",
		head + "Content-Encoding: gzip\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n\x1f\x8b",
	} {
		f.Add([]byte(seed))
	}
	r := start(f, &fakeTracker{forget: true})
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := net.Dial("unix", r.path)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, _ = c.Write(data)
		_ = c.(*net.UnixConn).CloseWrite()
		_, _ = io.Copy(io.Discard, c)
		if r.counter(countPanics) != 0 {
			t.Fatal("it panicked")
		}
	})
}
