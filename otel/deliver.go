package otel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/prov4ml/agent/record"
	"github.com/prov4ml/agent/store"
)

// Bounds of a request. A receiver's default limit is 4 MiB for a message as it is before compression, and what it answers
// beyond is final.
const (
	maxRequestRecords = 512
	maxRequestBytes   = 2 << 20
)

// burstRecords is how many records are a burst: they take milliseconds of a processor.
const burstRecords = 16

// maxRetryInfo bounds the wait that a receiver asks for.
const maxRetryInfo = 10 * time.Minute

// repeatAfter is how long the same complaint is not logged again.
const repeatAfter = time.Minute

// worker delivers one signal to one destination. One goroutine runs it; stats are for everybody.
type worker struct {
	destination, signal string

	reader   *store.Reader
	exporter exporter
	// file is nil for a destination behind OTLP.
	file *lineFile

	burst                  func() (over func())
	linger                 time.Duration
	retryInitial, retryMax time.Duration
	log                    *slog.Logger
	flush                  *flush

	// bytesPerRecord is what the last request took for each of its records.
	bytesPerRecord int
	// complaint and complained say what was logged last, and when.
	complaint  string
	complained time.Time
	// burstOver ends the burst that is under way; nil = there is none.
	burstOver func()
	// failing: the last attempt failed and was to be repeated.
	failing bool

	mu    sync.Mutex
	stats Stats
}

// Stats says how one signal's delivery to one destination is doing, since the start.
type Stats struct {
	Destination, Signal string
	// Requests that were answered with OK.
	Requests uint64
	// Records that were delivered.
	Records uint64
	// Refused are records that the receiver refused for good; they are skipped.
	Refused uint64
	// Rejected are the spans or points that the receiver dropped of requests that it took (partial success).
	Rejected uint64
	// Retries are attempts that failed and were repeated.
	Retries uint64
	// Moved are points that have the time of the call, since the time stamp that the script gave would have broken their order.
	Moved uint64
	// Stopped: the receiver does not take this signal; what comes is skipped until the agent starts again.
	Stopped bool
	// LastError is the latest error; empty = none since the last success.
	LastError string
	// LastSuccess is the time of the last OK; zero = none yet.
	LastSuccess time.Time
}

// run delivers until ctx ends or the store is closed.
func (w *worker) run(ctx context.Context) {
	maxRecords := maxRequestRecords
	if w.file != nil {
		// A file is synced once a batch.
		maxRecords *= 8
	}
	for failures := 0; ; {
		more, err := w.deliverNext(ctx, maxRecords)
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, store.ErrClosed) {
				return
			}
			w.fail(slog.LevelError, "cannot go on delivering", err)
			failures++
			w.flush.wait(ctx, backOff(w.retryInitial, w.retryMax, failures))
			continue
		}
		failures = 0
		if !more {
			w.flush.linger(ctx, w.linger)
		}
	}
}

// deliverNext waits for records and delivers them; more says that others wait already.
func (w *worker) deliverNext(ctx context.Context, maxRecords int) (more bool, err error) {
	if w.reader.Behind(w.reader.Seq()) > burstRecords {
		w.burstOver = w.burst()
		defer w.endBurst()
	}
	batch, err := w.reader.Next(ctx, maxRecords, maxRequestBytes)
	if err != nil {
		return false, err
	}
	// A batch that its bounds cut short is a full one, in bytes or in records.
	more = w.reader.Behind(batch[len(batch)-1].Seq) > 0
	return more, w.deliver(ctx, batch)
}

// endBurst ends the burst, if there is one: the records are delivered, or wait for a receiver that is down.
func (w *worker) endBurst() {
	if w.burstOver != nil {
		w.burstOver()
		w.burstOver = nil
	}
}

// deliver hands the batch over and moves the cursor behind it, step by step.
func (w *worker) deliver(ctx context.Context, batch []store.Stored) error {
	if w.file != nil {
		if err := w.writeFile(ctx, batch); err != nil {
			return err
		}
		return w.advance(ctx, batch[len(batch)-1].Seq)
	}
	for len(batch) > 0 {
		n := min(len(batch), w.chunk())
		if err := w.sendAll(ctx, batch[:n]); err != nil {
			return err
		}
		if err := w.advance(ctx, batch[n-1].Seq); err != nil {
			return err
		}
		batch = batch[n:]
	}
	return nil
}

// chunk is how many records make a request of the right size.
func (w *worker) chunk() int {
	const guess = 6 << 10
	per := w.bytesPerRecord
	if per == 0 {
		per = guess
	}
	return min(max(maxRequestBytes*9/10/per, 1), maxRequestRecords)
}

func (w *worker) advance(ctx context.Context, seq int64) error {
	var state []byte
	if w.file != nil {
		state = w.file.state()
	}
	if err := w.reader.Advance(ctx, seq, state); err != nil {
		return fmt.Errorf("move the cursor of %s %s: %w", w.destination, w.signal, err)
	}
	w.flush.progress()
	return nil
}

// sendAll settles every record: delivered, or refused for good.
func (w *worker) sendAll(ctx context.Context, chunk []store.Stored) error {
	if w.stopped() {
		w.count(func(s *Stats) { s.Refused += uint64(len(chunk)) })
		return nil
	}
	for _, e := range w.exporter.encode(records(chunk)) {
		if err := w.send(ctx, e, false); err != nil {
			return err
		}
	}
	return nil
}

// send settles the records of one request. Halves of a request that was too large for the receiver are not split again.
func (w *worker) send(ctx context.Context, e *encoded, half bool) error {
	for failures := 0; ; {
		out, err := w.export(ctx, e, limitOf(e))
		if err != nil {
			return err
		}
		switch out.verdict() {
		case delivered:
			w.succeed(e, out)
			return nil

		case oversized:
			return w.sendHalves(ctx, e, half)

		case exhausted:
			if !half && len(e.records) > 1 {
				return w.sendHalves(ctx, e, true)
			}
			w.refuse(e, out)
			return nil

		case refused:
			w.refuse(e, out)
			return nil

		case unimplemented:
			w.count(func(s *Stats) {
				s.Stopped = true
				s.Refused += uint64(len(e.records))
				s.LastError = out.err.Error()
			})
			w.log.Error("the receiver does not take this signal; it is not sent again until the agent starts again",
				"destination", w.destination, "signal", w.signal, "error", out.err,
				"cure", "give it an endpoint of its own with OTEL_EXPORTER_OTLP_"+upper(w.signal)+"_ENDPOINT, or turn it off with OTEL_"+upper(w.signal)+"_EXPORTER=none")
			return nil
		}

		failures++
		wait := backOff(w.retryInitial, w.retryMax, failures)
		if out.code == codes.Unauthenticated || out.code == codes.PermissionDenied {
			wait = backOff(w.retryMax, w.retryMax, 1)
		}
		if out.retryAfter > 0 {
			wait = max(wait, min(out.retryAfter, maxRetryInfo))
		}
		w.count(func(s *Stats) { s.Retries++ })
		w.fail(slog.LevelWarn, "cannot deliver now; the records wait in the store", out.err)
		w.flush.wait(ctx, wait)
	}
}

func (w *worker) sendHalves(ctx context.Context, e *encoded, half bool) error {
	for _, part := range w.halves(e) {
		if w.stopped() {
			w.count(func(s *Stats) { s.Refused += uint64(len(part)) })
			continue
		}
		for _, e := range w.exporter.encode(part) {
			if err := w.send(ctx, e, half); err != nil {
				return err
			}
		}
	}
	return nil
}

// halves are the records of a request that has to be made anew in two.
func (w *worker) halves(e *encoded) [2][]*record.LogCall {
	w.exporter.rewind(e)
	n := len(e.records) / 2
	return [2][]*record.LogCall{e.records[:n], e.records[n:]}
}

// limitOf is how large the request may be. One record cannot be made smaller; the receiver decides.
func limitOf(e *encoded) int {
	if len(e.records) == 1 {
		return 0
	}
	return maxRequestBytes
}

// export makes one attempt. err is not nil when the worker has to end.
func (w *worker) export(ctx context.Context, e *encoded, limit int) (*outcome, error) {
	out := &outcome{limit: limit}
	err := w.exporter.export(withOutcome(ctx, out), e)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if out.size > 0 {
		w.bytesPerRecord = max(out.size/len(e.records), 1)
	}
	if !out.called {
		// The exporter refused it by itself: it would do so again.
		out.code, out.err = codes.InvalidArgument, err
	}
	return out, nil
}

// succeed counts an OK, a partial one included.
func (w *worker) succeed(e *encoded, out *outcome) {
	w.count(func(s *Stats) {
		s.Requests++
		s.Records += uint64(len(e.records))
		s.Rejected += uint64(out.rejected)
		s.Moved = w.exporter.moved()
		s.LastError = out.message
		s.LastSuccess = time.Now()
	})
	if w.failing {
		w.failing, w.complaint = false, ""
		w.log.Info("delivering again", "destination", w.destination, "signal", w.signal)
	}
	// A message without rejections is a warning.
	if out.rejected > 0 || out.message != "" {
		w.complain(slog.LevelWarn, "the receiver took a request in part", out.message, "rejected", out.rejected)
	}
}

// refuse counts records that the receiver refused for good.
func (w *worker) refuse(e *encoded, out *outcome) {
	w.count(func(s *Stats) {
		s.Refused += uint64(len(e.records))
		s.LastError = out.err.Error()
	})
	w.complain(slog.LevelError, "the receiver refused records for good; they are skipped", out.err.Error(), "records", len(e.records))
}

// fail notes that something failed and will be tried again, after a wait.
func (w *worker) fail(level slog.Level, what string, err error) {
	w.endBurst()
	w.failing = true
	w.count(func(s *Stats) { s.LastError = err.Error() })
	w.complain(level, what, err.Error())
}

// complain logs, but not the same again and again.
func (w *worker) complain(level slog.Level, what, why string, args ...any) {
	if w.complaint == what+why && time.Since(w.complained) < repeatAfter {
		return
	}
	w.complaint, w.complained = what+why, time.Now()
	args = append([]any{"destination", w.destination, "signal", w.signal, "error", why}, args...)
	w.log.Log(context.Background(), level, what, args...)
}

func (w *worker) count(f func(*Stats)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f(&w.stats)
}

func (w *worker) stopped() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.stats.Stopped
}

func (w *worker) snapshot() Stats {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.stats
}

func records(batch []store.Stored) []*record.LogCall {
	out := make([]*record.LogCall, len(batch))
	for i := range batch {
		out[i] = batch[i].Record
	}
	return out
}

// backOff is the wait after the n-th failure in a row: it doubles from initial to max, and a random half of it keeps many
// agents from coming back at the same moment.
func backOff(initial, limit time.Duration, n int) time.Duration {
	d := initial
	for ; n > 1 && d < limit; n-- {
		d *= 2
	}
	d = min(d, limit)
	return d/2 + rand.N(d/2+1)
}
