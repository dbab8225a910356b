package server

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prov4ml/agent/probes"
	"github.com/prov4ml/agent/record"
	"github.com/prov4ml/agent/runs"
)

// logged is one call as the fake tracker got it.
type logged struct {
	caller runs.Caller
	call   runs.Call
}

// fakeTracker remembers what it was asked to do.
type fakeTracker struct {
	mu    sync.Mutex
	calls []logged
	descs []runs.Description

	// logFn and waitFn replace the defaults: no error, committed at once.
	logFn  func(runs.Caller, runs.Call) error
	waitFn func(context.Context) error
	number atomic.Int64
	holds  atomic.Int64
	// forget keeps no calls: for benchmarks.
	forget bool
}

func (f *fakeTracker) Describe(_ context.Context, _ runs.Caller, d runs.Description) (runs.Info, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.descs = append(f.descs, d)
	return runs.Info{RunID: "run-1"}, nil
}

func (f *fakeTracker) Log(caller runs.Caller, call runs.Call) (*record.LogCall, func(context.Context) (int64, error), error) {
	if f.logFn != nil {
		if err := f.logFn(caller, call); err != nil {
			return nil, nil, err
		}
	}
	if !f.forget {
		f.mu.Lock()
		f.calls = append(f.calls, logged{caller, call})
		f.mu.Unlock()
	}
	n := f.number.Add(1)
	return &record.LogCall{Seq: uint64(n - 1)}, func(ctx context.Context) (int64, error) {
		if f.waitFn != nil {
			if err := f.waitFn(ctx); err != nil {
				return 0, err
			}
		}
		return n, nil
	}, nil
}

func (f *fakeTracker) Hold(runs.Caller) func() {
	f.holds.Add(1)
	return func() { f.holds.Add(-1) }
}

func (f *fakeTracker) Status() runs.Status {
	return runs.Status{
		Probes: []probes.Status{
			{Name: "block I/O", OK: true, Source: record.Source_EBPF},
			{Name: "reclaim", Source: record.Source_PROCFS, Reason: "no BTF", Cure: "use a kernel with BTF"},
		},
		Counters: map[string]uint64{"runs.records": uint64(f.number.Load())},
	}
}

func (f *fakeTracker) taken() []logged {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]logged(nil), f.calls...)
}

// running is a server under test.
type running struct {
	*Server
	t       testing.TB
	tracker *fakeTracker // nil when it is a true one
	path    string
	stopFn  func() error
}

// start runs a server until the test ends.
func start(t testing.TB, tracker Tracker, change ...func(*Config)) *running {
	t.Helper()
	r := startUnmanaged(t, tracker, change...)
	t.Cleanup(func() {
		if err := r.stopFn(); err != nil {
			t.Errorf("stop: %v", err)
		}
	})
	return r
}

// startUnmanaged leaves stopping, and what it says, to the test.
func startUnmanaged(t testing.TB, tracker Tracker, change ...func(*Config)) *running {
	t.Helper()
	// t.TempDir has the test's name in it and may pass 107 bytes.
	dir, err := os.MkdirTemp("", "p4")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	cfg := Config{
		Socket:          SocketConfig{Path: filepath.Join(dir, "agent.sock")},
		Version:         "test",
		ShutdownTimeout: 5 * time.Second,
		SpanIDs:         func(*record.LogCall) (string, string) { return "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331" },
		Logger:          slog.New(slog.DiscardHandler),
	}
	for _, f := range change {
		f(&cfg)
	}
	s, err := New(cfg, tracker)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Listen(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	var once sync.Once
	var stopErr error
	fake, _ := tracker.(*fakeTracker)
	r := &running{Server: s, t: t, tracker: fake, path: cfg.Socket.Path}
	r.stopFn = func() error {
		once.Do(func() {
			cancel()
			stopErr = <-done
		})
		return stopErr
	}
	t.Cleanup(func() { _ = r.stopFn() })
	return r
}

// httpClient speaks HTTP/1.1 or, with h2, HTTP/2 over the socket.
func (r *running) httpClient(h2 bool) *http.Client {
	var protocols http.Protocols
	protocols.SetHTTP1(!h2)
	protocols.SetUnencryptedHTTP2(h2)
	tr := &http.Transport{
		Protocols: &protocols,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", r.path)
		},
	}
	r.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

// answer is what came back over HTTP/1.1.
type answer struct {
	status int
	body   map[string]any
	raw    string
}

func (a answer) text(key string) string {
	s, _ := a.body[key].(string)
	return s
}

// post sends a JSON body as curl does.
func (r *running) post(method, body string) answer {
	r.t.Helper()
	return r.do(r.httpClient(false), "/prov4ml.v1.AgentService/"+method, "application/json", []byte(body))
}

func (r *running) do(client *http.Client, path, contentType string, body []byte) answer {
	r.t.Helper()
	res, err := client.Post("http://agent"+path, contentType, bytes.NewReader(body))
	if err != nil {
		// Not Fatal: this runs in goroutines too.
		r.t.Error(err)
		return answer{}
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	if err != nil {
		r.t.Error(err)
		return answer{}
	}
	a := answer{status: res.StatusCode, raw: string(data)}
	_ = json.Unmarshal(data, &a.body)
	return a
}

// counter returns one of GetStatus's counters.
func (r *running) counter(name string) uint64 {
	return r.Status().GetCounters()[name]
}

func TestCurlLine(t *testing.T) {
	r := start(t, &fakeTracker{})
	a := r.post("LogSystemMetrics", `{"context":"TRAINING","step":"3"}`)
	if a.status != http.StatusOK || a.text("record") != "1" || a.text("traceId") == "" || a.text("spanId") == "" {
		t.Fatalf("answer %d %s", a.status, a.raw)
	}
	calls := r.tracker.taken()
	if len(calls) != 1 {
		t.Fatalf("%d calls were taken", len(calls))
	}
	got := calls[0]
	if got.caller.PID != os.Getpid() || got.caller.UID != uint32(os.Getuid()) {
		t.Errorf("caller %+v", got.caller)
	}
	if got.call.Function != record.Function_LOG_SYSTEM_METRICS || got.call.Context == nil || *got.call.Context != "TRAINING" ||
		got.call.Step == nil || *got.call.Step != 3 {
		t.Errorf("call %+v", got.call)
	}
}
