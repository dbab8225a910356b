package server

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/prov4ml/agent/runs"
)

// keeper is a connection that is kept open between calls.
type keeper struct {
	t *testing.T
	net.Conn
	in *bufio.Reader
}

func (r *running) keep(t *testing.T) *keeper {
	t.Helper()
	c, err := net.Dial("unix", r.path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return &keeper{t, c, bufio.NewReader(c)}
}

func (k *keeper) send() {
	k.t.Helper()
	if _, err := io.WriteString(k, "POST "+logSystemMetrics+" HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"); err != nil {
		k.t.Fatal(err)
	}
}

func (k *keeper) receive() {
	k.t.Helper()
	res, err := http.ReadResponse(k.in, nil)
	if err != nil {
		k.t.Fatal(err)
	}
	defer res.Body.Close()
	if _, err := io.Copy(io.Discard, res.Body); err != nil || res.StatusCode != http.StatusOK {
		k.t.Fatal(res.Status, err)
	}
}

// closed waits for the agent to close.
func (k *keeper) closed() bool {
	_, err := k.in.ReadByte()
	return err != nil
}

// The connection over the limit costs the longest idle one, and never one that awaits its answer.
func TestConnectionLimit(t *testing.T) {
	release := make(chan struct{})
	held := make(chan struct{}, 1)
	var blocking atomic.Bool
	r := start(t, &fakeTracker{logFn: func(runs.Caller, runs.Call) error {
		if blocking.Load() {
			held <- struct{}{}
			<-release
		}
		return nil
	}}, func(c *Config) { c.Connections = 3 })

	first, second, third := r.keep(t), r.keep(t), r.keep(t)
	for _, k := range []*keeper{first, second, third} {
		k.send()
		k.receive()
	}
	// The first is used again, so the second is the longest idle.
	first.send()
	first.receive()
	fourth := r.keep(t)
	fourth.send()
	fourth.receive()
	if !second.closed() {
		t.Error("the longest idle is open")
	}
	if n := r.counter(closedIdle); n != 1 {
		t.Errorf("%d closed", n)
	}

	// Everybody waits for an answer: the newcomer is refused, the others are answered.
	busy := []*keeper{first, third, fourth}
	blocking.Store(true)
	for _, k := range busy {
		k.send()
		<-held
	}
	if !r.keep(t).closed() {
		t.Error("the newcomer was taken")
	}
	close(release)
	for _, k := range busy {
		k.receive()
	}
	if n := r.counter(refusedConnections); n != 1 {
		t.Errorf("%d refused", n)
	}
}

// A connection that says nothing is idle from the start.
func TestConnectionLimitSilent(t *testing.T) {
	r := start(t, &fakeTracker{}, func(c *Config) { c.Connections = 2 })
	silent := r.keep(t)
	eventually(t, "it is accepted", func() bool { return r.conns.len() == 1 })
	for range 3 {
		k := r.keep(t)
		k.send()
		k.receive()
	}
	if !silent.closed() {
		t.Error("the silent one is open")
	}
}

func TestRateLimit(t *testing.T) {
	r := start(t, &fakeTracker{}, func(c *Config) { c.CallsPerSecond = 5 })
	stream := r.client(true, connect.WithGRPC()).LogStream(t.Context())
	// However slow this machine is, it sends more than five a second.
	const n = 2000
	for i := range n {
		if err := stream.Send(streamedCall(int64(i), 0)); err != nil {
			t.Fatal(err)
		}
	}
	res, err := stream.CloseAndReceive()
	if err != nil {
		t.Fatal(err)
	}
	if res.Msg.GetAccepted() < 5 || res.Msg.GetRefused() == 0 || res.Msg.GetAccepted()+res.Msg.GetRefused() != n {
		t.Errorf("answer %v", res.Msg)
	}
	if got := r.counter(refusedRate); got != res.Msg.GetRefused() {
		t.Errorf("%d counted of %d", got, res.Msg.GetRefused())
	}
	if want := "the connection makes more than 5 calls a second"; res.Msg.GetFirstRefusal()[:len(want)] != want {
		t.Errorf("sentence %q", res.Msg.GetFirstRefusal())
	}
	// Another connection has a bucket of its own.
	if a := r.post("LogSystemMetrics", `{}`); a.status != http.StatusOK {
		t.Errorf("another: %d %s", a.status, a.raw)
	}
}

func TestBucket(t *testing.T) {
	var b bucket
	const rate = 10
	take := func(at time.Duration, n int) (taken int) {
		for range n {
			if b.take(at, rate) {
				taken++
			}
		}
		return taken
	}
	for _, step := range []struct {
		at   time.Duration
		want int
	}{
		{0, rate},
		{0, 0},
		{100 * time.Millisecond, 1},
		{150 * time.Millisecond, 0},
		{200 * time.Millisecond, 1},
		{time.Hour, rate},
		{time.Hour + 500*time.Millisecond, 5},
	} {
		if got := take(step.at, 20); got != step.want {
			t.Errorf("at %v: %d, not %d", step.at, got, step.want)
		}
	}
}

func TestSequence(t *testing.T) {
	const never = time.Hour // the test ends before
	t.Run("no stream, no wait", func(t *testing.T) {
		var q sequence
		if waited, complete := q.await(7, never); waited || !complete {
			t.Error("it waited")
		}
		q.measured(7)
		if q.seen != 7 {
			t.Errorf("seen %d", q.seen)
		}
	})
	t.Run("not counted, or the first", func(t *testing.T) {
		q := sequence{streams: 1}
		for _, seq := range []uint64{0, 1} {
			if waited, complete := q.await(seq, never); waited || !complete {
				t.Errorf("%d waited", seq)
			}
		}
		q.measured(0)
		if q.seen != 0 {
			t.Errorf("seen %d", q.seen)
		}
	})
	t.Run("an agent younger than the process", func(t *testing.T) {
		q := sequence{streams: 1}
		q.measured(1000)
		if waited, complete := q.await(1001, never); waited || !complete {
			t.Error("it waited for calls of before")
		}
	})
	t.Run("out of order", func(t *testing.T) {
		q := sequence{streams: 1}
		for _, seq := range []uint64{1, 3, 2, 6, 5, 4} {
			q.measured(seq)
		}
		if q.seen != 6 || len(q.ahead) != 0 {
			t.Errorf("seen %d, ahead %v", q.seen, q.ahead)
		}
		q.measured(2)
		if q.seen != 6 {
			t.Errorf("seen %d", q.seen)
		}
	})
	t.Run("given up", func(t *testing.T) {
		q := sequence{streams: 1}
		q.measured(1)
		q.measured(4)
		if waited, complete := q.await(6, time.Nanosecond); !waited || complete {
			t.Error("it did not give up")
		}
		if q.seen != 5 || len(q.ahead) != 0 {
			t.Errorf("seen %d, ahead %v", q.seen, q.ahead)
		}
	})
	t.Run("a client that counts nonsense", func(t *testing.T) {
		q := sequence{streams: 1}
		q.measured(1)
		for i := range uint64(3 * maxAhead) {
			q.measured(10 + 2*i)
		}
		if len(q.ahead) > maxAhead {
			t.Errorf("%d remembered", len(q.ahead))
		}
		q.measured(^uint64(0))
		if waited, complete := q.await(^uint64(0), time.Nanosecond); waited && complete {
			t.Error("complete")
		}
	})
	for name, end := range map[string]func(*sequence){
		"measured":      func(q *sequence) { q.measured(2) },
		"stream ended":  func(q *sequence) { q.stream(-1) },
		"no such other": func(q *sequence) { q.advance(2) },
	} {
		t.Run("woken: "+name, func(t *testing.T) {
			q := sequence{streams: 1}
			q.measured(1)
			done := make(chan bool)
			go func() {
				_, complete := q.await(3, never)
				done <- complete
			}()
			eventually(t, "it waits", func() bool {
				q.mu.Lock()
				defer q.mu.Unlock()
				return q.changed != nil
			})
			q.mu.Lock()
			if name == "no such other" {
				end(&q)
				q.mu.Unlock()
			} else {
				q.mu.Unlock()
				end(&q)
			}
			if !<-done {
				t.Error("not complete")
			}
		})
	}
	// A new connection may turn out to be the stream with the calls before.
	t.Run("fresh connection", func(t *testing.T) {
		q := sequence{fresh: 1}
		done := make(chan bool)
		go func() {
			_, complete := q.await(3, never)
			done <- complete
		}()
		eventually(t, "it waits", func() bool {
			q.mu.Lock()
			defer q.mu.Unlock()
			return q.changed != nil
		})
		q.stream(1)
		q.settle()
		q.measured(1)
		q.measured(2)
		if !<-done {
			t.Error("not complete")
		}
	})
}

// Nothing is left of a process that has disconnected.
func TestSequencesAreReleased(t *testing.T) {
	r := start(t, &fakeTracker{})
	k := r.keep(t)
	k.send()
	k.receive()
	silent := r.keep(t)
	eventually(t, "both are known", func() bool { return r.conns.len() == 2 })
	_, _ = k.Close(), silent.Close()
	eventually(t, "nothing is left", func() bool {
		r.sequences.mu.Lock()
		defer r.sequences.mu.Unlock()
		return len(r.sequences.byProcess) == 0 && r.conns.len() == 0
	})
}
