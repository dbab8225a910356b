package server

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"

	prov4mlv1 "github.com/prov4ml/agent/api/prov4ml/v1"
	"github.com/prov4ml/agent/api/prov4ml/v1/prov4mlv1connect"
	"github.com/prov4ml/agent/runs"
)

func bodyOf(s string) io.Reader { return strings.NewReader(s) }

// eventually waits for a state that is sure to come; the deadline only ends a test that has failed.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

// protocols are the ways in which a stream may come.
func streamProtocols() map[string][]connect.ClientOption {
	return map[string][]connect.ClientOption{
		"connect json":  {connect.WithProtoJSON()},
		"connect proto": nil,
		"connect gzip":  {connect.WithSendGzip()},
		"grpc":          {connect.WithGRPC()},
		"grpc gzip":     {connect.WithGRPC(), connect.WithSendGzip()},
		"grpc-web":      {connect.WithGRPCWeb()},
	}
}

func (r *running) client(h2 bool, options ...connect.ClientOption) prov4mlv1connect.AgentServiceClient {
	return prov4mlv1connect.NewAgentServiceClient(r.httpClient(h2), "http://agent", options...)
}

func TestStream(t *testing.T) {
	for name, options := range streamProtocols() {
		t.Run(name, func(t *testing.T) {
			r := start(t, &fakeTracker{})
			stream := r.client(true, options...).LogStream(t.Context())
			for i := range 100 {
				if err := stream.Send(streamedCall(int64(i), uint64(i+1))); err != nil {
					t.Fatal(err)
				}
			}
			res, err := stream.CloseAndReceive()
			if err != nil {
				t.Fatal(err)
			}
			if res.Msg.GetAccepted() != 100 || res.Msg.GetRefused() != 0 || res.Msg.GetFirstRefusal() != "" {
				t.Errorf("answer %v", res.Msg)
			}
			for i, l := range r.tracker.taken() {
				if *l.call.Step != int64(i) {
					t.Fatalf("call %d has step %d", i, *l.call.Step)
				}
			}
			if n := r.counter(countStreamed); n != 100 {
				t.Errorf("%d were counted", n)
			}
		})
	}
}

// A signature that was given up: nobody would hear the refusal, so the call is recorded without its number.
func TestStreamKeepsACallOfAnUnknownSignature(t *testing.T) {
	r := start(t, &fakeTracker{})
	stream := r.client(false).LogStream(t.Context())
	batch := &prov4mlv1.LogFlopsPerBatchRequest{Label: "a", Cost: &prov4mlv1.LogFlopsPerBatchRequest_Signature{Signature: "s"}}
	if err := stream.Send(&prov4mlv1.LogStreamRequest{Call: &prov4mlv1.LogStreamRequest_LogFlopsPerBatch{LogFlopsPerBatch: batch}}); err != nil {
		t.Fatal(err)
	}
	res, err := stream.CloseAndReceive()
	if err != nil {
		t.Fatal(err)
	}
	if res.Msg.GetAccepted() != 1 || res.Msg.GetRefused() != 0 {
		t.Errorf("answer %v", res.Msg)
	}
	taken := r.tracker.taken()
	if len(taken) != 1 || !taken[0].call.Cost.Nothing || !strings.Contains(taken[0].call.Cost.Missing, `signature "s"`) {
		t.Errorf("taken %+v", taken)
	}
	if n := r.counter(refusedSignature); n != 1 {
		t.Errorf("%s = %d", refusedSignature, n)
	}
}

// The commits hang: nothing that is streamed waits for them, and the answer does.
func TestStreamMeasuresOnReceipt(t *testing.T) {
	committed := make(chan struct{})
	r := start(t, &fakeTracker{waitFn: func(ctx context.Context) error {
		select {
		case <-committed:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}})
	stream := r.client(true, connect.WithGRPC()).LogStream(t.Context())
	for i := range 50 {
		if err := stream.Send(streamedCall(int64(i), 0)); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "all are measured", func() bool { return len(r.tracker.taken()) == 50 })
	answered := make(chan *prov4mlv1.LogStreamResponse, 1)
	go func() {
		res, err := stream.CloseAndReceive()
		if err != nil {
			t.Error(err)
			answered <- nil
			return
		}
		answered <- res.Msg
	}()
	select {
	case <-answered:
		t.Fatal("answered before the commit")
	default:
	}
	close(committed)
	if res := <-answered; res.GetAccepted() != 50 {
		t.Errorf("answer %v", res)
	}
}

// More calls than a stream keeps in mind, each committed.
func TestLongStream(t *testing.T) {
	r := start(t, &fakeTracker{})
	stream := r.client(true).LogStream(t.Context())
	const n = 3*maxPending + 7
	for i := range n {
		if err := stream.Send(streamedCall(int64(i), 0)); err != nil {
			t.Fatal(err)
		}
	}
	res, err := stream.CloseAndReceive()
	if err != nil || res.Msg.GetAccepted() != n {
		t.Errorf("answer %v, %v", res, err)
	}
}

// What a client wrote before it was killed is measured and recorded, all of it, though nothing of it had been read by then.
func TestKilledClient(t *testing.T) {
	for _, mode := range []string{"connect", "grpc"} {
		t.Run(mode, func(t *testing.T) {
			dead := make(chan struct{})
			r := start(t, &fakeTracker{logFn: func(runs.Caller, runs.Call) error {
				<-dead
				return nil
			}})
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), clientModeEnv+"="+mode, clientSocketEnv+"="+r.path)
			cmd.Stderr = os.Stderr
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			if line, err := bufio.NewReader(out).ReadString('\n'); line != "written\n" {
				t.Fatalf("the client says %q, %v", line, err)
			}
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait()
			close(dead)
			eventually(t, "every call is measured", func() bool { return len(r.tracker.taken()) == killedCalls })
			for i, l := range r.tracker.taken() {
				if *l.call.Step != int64(i) || l.caller.PID != cmd.Process.Pid {
					t.Fatalf("call %d is step %d of pid %d", i, *l.call.Step, l.caller.PID)
				}
			}
			eventually(t, "the stream has ended", func() bool { return r.tracker.holds.Load() == 0 })
		})
	}
}

// rawStream writes envelopes of the Connect protocol and returns the answer's.
func rawStream(t *testing.T, r *running, contentType string, envelopes ...[]byte) (message, end []byte) {
	t.Helper()
	res, err := r.httpClient(false).Post("http://agent/prov4ml.v1.AgentService/LogStream", contentType, bytes.NewReader(bytes.Join(envelopes, nil)))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	for len(data) >= 5 {
		size := int(data[1])<<24 | int(data[2])<<16 | int(data[3])<<8 | int(data[4])
		if data[0]&2 != 0 {
			end = data[5 : 5+size]
		} else {
			message = data[5 : 5+size]
		}
		data = data[5+size:]
	}
	return message, end
}

func TestStreamGoesOnAfterABadMessage(t *testing.T) {
	good := func(step int) []byte {
		data, err := protojson.Marshal(streamedCall(int64(step), uint64(step+1)))
		if err != nil {
			t.Fatal(err)
		}
		return envelope(0, data)
	}
	flops := envelope(0, []byte(`{"logFlopsPerBatch":{"label":"a"}}`))
	for name, bad := range map[string]struct {
		envelope []byte
		sentence string
		counter  string
	}{
		"no JSON":        {envelope(0, []byte(`{`)), "unexpected EOF", refusedDecode},
		"unknown field":  {envelope(0, []byte(`{"logSystemMetrics":{"contxt":"a"}}`)), `unknown field "contxt"`, refusedDecode},
		"step no number": {envelope(0, []byte(`{"logSystemMetrics":{"step":"x"}}`)), "field step", refusedDecode},
		"too large":      {envelope(0, bytes.Repeat([]byte{' '}, MaxMessageBytes+1)), "1048576 bytes", refusedMessageBytes},
		"context":        {envelope(0, []byte(`{"logSystemMetrics":{"context":"`+strings.Repeat("a", 1025)+`"}}`)), "context has 1025 bytes", refusedTextBytes},
		"no call":        {envelope(0, []byte(`{}`)), "holds no call", refusedValue},
		"no gzip":        {envelope(1, []byte(`{}`)), "no gzip", refusedDecode},
		"FLOPs":          {flops, "none of operators", refusedValue},
		"subject":        {envelope(0, []byte(`{"logSystemMetrics":{"subject":9}}`)), "subject is 9", refusedValue},
	} {
		t.Run(name, func(t *testing.T) {
			r := start(t, &fakeTracker{})
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://agent/prov4ml.v1.AgentService/LogStream",
				bytes.NewReader(bytes.Join([][]byte{good(0), bad.envelope, good(1)}, nil)))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Type", "application/connect+json")
			req.Header.Set("Connect-Content-Encoding", "gzip")
			res, err := r.httpClient(false).Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			data, err := io.ReadAll(res.Body)
			if err != nil || len(data) < 5 {
				t.Fatalf("%q, %v", data, err)
			}
			var answer prov4mlv1.LogStreamResponse
			size := int(data[3])<<8 | int(data[4])
			if err := protojson.Unmarshal(data[5:5+size], &answer); err != nil {
				t.Fatalf("%q: %v", data, err)
			}
			if answer.GetAccepted() != 2 || answer.GetRefused() != 1 || !strings.Contains(answer.GetFirstRefusal(), bad.sentence) {
				t.Errorf("answer %v", &answer)
			}
			if n := len(r.tracker.taken()); n != 2 {
				t.Errorf("%d were taken", n)
			}
			if n := r.counter(bad.counter); n != 1 {
				t.Errorf("%s = %d", bad.counter, n)
			}
		})
	}
}

// A torn envelope ends the stream; what came before it is recorded.
func TestStreamFraming(t *testing.T) {
	data, err := protojson.Marshal(streamedCall(1, 1))
	if err != nil {
		t.Fatal(err)
	}
	for name, torn := range map[string][]byte{
		"prefix":  {0, 0},
		"payload": envelope(0, data)[:10],
	} {
		t.Run(name, func(t *testing.T) {
			r := start(t, &fakeTracker{})
			_, end := rawStream(t, r, "application/connect+json", envelope(0, data), torn)
			if !strings.Contains(string(end), `"error"`) {
				t.Errorf("the end is %s", end)
			}
			if len(r.tracker.taken()) != 1 || r.counter(refusedFraming) != 1 {
				t.Errorf("%d were taken, %d counted", len(r.tracker.taken()), r.counter(refusedFraming))
			}
		})
	}
}

// A commit that fails is a refusal, not silence.
func TestStreamCommitFails(t *testing.T) {
	r := start(t, &fakeTracker{waitFn: func(context.Context) error { return errors.New("disk full") }})
	stream := r.client(true).LogStream(t.Context())
	if err := stream.Send(streamedCall(1, 1)); err != nil {
		t.Fatal(err)
	}
	res, err := stream.CloseAndReceive()
	if err != nil {
		t.Fatal(err)
	}
	if res.Msg.GetAccepted() != 0 || res.Msg.GetRefused() != 1 || !strings.Contains(res.Msg.GetFirstRefusal(), "disk full") {
		t.Errorf("answer %v", res.Msg)
	}
}

// A panic costs one message.
func TestStreamPanic(t *testing.T) {
	r := start(t, &fakeTracker{logFn: func(_ runs.Caller, call runs.Call) error {
		if *call.Step == 1 {
			panic("boom")
		}
		return nil
	}})
	stream := r.client(true).LogStream(t.Context())
	for i := range 3 {
		if err := stream.Send(streamedCall(int64(i), 0)); err != nil {
			t.Fatal(err)
		}
	}
	res, err := stream.CloseAndReceive()
	if err != nil {
		t.Fatal(err)
	}
	if res.Msg.GetAccepted() != 2 || res.Msg.GetRefused() != 1 || r.counter(countPanics) != 1 {
		t.Errorf("answer %v, %d panics", res.Msg, r.counter(countPanics))
	}
}

// The agent ends: what has been written to a stream is read, committed and answered.
func TestStreamDrained(t *testing.T) {
	t.Run("HTTP/1.1", func(t *testing.T) {
		t.Parallel()
		r := start(t, &fakeTracker{})
		// By hand: net/http's client closes the connection, answer and all, when it cannot write the end of the request.
		c, err := net.Dial("unix", r.path)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.WriteString(c, streamHead); err != nil {
			t.Fatal(err)
		}
		for i := range 20 {
			tell(t, c, i)
		}
		eventually(t, "the stream is open", func() bool { return len(r.tracker.taken()) > 0 })
		if err := r.stopFn(); err != nil {
			t.Fatal(err)
		}
		res, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		if answer, err := io.ReadAll(res.Body); err != nil || !strings.Contains(string(answer), `"accepted":"20"`) {
			t.Errorf("answer %s, %v", answer, err)
		}
	})
	t.Run("HTTP/2", func(t *testing.T) {
		t.Parallel()
		r := start(t, &fakeTracker{})
		// net/http's client writes to the socket after Send has returned, on a busy machine much later.
		r.drainQuiet = 2 * time.Second
		stream := r.client(true, connect.WithProtoJSON()).LogStream(t.Context())
		for i := range 20 {
			if err := stream.Send(streamedCall(int64(i), 0)); err != nil {
				t.Fatal(err)
			}
		}
		eventually(t, "the stream is open", func() bool { return len(r.tracker.taken()) > 0 })
		if err := r.stopFn(); err != nil {
			t.Fatal(err)
		}
		res, err := stream.CloseAndReceive()
		if err != nil {
			t.Fatal(err)
		}
		if res.Msg.GetAccepted() != 20 {
			t.Errorf("answer %v", res.Msg)
		}
	})
}

// A unary call is measured after the streamed calls that the script made before it, although they travel on another
// connection.
func TestUnaryWaitsForStreamed(t *testing.T) {
	release := make(chan struct{})
	r := start(t, &fakeTracker{logFn: func(_ runs.Caller, call runs.Call) error {
		if *call.Step == 1 {
			<-release
		}
		return nil
	}})
	stream := r.client(true).LogStream(t.Context())
	for i := int64(1); i <= 3; i++ {
		if err := stream.Send(streamedCall(i, uint64(i))); err != nil {
			t.Fatal(err)
		}
	}
	done := make(chan answer, 1)
	go func() { done <- r.post("LogSystemMetrics", `{"step":4,"seq":4}`) }()
	eventually(t, "the unary call waits", func() bool {
		q := r.sequenceOf(os.Getpid())
		if q == nil {
			return false
		}
		q.mu.Lock()
		defer q.mu.Unlock()
		// Or it has given up already, on a machine that has better things to do.
		return q.changed != nil || len(r.tracker.taken()) > 0
	})
	close(release)
	if a := <-done; a.status != http.StatusOK {
		t.Fatalf("answer %d %s", a.status, a.raw)
	}
	if r.counter(countSeqWaits) != 1 {
		t.Errorf("%d waits", r.counter(countSeqWaits))
	}
	if r.counter(countSeqTimeouts) == 0 {
		for i, l := range r.tracker.taken() {
			if *l.call.Step != int64(i+1) {
				t.Errorf("call %d is step %d", i, *l.call.Step)
			}
		}
	}
	if _, err := stream.CloseAndReceive(); err != nil {
		t.Error(err)
	}
}

func (r *running) sequenceOf(pid int) *sequence {
	r.sequences.mu.Lock()
	defer r.sequences.mu.Unlock()
	for p, q := range r.sequences.byProcess {
		if p.PID == pid {
			return q
		}
	}
	return nil
}

// A connection that is idle, streams or not, does not keep the agent from ending.
func TestIdleDoesNotKeepTheAgent(t *testing.T) {
	r := start(t, &fakeTracker{})
	silent, err := net.Dial("unix", r.path)
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	if a := r.post("LogSystemMetrics", `{}`); a.status != http.StatusOK {
		t.Fatal(a.raw)
	}
	if err := r.stopFn(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(r.path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
}
