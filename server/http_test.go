package server

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"connectrpc.com/connect"
	"connectrpc.com/grpcreflect"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	prov4mlv1 "github.com/prov4ml/agent/api/prov4ml/v1"
	"github.com/prov4ml/agent/api/prov4ml/v1/prov4mlv1connect"
	"github.com/prov4ml/agent/runs"
)

const logSystemMetrics = "/prov4ml.v1.AgentService/LogSystemMetrics"

// Every protocol gives the same record and the same refusal.
func TestProtocols(t *testing.T) {
	for name, options := range streamProtocols() {
		for _, h2 := range []bool{false, true} {
			if !h2 && strings.HasPrefix(name, "grpc") && name != "grpc-web" {
				continue // gRPC is HTTP/2 only.
			}
			t.Run(fmt.Sprintf("%s h2=%v", name, h2), func(t *testing.T) {
				r := start(t, &fakeTracker{})
				client := r.client(h2, options...)
				phase, step := "Validation", int64(-7)
				res, err := client.LogSystemMetrics(t.Context(), connect.NewRequest(&prov4mlv1.LogSystemMetricsRequest{Context: &phase, Step: &step}))
				if err != nil {
					t.Fatal(err)
				}
				if res.Msg.GetRecord() != 1 || len(res.Msg.GetTraceId()) != 32 || len(res.Msg.GetSpanId()) != 16 {
					t.Errorf("answer %v", res.Msg)
				}
				if got := r.tracker.taken()[0]; *got.call.Context != "Validation" || *got.call.Step != -7 || got.caller.PID != os.Getpid() {
					t.Errorf("took %+v", got)
				}

				long := strings.Repeat("x", MaxTextBytes+1)
				_, err = client.LogSystemMetrics(t.Context(), connect.NewRequest(&prov4mlv1.LogSystemMetricsRequest{Context: &long}))
				if connect.CodeOf(err) != connect.CodeInvalidArgument || !strings.Contains(err.Error(), "context has 1025 bytes, the limit is 1024") {
					t.Errorf("refusal %v", err)
				}

				info, err := client.DescribeRun(t.Context(), connect.NewRequest(&prov4mlv1.DescribeRunRequest{Name: "n", Attributes: map[string]string{"lr": "0.1"}}))
				if err != nil || info.Msg.GetRunId() != "run-1" || info.Msg.GetAgentVersion() != "test" {
					t.Errorf("described %v, %v", info, err)
				}

				st, err := client.GetStatus(t.Context(), connect.NewRequest(&prov4mlv1.GetStatusRequest{}))
				if err != nil {
					t.Fatal(err)
				}
				if st.Msg.GetCounters()[refusedTextBytes] != 1 || st.Msg.GetCounters()[countSystemMetrics] != 1 {
					t.Errorf("status %v", st.Msg)
				}
			})
		}
	}
}

func TestGRPC(t *testing.T) {
	r := start(t, &fakeTracker{})
	cc, err := grpc.NewClient("unix:"+r.path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()

	var res prov4mlv1.LogResponse
	if err := cc.Invoke(t.Context(), logSystemMetrics, &prov4mlv1.LogSystemMetricsRequest{}, &res); err != nil {
		t.Fatal(err)
	}
	if res.GetRecord() != 1 {
		t.Errorf("answer %v", &res)
	}

	err = cc.Invoke(t.Context(), "/prov4ml.v1.AgentService/LogFlopsPerBatch", &prov4mlv1.LogFlopsPerBatchRequest{
		Cost: &prov4mlv1.LogFlopsPerBatchRequest_Count{Count: &prov4mlv1.FlopsCount{Forward: "1"}},
	}, &res)
	if err != nil || res.GetRecord() != 2 {
		t.Errorf("FLOPs: %v, %v", &res, err)
	}
	err = cc.Invoke(t.Context(), "/prov4ml.v1.AgentService/NoSuch", &prov4mlv1.GetStatusRequest{}, &res)
	if status.Code(err) != codes.Unimplemented {
		t.Errorf("no such method: %v", err)
	}

	stream, err := cc.NewStream(t.Context(), &grpc.StreamDesc{ClientStreams: true}, "/prov4ml.v1.AgentService/LogStream")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 10 {
		if err := stream.SendMsg(streamedCall(int64(i), 0)); err != nil {
			t.Fatal(err)
		}
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	var end prov4mlv1.LogStreamResponse
	if err := stream.RecvMsg(&end); err != nil || end.GetAccepted() != 10 {
		t.Errorf("stream: %v, %v", &end, err)
	}

	health := healthpb.NewHealthClient(cc)
	for service, want := range map[string]codes.Code{"": codes.OK, prov4mlv1connect.AgentServiceName: codes.OK, "other": codes.NotFound} {
		got, err := health.Check(t.Context(), &healthpb.HealthCheckRequest{Service: service})
		if status.Code(err) != want || err == nil && got.GetStatus() != healthpb.HealthCheckResponse_SERVING {
			t.Errorf("health of %q: %v, %v", service, got, err)
		}
	}

	reflect := grpcreflect.NewClient(r.httpClient(true), "http://agent", connect.WithGRPC()).NewStream(t.Context())
	defer func() { _, _ = reflect.Close() }()
	services, err := reflect.ListServices()
	if err != nil {
		t.Fatal(err)
	}
	if len(services) != 2 {
		t.Errorf("services %v", services)
	}
	files, err := reflect.FileContainingSymbol(prov4mlv1connect.AgentServiceName)
	if err != nil || len(files) == 0 || files[len(files)-1].GetPackage() != "prov4ml.v1" && files[0].GetPackage() != "prov4ml.v1" {
		t.Errorf("files %v, %v", files, err)
	}
}

// What protobuf's JSON mapping allows, and what it does not. The body reaches the decoder by both ways, which must agree.
func TestJSONInput(t *testing.T) {
	for name, tt := range map[string]struct {
		body string
		// sentence of the refusal; empty = it is taken.
		sentence string
		counter  string
	}{
		"numbers":             {`{"step":3,"seq":4}`, "", ""},
		"numbers as strings":  {`{"step":"3","seq":"4"}`, "", ""},
		"number with zeros":   {`{"step":3.0}`, "", ""},
		"exponent":            {`{"step":1e3}`, "", ""},
		"largest step":        {`{"step":"9223372036854775807"}`, "", ""},
		"least step":          {`{"step":-9223372036854775808}`, "", ""},
		"enum by name":        {`{"subject":"CALLER"}`, "", ""},
		"enum by number":      {`{"subject":1}`, "", ""},
		"null is absent":      {`{"context":null,"step":null}`, "", ""},
		"names of the proto":  {`{"dropped_calls":0,"monotonic_nanos":"0"}`, "", ""},
		"empty":               {`{}`, "", ""},
		"spaces":              {" {\n}\t", "", ""},
		"NUL in a string":     {`{"context":"a\u0000b"}`, "", ""},
		"surrogate pair":      {`{"context":"\ud83d\ude00"}`, "", ""},
		"context no string":   {`{"context":5}`, "string field context: 5", refusedDecode},
		"context a list":      {`{"context":["a"]}`, "string field context", refusedDecode},
		"context an object":   {`{"context":{}}`, "string field context", refusedDecode},
		"step no integer":     {`{"step":1.5}`, "int64 field step: 1.5", refusedDecode},
		"step a word":         {`{"step":"three"}`, "int64 field step", refusedDecode},
		"step a bool":         {`{"step":true}`, "int64 field step: true", refusedDecode},
		"step over 64 bits":   {`{"step":9223372036854775808}`, "int64 field step", refusedDecode},
		"step with a space":   {`{"step":" 3"}`, "int64 field step", refusedDecode},
		"seq negative":        {`{"seq":-1}`, "uint64 field seq: -1", refusedDecode},
		"enum by no name":     {`{"subject":"ME"}`, "enum field subject", refusedDecode},
		"enum by no number":   {`{"subject":7}`, "subject is 7", refusedValue},
		"unknown field":       {`{"contxt":"a"}`, `unknown field "contxt"`, refusedDecode},
		"pid is no field":     {`{"pid":1}`, `unknown field "pid"`, refusedDecode},
		"field twice":         {`{"context":"a","context":"b"}`, `duplicate field "context"`, refusedDecode},
		"list":                {`[]`, "unexpected token [", refusedDecode},
		"string":              {`"x"`, "unexpected token", refusedDecode},
		"nothing":             {``, "the body is empty", refusedDecode},
		"cut":                 {`{"context":"a`, "unexpected EOF", refusedDecode},
		"more behind":         {`{} {}`, "unexpected token", refusedDecode},
		"no JSON":             {`context=a`, "invalid value context", refusedDecode},
		"no UTF-8":            {"{\"context\":\"\xff\"}", "invalid UTF-8", refusedDecode},
		"half a pair":         {`{"context":"\ud800"}`, "half of a surrogate pair", refusedDecode},
		"context too long":    {`{"context":"` + strings.Repeat("é", 513) + `"}`, "context has 1026 bytes, the limit is 1024", refusedTextBytes},
		"context as it may":   {`{"context":"` + strings.Repeat("é", 512) + `"}`, "", ""},
		"traceparent no such": {`{"traceparent":"x"}`, "", ""},
		"deep":                {`{"context":` + strings.Repeat("[", 100_000) + `}`, "string field context", refusedDecode},
	} {
		t.Run(name, func(t *testing.T) {
			r := start(t, &fakeTracker{})
			short := r.post("LogSystemMetrics", tt.body)
			long := r.do(r.httpClient(false), logSystemMetrics, "application/json; charset=utf-8", []byte(tt.body))
			for way, a := range map[string]answer{"short": short, "connect": long} {
				if tt.sentence == "" {
					if a.status != http.StatusOK {
						t.Errorf("%s: %d %s", way, a.status, a.raw)
					}
					continue
				}
				if a.status != http.StatusBadRequest || a.text("code") != "invalid_argument" || !strings.Contains(a.text("message"), tt.sentence) {
					t.Errorf("%s: %d %s", way, a.status, a.raw)
				}
				if len(a.raw) > 1000 {
					t.Errorf("%s: the refusal has %d bytes", way, len(a.raw))
				}
			}
			if tt.sentence != "" {
				if n := r.counter(tt.counter); n != 2 {
					t.Errorf("%s = %d", tt.counter, n)
				}
				if len(r.tracker.taken()) != 0 {
					t.Error("it was taken")
				}
			} else if n := len(r.tracker.taken()); n != 2 {
				t.Errorf("%d were taken", n)
			}
		})
	}
}

// What the message says reaches the tracker.
func TestCallFields(t *testing.T) {
	const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	r := start(t, &fakeTracker{})
	for _, body := range []string{
		`{}`,
		`{"context":"TESTING","step":0,"timestamp":"1700000000000","monotonicNanos":"1","traceparent":"` + parent + `","droppedCalls":"3"}`,
		`{"context":"my phase","timestamp":0,"traceparent":"00-zz"}`,
		`{"context":""}`,
	} {
		if a := r.post("LogSystemMetrics", body); a.status != http.StatusOK {
			t.Fatalf("%s: %s", body, a.raw)
		}
	}
	calls := r.tracker.taken()
	if c := calls[0].call; c.Context != nil || c.Step != nil || c.Timestamp != nil || c.Lag != 0 || c.Traceparent != "" || c.DroppedCalls != 0 {
		t.Errorf("nothing said: %+v", c)
	}
	// Monotonic time 1 ns is when the node booted.
	if c := calls[1].call; *c.Context != "TESTING" || *c.Step != 0 || *c.Timestamp != 1700000000000 || c.Lag <= 0 || c.Traceparent != parent || c.DroppedCalls != 3 {
		t.Errorf("everything said: %+v", c)
	}
	if c := calls[2].call; *c.Context != "my phase" || c.Timestamp != nil || c.Traceparent != "" {
		t.Errorf("a phase of one's own: %+v", c)
	}
	if c := calls[3].call; c.Context == nil || *c.Context != "" {
		t.Errorf("an empty context is a context: %+v", c)
	}
	if r.counter(countDropped) != 3 || r.counter(countBadParents) != 1 {
		t.Errorf("counters %v", r.Status().GetCounters())
	}
}

func TestLag(t *testing.T) {
	for _, future := range []uint64{0, 1 << 62, ^uint64(0)} {
		if got := lag(future); got != 0 {
			t.Errorf("lag(%d) = %v", future, got)
		}
	}
}

func TestTraceparent(t *testing.T) {
	const good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	s := &Server{}
	for header, want := range map[string]bool{
		good:                           true,
		"cc" + good[2:] + "-what-else": true,
		"":                             false,
		good[:54]:                      false,
		good + "x":                     false,
		"ff" + good[2:]:                false,
		strings.ToUpper(good):          false,
		"00-" + strings.Repeat("0", 32) + good[35:]:     false,
		good[:36] + strings.Repeat("0", 16) + good[52:]: false,
		strings.Replace(good, "-b7", "_b7", 1):          false,
		strings.Repeat("é", 28):                         false,
	} {
		if got := s.traceparent(header); (got != "") != want || want && got != header {
			t.Errorf("%q: %q", header, got)
		}
	}
}

func TestDescribe(t *testing.T) {
	r := start(t, &fakeTracker{})
	a := r.post("DescribeRun", `{"name":"n","environment":{"RANK":"1"},"script":"train.py","attributes":{"lr":"0.1"},
		"metrics":[{"key":"loss","value":"NaN","context":"TRAINING","step":"2","timestamp":"1700000000000"},{"key":"acc","value":0.5}],"end":true,"clientVersion":"0.1"}`)
	if a.status != http.StatusOK || a.text("runId") != "run-1" || a.text("agentVersion") != "test" {
		t.Fatalf("%d %s", a.status, a.raw)
	}
	d := r.tracker.descs[0]
	if d.Name != "n" || d.Environment["RANK"] != "1" || d.Script != "train.py" || d.Attributes["lr"] != "0.1" || !d.End || len(d.Metrics) != 2 {
		t.Fatalf("%+v", d)
	}
	if m := d.Metrics[0]; m.GetKey() != "loss" || m.GetValue() == m.GetValue() || m.GetContext() != "TRAINING" || m.GetStep() != 2 ||
		m.GetTimeUnixNanos() != 1700000000000*1e6 {
		t.Errorf("%v", m)
	}
	if m := d.Metrics[1]; m.Context != nil || m.Step != nil || m.GetTimeUnixNanos() == 0 {
		t.Errorf("%v", m)
	}
}

// Requests that are wrong before any message is read.
func TestBadRequests(t *testing.T) {
	for name, tt := range map[string]struct {
		method, path, contentType string
		status                    int
		sentence                  string
	}{
		"GET":              {"GET", logSystemMetrics, "", 405, "every method is a POST"},
		"no such path":     {"POST", "/nothing", "application/json", 404, "the service is /prov4ml.v1.AgentService/"},
		"no such method":   {"POST", "/prov4ml.v1.AgentService/LogSystemMetric", "application/json", 404, "the service is /prov4ml.v1.AgentService/"},
		"curl without -H":  {"POST", logSystemMetrics, "application/x-www-form-urlencoded", 415, "application/json"},
		"no content type":  {"POST", logSystemMetrics, "", 415, "application/json"},
		"XML":              {"POST", logSystemMetrics, "application/xml", 415, "application/json"},
		"latin-1":          {"POST", logSystemMetrics, "application/json; charset=latin1", 415, "application/json"},
		"stream as single": {"POST", "/prov4ml.v1.AgentService/LogStream", "application/json", 415, "LogSystemMetrics"},
	} {
		t.Run(name, func(t *testing.T) {
			r := start(t, &fakeTracker{})
			req, err := http.NewRequestWithContext(t.Context(), tt.method, "http://agent"+tt.path, bodyOf(`{}`))
			if err != nil {
				t.Fatal(err)
			}
			if tt.contentType != "" {
				req.Header.Set("Content-Type", tt.contentType)
			}
			res, err := r.httpClient(false).Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			data, err := io.ReadAll(res.Body)
			if err != nil {
				t.Fatal(err)
			}
			var body struct{ Code, Message string }
			if err := json.Unmarshal(data, &body); err != nil || res.StatusCode != tt.status || body.Code == "" || !strings.Contains(body.Message, tt.sentence) {
				t.Errorf("%s %s (%v)", res.Status, data, err)
			}
			if r.counter(refusedRequest) != 1 {
				t.Error("not counted")
			}
		})
	}
}

// talk writes raw bytes and returns what comes back until the agent closes or has answered.
func talk(t *testing.T, r *running, bytes string) string {
	t.Helper()
	c, err := net.Dial("unix", r.path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	// The agent may have answered and closed before all is written.
	_, _ = io.WriteString(c, bytes)
	if err := c.(*net.UnixConn).CloseWrite(); err != nil && !errors.Is(err, net.ErrClosed) {
		t.Log(err)
	}
	data, _ := io.ReadAll(c)
	return string(data)
}

// Bytes that are no HTTP get a 400, are counted once a connection, and disturb nobody.
func TestNoHTTP(t *testing.T) {
	for name, tt := range map[string]struct{ bytes, answer string }{
		"TLS":               {"\x16\x03\x01\x02\x00\x01\x00", "400 Bad Request"},
		"zeros":             {strings.Repeat("\x00", 100), "400 Bad Request"},
		"JSON alone":        {`{"context":"a"}`, "400 Bad Request"},
		"words":             {"hello agent how are you\r\n\r\n", "400 Bad Request"},
		"no version":        {"GET /\r\n\r\n", "400 Bad Request"},
		"version 9":         {"POST / HTTP/9.9\r\nHost: a\r\n\r\n", "505 HTTP Version Not Supported"},
		"no host":           {"POST / HTTP/1.1\r\n\r\n", "400 Bad Request"},
		"bad length":        {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n", "400 Bad Request"},
		"bad transfer":      {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: x\r\n\r\n", "501"},
		"NUL in a header":   {"POST / HTTP/1.1\r\nHost: a\r\nX: a\x00b\r\n\r\n", "400 Bad Request"},
		"header over limit": {"POST / HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("a", 64<<10) + "\r\n\r\n", "431"},
		"line never ends":   {strings.Repeat("A", 100), ""},
		"bad HTTP/2":        {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + strings.Repeat("\xff", 64), ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := start(t, &fakeTracker{})
			if got := talk(t, r, tt.bytes); !strings.Contains(strings.SplitN(got, "\r\n", 2)[0], tt.answer) {
				t.Errorf("answer %q", got)
			}
			eventually(t, "it is counted", func() bool { return r.counter(refusedHTTP) == 1 })
			if a := r.post("LogSystemMetrics", `{}`); a.status != http.StatusOK {
				t.Errorf("the next caller gets %d %s", a.status, a.raw)
			}
		})
	}
}

// A good request counts as nothing bad, whatever its answer.
func TestGoodHTTPIsNotCounted(t *testing.T) {
	r := start(t, &fakeTracker{})
	request := "POST " + logSystemMetrics + " HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
	got := talk(t, r, request+strings.Replace(request, "{}", "[]", 1)+request)
	if strings.Count(got, "HTTP/1.1 200 OK") != 2 || strings.Count(got, "HTTP/1.1 400") != 1 {
		t.Errorf("answer %q", got)
	}
	if n := r.counter(refusedHTTP); n != 0 {
		t.Errorf("%d counted", n)
	}
}

// A body over the limit is refused by every way, plain and compressed.
func TestMessageLimit(t *testing.T) {
	spaces := func(n int) []byte { return append(bytes.Repeat([]byte{' '}, n-2), "{}"...) }
	zip := func(data []byte) []byte {
		var b bytes.Buffer
		w := gzip.NewWriter(&b)
		_, _ = w.Write(data)
		_ = w.Close()
		return b.Bytes()
	}
	field := func(n int) []byte { // an unknown field of the binary form
		m, err := proto.Marshal(&prov4mlv1.LogSystemMetricsRequest{Traceparent: strings.Repeat("x", n)})
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	for name, tt := range map[string]struct {
		contentType, encoding string
		body                  []byte
		over                  bool
	}{
		"at the limit":              {"application/json", "", spaces(MaxMessageBytes), false},
		"over by one":               {"application/json", "", spaces(MaxMessageBytes + 1), true},
		"far over":                  {"application/json", "", spaces(8 << 20), true},
		"connect, at the limit":     {"application/json; charset=utf-8", "", spaces(MaxMessageBytes), false},
		"connect, over":             {"application/json; charset=utf-8", "", spaces(MaxMessageBytes + 1), true},
		"gzip, at the limit":        {"application/json", "gzip", zip(spaces(MaxMessageBytes)), false},
		"gzip, over":                {"application/json", "gzip", zip(spaces(MaxMessageBytes + 1)), true},
		"gzip bomb":                 {"application/json", "gzip", zip(spaces(64 << 20)), true},
		"proto, over":               {"application/proto", "", field(MaxMessageBytes), true},
		"connect stream, over":      {"application/connect+json", "", envelope(0, spaces(MaxMessageBytes+1)), true},
		"gRPC-Web, over":            {"application/grpc-web+proto", "", envelope(0, field(MaxMessageBytes)), true},
		"gRPC-Web, length is a lie": {"application/grpc-web+proto", "", append([]byte{0, 0xff, 0xff, 0xff, 0xff}, "{}"...), true},
	} {
		t.Run(name, func(t *testing.T) {
			r := start(t, &fakeTracker{})
			path := logSystemMetrics
			if strings.Contains(name, "stream") {
				path = "/prov4ml.v1.AgentService/LogStream"
			}
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://agent"+path, bytes.NewReader(tt.body))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Type", tt.contentType)
			if tt.encoding != "" {
				req.Header.Set("Content-Encoding", tt.encoding)
			}
			res, err := r.httpClient(false).Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			data, err := io.ReadAll(res.Body)
			if err != nil {
				t.Fatal(err)
			}
			switch {
			case !tt.over:
				if res.StatusCode != http.StatusOK || len(r.tracker.taken()) != 1 {
					t.Errorf("%s %s", res.Status, data)
				}
				return
			case strings.HasPrefix(tt.contentType, "application/json"), tt.contentType == "application/proto":
				if res.StatusCode != http.StatusTooManyRequests || !strings.Contains(string(data), "1048576 bytes") {
					t.Errorf("%s %s", res.Status, data)
				}
			}
			if n := r.counter(refusedMessageBytes); n != 1 {
				t.Errorf("%d counted; %s %q", n, res.Status, data)
			}
			if len(r.tracker.taken()) != 0 {
				t.Error("it was taken")
			}
		})
	}
}

// A caller of another pid namespace gets told the cure, by every way, and may still ask for the status.
func TestForeignNamespace(t *testing.T) {
	r := start(t, &fakeTracker{}, func(c *Config) {
		c.Identify = func(*net.UnixConn) (runs.Caller, error) { return runs.Caller{}, nil }
	})
	for _, contentType := range []string{"application/json", "application/json; charset=utf-8"} {
		a := r.do(r.httpClient(false), logSystemMetrics, contentType, []byte(`{}`))
		if a.status != http.StatusBadRequest || a.text("code") != "failed_precondition" || !strings.Contains(a.text("message"), "hostPID: true") {
			t.Errorf("%d %s", a.status, a.raw)
		}
	}
	stream := r.client(true).LogStream(t.Context())
	_ = stream.Send(streamedCall(1, 1))
	if _, err := stream.CloseAndReceive(); connect.CodeOf(err) != connect.CodeFailedPrecondition || !strings.Contains(err.Error(), "hostPID: true") {
		t.Errorf("stream: %v", err)
	}
	if _, err := r.client(true).DescribeRun(t.Context(), connect.NewRequest(&prov4mlv1.DescribeRunRequest{})); connect.CodeOf(err) != connect.CodeFailedPrecondition {
		t.Errorf("describe: %v", err)
	}
	if r.counter(refusedCaller) != 4 {
		t.Errorf("%d counted", r.counter(refusedCaller))
	}
	if _, err := r.client(true).GetStatus(t.Context(), connect.NewRequest(&prov4mlv1.GetStatusRequest{})); err != nil {
		t.Error(err)
	}
}

// The curl line in a shell logs for the shell.
func TestParent(t *testing.T) {
	r := start(t, &fakeTracker{})
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), clientModeEnv+"=parent", clientSocketEnv+"="+r.path)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if got := r.tracker.taken()[0]; got.caller.PID != os.Getpid() || got.caller.StartTicks == 0 {
		t.Errorf("logged for %+v, this is %d", got.caller, os.Getpid())
	}
}

func TestTrackerErrors(t *testing.T) {
	for _, tt := range []struct {
		err    error
		status int
	}{
		{runs.ErrClosed, 503}, {runs.ErrLimit, 429}, {runs.ErrGone, 400}, {errors.New("boom"), 500},
	} {
		r := start(t, &fakeTracker{logFn: func(runs.Caller, runs.Call) error { return fmt.Errorf("wrapped: %w", tt.err) }})
		if a := r.post("LogSystemMetrics", `{}`); a.status != tt.status || !strings.Contains(a.text("message"), tt.err.Error()) {
			t.Errorf("%v: %d %s", tt.err, a.status, a.raw)
		}
	}
	r := start(t, &fakeTracker{waitFn: func(context.Context) error { return errors.New("disk full") }})
	if a := r.post("LogSystemMetrics", `{}`); a.status != 503 || !strings.Contains(a.text("message"), "could not be recorded: disk full") {
		t.Errorf("commit: %d %s", a.status, a.raw)
	}
}

func TestPanic(t *testing.T) {
	r := start(t, &fakeTracker{logFn: func(_ runs.Caller, call runs.Call) error {
		if call.Step != nil {
			panic("boom")
		}
		return nil
	}})
	for _, contentType := range []string{"application/json", "application/json; charset=utf-8"} {
		if a := r.do(r.httpClient(false), logSystemMetrics, contentType, []byte(`{"step":1}`)); a.status != 500 || a.text("code") != "internal" {
			t.Errorf("%d %s", a.status, a.raw)
		}
	}
	if n := r.counter(countPanics); n != 2 {
		t.Errorf("%d counted", n)
	}
	if a := r.post("LogSystemMetrics", `{}`); a.status != 200 {
		t.Errorf("afterwards: %d %s", a.status, a.raw)
	}
}

// Everybody at once, by every way, with nobody's call lost or given to another.
func TestConcurrent(t *testing.T) {
	r := start(t, &fakeTracker{})
	const callers, calls = 24, 40
	var wg sync.WaitGroup
	for i := range callers {
		wg.Go(func() {
			options := []connect.ClientOption{connect.WithProtoJSON()}
			if i%3 == 1 {
				options = []connect.ClientOption{connect.WithGRPC()}
			}
			client := r.client(i%3 == 1, options...)
			stream := client.LogStream(t.Context())
			for k := range calls {
				step := int64(i*calls + k)
				if k%2 == 0 {
					if err := stream.Send(streamedCall(step, 0)); err != nil {
						t.Error(err)
						return
					}
					continue
				}
				if _, err := client.LogSystemMetrics(t.Context(), connect.NewRequest(&prov4mlv1.LogSystemMetricsRequest{Step: &step})); err != nil {
					t.Error(err)
					return
				}
			}
			if res, err := stream.CloseAndReceive(); err != nil || res.Msg.GetAccepted() != calls/2 {
				t.Errorf("%v, %v", res, err)
			}
		})
	}
	wg.Wait()
	seen := map[int64]bool{}
	for _, l := range r.tracker.taken() {
		seen[*l.call.Step] = true
	}
	if len(seen) != callers*calls {
		t.Errorf("%d of %d calls were taken", len(seen), callers*calls)
	}
}

// The agent ends while a call waits for its commit: it is answered.
func TestEndAnswersWhatIsInFlight(t *testing.T) {
	release, waiting := make(chan struct{}), make(chan struct{})
	r := start(t, &fakeTracker{waitFn: func(context.Context) error {
		close(waiting)
		<-release
		return nil
	}})
	done := make(chan answer, 1)
	go func() { done <- r.post("LogSystemMetrics", `{}`) }()
	<-waiting
	stopped := make(chan error, 1)
	go func() { stopped <- r.stopFn() }()
	eventually(t, "the agent ends", func() bool { return r.drain.Err() != nil })
	close(release)
	if a := <-done; a.status != http.StatusOK {
		t.Errorf("%d %s", a.status, a.raw)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

// A commit that never comes does not keep the agent beyond its deadline.
func TestEndHasADeadline(t *testing.T) {
	waiting := make(chan struct{})
	s := startUnmanaged(t, &fakeTracker{waitFn: func(ctx context.Context) error {
		close(waiting)
		<-ctx.Done()
		return ctx.Err()
	}}, func(c *Config) { c.ShutdownTimeout = 50_000_000 })
	c, err := net.Dial("unix", s.path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "POST "+logSystemMetrics+" HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"); err != nil {
		t.Fatal(err)
	}
	<-waiting
	if err := s.stopFn(); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("ended with %v", err)
	}
}

// A connection is kept between calls.
func TestKeepAlive(t *testing.T) {
	r := start(t, &fakeTracker{})
	c, err := net.Dial("unix", r.path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	in := bufio.NewReader(c)
	for range 5 {
		if _, err := io.WriteString(c, "POST "+logSystemMetrics+" HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"); err != nil {
			t.Fatal(err)
		}
		res, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, res.Body); err != nil || res.StatusCode != http.StatusOK {
			t.Fatal(res.Status, err)
		}
	}
	if n := r.counter(countConnections); n != 1 {
		t.Errorf("%d connections", n)
	}
}

// After the end nothing of the server runs on.
func TestNothingRunsOn(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	r := startUnmanaged(t, &fakeTracker{})
	for _, h2 := range []bool{false, true} {
		client := r.httpClient(h2)
		if a := r.do(client, logSystemMetrics, "application/json", []byte(`{}`)); a.status != http.StatusOK {
			t.Errorf("%d %s", a.status, a.raw)
		}
		stream := prov4mlv1connect.NewAgentServiceClient(client, "http://agent").LogStream(t.Context())
		if err := stream.Send(streamedCall(1, 1)); err != nil {
			t.Fatal(err)
		}
		eventually(t, "it is read", func() bool { return len(r.tracker.taken())%2 == 0 })
		defer client.CloseIdleConnections()
		defer func() { _, _ = stream.CloseAndReceive() }()
	}
	if err := r.stopFn(); err != nil {
		t.Error(err)
	}
}

// OPTIONS * is net/http's own; here it is a request like others.
func TestOptions(t *testing.T) {
	r := start(t, &fakeTracker{})
	if got := talk(t, r, "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n"); !strings.HasPrefix(got, "HTTP/1.1 405 ") {
		t.Errorf("answer %q", got)
	}
	if n := r.counter(refusedHTTP); n != 0 {
		t.Errorf("%d counted as no HTTP", n)
	}
}
